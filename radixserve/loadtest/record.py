"""The record of each request, and the file with all records."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType


@dataclass(slots=True)
class Record:
    """One request. Times in seconds; `due` and `started` count from the start of the run.

    `ttft` and `e2e` count from `due`. A request that starts later than scheduled was delayed by the
    server or by the load test, and leaving out this delay would favour a server that stalls. A
    streamed answer ends with its last token, and not with the usage or the end of the stream after
    it.
    """

    session: str
    turn: int
    kind: str
    due: float  # when it should start: by the schedule, or when its client was free
    started: float = 0.0
    phase: str = ""  # name of the phase, if a run replays its workload several times
    status: int | None = None  # HTTP
    error: str | None = None  # a short kind that can be counted: "http 503", "timeout", ...
    detail: str | None = None  # the message of the server or the library
    left: bool = False  # the client disconnected on purpose
    slow: bool = False  # the client read slowly on purpose
    in_flight: int = 0  # requests of this run in progress when it started, itself included
    ttft: float | None = None  # to the first piece of text; streamed requests only
    inter_token: list[float] = field(default_factory=list)  # between pieces of text
    e2e: float = 0.0  # to the last token, or to the end if it did not come as a whole stream
    prompt_tokens: int = 0
    cached_tokens: int | None = None  # None: the server does not report it
    completion_tokens: int = 0  # of all choices
    choices: int = 1  # generated side by side
    digest: str | None = None  # of the text of all choices

    @property
    def answered(self) -> bool:
        """Whether a complete answer of status 200 arrived."""
        return self.status == 200 and self.error is None and not self.left

    @property
    def tpot(self) -> float | None:
        """Seconds for each token of a choice after its first; None if there is none."""
        later = self.completion_tokens / self.choices - 1
        return None if self.ttft is None or later <= 0 else (self.e2e - self.ttft) / later


def digest_of(texts: list[str]) -> str:
    """SHA-256 of the choices' texts in order, equal for equal answers."""
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()


class RecordFile:
    """JSON lines, one per request, each written as soon as the request ends. A full disk ends the
    file, but not the run.
    """

    def __init__(self, path: Path | None) -> None:
        """Raises OSError if the file cannot be created."""
        self._file = path.open("w", encoding="utf-8") if path else None
        self.error: OSError | None = None

    def __enter__(self) -> RecordFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        if self._file is not None:
            try:
                self._file.close()
            except OSError as problem:  # buffered lines cannot be written either
                self.error = self.error or problem

    def write(self, record: Record) -> None:
        """Append one line; the first failure is kept in `error` and ends the file."""
        if self._file is None or self.error is not None:
            return
        line = json.dumps(dataclasses.asdict(record), separators=(",", ":"))
        try:
            self._file.write(line + "\n")
            self._file.flush()
        except OSError as error:
            self.error = error
