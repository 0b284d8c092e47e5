"""Reads JSON values from text that arrives in pieces, without waiting for their end.

Only the structure is checked: where strings and brackets begin and end. Whether the values between
them are JSON is for whoever receives them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable

from radixserve.parsing.reader import Broken, Markers, Reader, Reading

_STRING = Markers(('"', "\\"))
_AFTER_SCALAR = re.compile(r'[\s,:{}\[\]"]')


def structure(ends: tuple[str, ...] = ()) -> Markers:
    """What matters outside of strings: quotes, brackets, and markers that cannot be JSON."""
    return Markers(('"', "{", "}", "[", "]", *ends))


STRUCTURE = structure()


def read_nested(
    reader: Reader, emit: Callable[[str], object], markers: Markers = STRUCTURE
) -> Reading[bool]:
    """Take an object or array and hand its text to `emit` as it arrives.

    Returns True at its end and also before an end marker of `markers`, because that cannot stand
    outside of a string; False if the text ends first.
    """
    depth = 0
    while marker := (yield from reader.until(markers, emit)):
        if len(marker) > 1:
            return True
        emit(reader.take(1))
        if marker == '"':
            yield from _rest_of_string(reader, emit)
            continue
        depth += 1 if marker in "{[" else -1
        if depth == 0:
            return True
    return False


def read_string(reader: Reader) -> Reading[str]:
    """Take a string and return its value. Half of a surrogate pair, which JSON can write and UTF-8
    cannot, becomes U+FFFD.

    Raises:
        Broken: no complete string comes next.
    """
    pieces: list[str] = []
    yield from reader.expect('"')
    yield from _rest_of_string(reader, pieces.append)
    try:
        value = str(json.loads('"' + "".join(pieces), strict=False))
    except ValueError:
        raise Broken from None
    return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def read_scalar(reader: Reader) -> Reading[str]:
    """Take the text of a number, of true, false or null; empty if none comes next."""
    return (yield from reader.run(_AFTER_SCALAR))


def skip_value(reader: Reader) -> Reading[None]:
    """Take a value.

    Raises:
        Broken: no value comes next.
    """
    first = yield from reader.peek()
    if first and first in "{[":
        yield from read_nested(reader, lambda piece: None)
    elif first == '"':
        yield from read_string(reader)
    elif not (yield from read_scalar(reader)):
        raise Broken


def _rest_of_string(reader: Reader, emit: Callable[[str], object]) -> Reading[None]:
    """Take a string behind its opening quote, with its closing one."""
    while marker := (yield from reader.until(_STRING, emit)):
        emit(reader.take(1))
        if marker == '"':
            return
        yield from reader.peek()
        emit(reader.take(1))  # what the backslash escapes
