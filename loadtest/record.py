"""What is written down of each request, and the file it is written to."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType


@dataclass(slots=True)
class Record:
    """One request. Times in seconds; `started` counts from the start of the run."""

    conversation: str
    turn: int
    kind: str
    started: float
    status: int | None = None  # HTTP
    error: str | None = None  # a short kind that can be counted: "http 503", "timeout", ...
    detail: str | None = None  # what the server or the library said of it
    left: bool = False  # the client went away on purpose
    ttft: float | None = None  # to the first piece of text; streamed requests only
    inter_token: list[float] = field(default_factory=list)  # between pieces of text
    e2e: float = 0.0
    prompt_tokens: int = 0
    cached_tokens: int | None = None  # None: the server does not report it
    completion_tokens: int = 0
    digest: str | None = None  # of the text of all choices

    @property
    def answered(self) -> bool:
        """A complete answer of status 200 came."""
        return self.status == 200 and self.error is None and not self.left


def digest_of(texts: list[str]) -> str:
    """Equal for equal answers: SHA-256 of the choices' texts in order."""
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()


class RecordFile:
    """JSON lines, one per request, each written as soon as the request ends. A full disk ends the file, not the run."""

    def __init__(self, path: Path | None) -> None:
        """Raises OSError if the file cannot be created."""
        self._file = path.open("w", encoding="utf-8") if path else None
        self.error: OSError | None = None

    def __enter__(self) -> RecordFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._file is not None:
            try:
                self._file.close()
            except OSError as problem:  # what was buffered does not fit either
                self.error = self.error or problem

    def write(self, record: Record) -> None:
        if self._file is None or self.error is not None:
            return
        line = json.dumps(dataclasses.asdict(record), separators=(",", ":"))
        try:
            self._file.write(line + "\n")
            self._file.flush()
        except OSError as error:
            self.error = error
