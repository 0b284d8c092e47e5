"""Reads Python literals from text that arrives in pieces and writes them as JSON.

Strings, numbers, True, False, None, lists, tuples (as arrays) and dictionaries, nested to a limit.
Nothing is evaluated.
"""

from __future__ import annotations

import json
import math
import re
import string
from collections.abc import Callable, Iterator

from radixserve.parsing.reader import Broken, Markers, Reader, Reading

_MAX_DEPTH = 32
_AFTER_WORD = re.compile(r"[^\w.+-]")
_WORDS = {
    "True": "true",
    "False": "false",
    "None": "null",
    "true": "true",
    "false": "false",
    "null": "null",
}
_JSON_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_QUOTES = {quote: Markers((quote, "\\")) for quote in "'\""}
_CLOSING = {"[": "]", "(": ")", "{": "}"}
_ESCAPES = {
    "n": "\n",
    "t": "\t",
    "r": "\r",
    "b": "\b",
    "f": "\f",
    "a": "\a",
    "v": "\v",
    "0": "\0",
    "\\": "\\",
    "'": "'",
    '"': '"',
    "\n": "",
}
_DIGITS = {"x": 2, "u": 4, "U": 8}

Emit = Callable[[str], object]


def literal_to_json(text: str) -> str | None:
    """The JSON text of a whole literal; None if `text` is none."""
    reader = Reader()
    reader.feed(text)
    reader.ended = True
    pieces: list[str] = []
    try:
        _run(read_literal(reader, pieces.append))
        at_end = not _run(reader.peek())
    except Broken:
        return None
    return "".join(pieces) if at_end else None


def escaped(piece: str) -> str:
    """A piece of a string as it stands between the quotes of JSON."""
    return json.dumps(piece, ensure_ascii=False)[1:-1]


def _run(reading: Reading[str | None]) -> str | None:
    """The result of a reading whose text is complete."""
    try:
        next(reading)
    except StopIteration as done:
        return done.value  # type: ignore[no-any-return]
    raise AssertionError("a reading waits for text after its end")


def read_literal(reader: Reader, emit: Emit, depth: int = _MAX_DEPTH) -> Reading[None]:
    """Take a literal and hand its JSON text to `emit` as it arrives.

    Raises:
        Broken: something else comes next; what has been taken of it was handed to `emit`.
    """
    first = yield from reader.peek()
    if first in _QUOTES:
        yield from _read_string(reader, emit)
    elif first in _CLOSING and depth:
        reader.take(1)
        yield from _read_items(reader, emit, first, depth - 1)
    else:
        word = yield from reader.run(_AFTER_WORD)
        number = _number(word)
        emit(word if number is None else number)
        if number is None:
            raise Broken


def _read_items(reader: Reader, emit: Emit, opening: str, depth: int) -> Reading[None]:
    """Take what stands behind an opening bracket, up to the closing one. A comma is handed on with
    the item behind it, because JSON allows none after the last.
    """
    is_dict, closing = opening == "{", _CLOSING[opening]
    emit("{" if is_dict else "[")
    yield from reader.space()
    comma = ""
    while not (yield from reader.literal(closing)):
        if comma:
            yield from reader.expect(",")
            yield from reader.space()
            if (yield from reader.literal(closing)):
                break
        emit(comma)
        comma = ", "
        if is_dict:
            yield from _read_key(reader, emit)
        yield from read_literal(reader, emit, depth)
        yield from reader.space()
    emit("}" if is_dict else "]")


def _read_key(reader: Reader, emit: Emit) -> Reading[None]:
    pieces: list[str] = []
    yield from read_literal(reader, pieces.append, 0)
    key = "".join(pieces)
    emit(key if key.startswith('"') else json.dumps(key))
    yield from reader.space()
    yield from reader.expect(":")
    yield from reader.space()
    emit(": ")


def _read_string(reader: Reader, emit: Emit) -> Reading[None]:
    quote = reader.take(1)
    emit('"')
    while marker := (yield from reader.until(_QUOTES[quote], lambda piece: emit(escaped(piece)))):
        reader.take(1)
        if marker == quote:
            emit('"')
            return
        emit(json.dumps((yield from _read_escape(reader)))[1:-1])
    raise Broken


def _read_escape(reader: Reader) -> Reading[str]:
    """What stands for the characters behind a backslash; an unknown escape stands for itself."""
    char = yield from reader.peek()
    reader.take(1)
    if char not in _DIGITS:
        return _ESCAPES.get(char, "\\" + char)
    digits = ""
    while len(digits) < _DIGITS[char] and (yield from reader.peek()) in _HEX:
        digits += reader.take(1)
    code = int(digits, 16) if len(digits) == _DIGITS[char] else 0x110000
    return chr(code) if code < 0x110000 else f"\\{char}{digits}"


_HEX = frozenset(string.hexdigits)


def _number(word: str) -> str | None:
    """The JSON text of a number or a constant; None if the word is neither."""
    if word in _WORDS or _JSON_NUMBER.fullmatch(word):
        return _WORDS.get(word, word)
    return next(_numbers(word), None)


def _numbers(word: str) -> Iterator[str]:
    """The JSON text of what Python reads as a number."""
    for convert in (lambda text: int(text, 0), float):
        try:
            number = convert(word)
            if math.isfinite(number):
                yield json.dumps(number)
        except (ValueError, OverflowError):
            continue
