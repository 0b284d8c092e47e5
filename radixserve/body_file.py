"""Reads a file of request bodies: one JSON object on each line. Knows no endpoint.

{"messages": [{"role": "system", "content": "You answer in one sentence."}, ...]}
{"prompt": "Once upon a time"}
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from radixserve.errors import ConfigError
from radixserve.regular_file import read_regular

MAX_BODIES: Final = 10_000
MAX_FILE_BYTES: Final = 64 << 20


@dataclass(frozen=True, slots=True)
class FileBody:
    """A body, and the number of its line, from 1."""

    line: int
    fields: dict[str, Any]


def read_body_file(path: Path) -> list[FileBody]:
    """Read the file.

    Raises:
        ConfigError: the file cannot be read or is too large, or one of its lines is no JSON object;
            one sentence that names the file and the line.
    """
    try:
        raw = read_regular(path, MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot read the file {path}: {error.strerror or error}") from None
    if len(raw) > MAX_FILE_BYTES:
        raise _wrong(path, f"it is larger than {MAX_FILE_BYTES >> 20} MiB")
    lines = raw.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    bodies = [_body(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not bodies:
        raise _wrong(path, "it has no line with a body")
    if len(bodies) > MAX_BODIES:
        raise _wrong(path, f"it has more than {MAX_BODIES:,} bodies")
    return bodies


def _body(path: Path, number: int, line: bytes) -> FileBody:
    try:
        return FileBody(number, msgspec.json.decode(line, type=dict[str, Any]))
    except msgspec.ValidationError:
        raise _wrong(path, f"line {number} is no JSON object") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _wrong(path, f"line {number} is no JSON: {error}") from None


def _wrong(path: Path, reason: str) -> ConfigError:
    return ConfigError(f"the file of bodies {path} cannot be used: {reason}")
