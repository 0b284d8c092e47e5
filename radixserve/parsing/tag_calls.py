"""Tool calls whose arguments stand between tags, one pair for each: Qwen3-Coder, GLM, MiniMax.

The values are plain text. Those of parameters that can only be strings are handed on as they
arrive; the others wait for their end, because the schema decides what they are.
"""

from __future__ import annotations

import re
from typing import Protocol

from radixserve.parsing.json_calls import read_name
from radixserve.parsing.output import Output
from radixserve.parsing.python_text import escaped
from radixserve.parsing.reader import Broken, Markers, Reader, Reading
from radixserve.parsing.values import STRING, Arguments, to_json, types_of

_AFTER_TAG_NAME = re.compile(r"[<>\n]")
_AFTER_QUOTED_NAME = re.compile(r'["<>\n]')


class Tags(Protocol):
    """What the formats do not share. Each reading raises `Broken` if something else comes next."""

    value_ends: Markers
    call_end: str

    def read_name(self, reader: Reader) -> Reading[str]:
        """Take the beginning of a call and the name of its function."""

    def read_key(self, reader: Reader) -> Reading[str]:
        """Take the name of an argument and everything up to its value."""


def read_call(reader: Reader, output: Output, tags: Tags) -> Reading[None]:
    """Take a call; a new mark stands behind it.

    The call begins with its first argument or its end. If its markup breaks later it ends there
    without the closing bracket of its arguments.
    """
    name = yield from tags.read_name(reader)
    tool = output.require(name)
    arguments = Arguments(output)
    begun = False
    try:
        yield from reader.space()
        while not (yield from reader.literal(tags.call_end)):
            key = yield from tags.read_key(reader)
            reader.unmark()
            if not begun:
                output.begin(name)
            begun = True
            arguments.key(key)
            types = types_of(tool.parameters, key)
            if not (yield from _read_value(reader, output, tags.value_ends, types)):
                return
            reader.mark()
            yield from reader.space()
    except Broken:
        if begun and not reader.ended:
            output.end()
        raise
    if not begun:
        output.begin(name)
    arguments.close()
    output.end()
    reader.mark()


def _read_value(
    reader: Reader, output: Output, ends: Markers, types: frozenset[str]
) -> Reading[bool]:
    """Take a value and what ends it; False if the text ends first."""
    if types <= STRING:
        output.arguments('"')
        end = yield from reader.until(ends, lambda piece: output.arguments(escaped(piece)))
        output.arguments('"' if end else "")
    else:
        pieces: list[str] = []
        end = yield from reader.until(ends, pieces.append)
        text = "".join(pieces)
        output.arguments(to_json(text, types) if end else text)
    reader.take(len(end))
    return bool(end)


class QwenCoderCalls:
    """`<function=name>` with `<parameter=name>` for each argument, usually within `<tool_call>`."""

    begins: tuple[str, ...] = ("<tool_call>", "<seed:tool_call>", "<function=")
    markers = frozenset(("<tool_call>", "</tool_call>", "<seed:tool_call>", "</seed:tool_call>"))
    value_ends = Markers(("</parameter>", "\n</parameter>"))
    call_end = "</function>"

    def at_start(self, reader: Reader, output: Output) -> Reading[None]:
        yield from ()

    def read(self, reader: Reader, output: Output) -> Reading[None]:
        yield from read_call(reader, output, self)
        yield from reader.space()
        if not (yield from reader.literal("</tool_call>")):
            yield from reader.literal("</seed:tool_call>")

    def read_name(self, reader: Reader) -> Reading[str]:
        """The outer tag, which may be missing, and the opening tag of the function."""
        for outer in ("<tool_call>", "<seed:tool_call>"):
            yield from reader.literal(outer)
        yield from reader.space()
        yield from reader.expect("<function=")
        name = yield from reader.run(_AFTER_TAG_NAME)
        yield from reader.expect(">")
        return name

    def read_key(self, reader: Reader) -> Reading[str]:
        yield from reader.expect("<parameter=")
        key = yield from reader.run(_AFTER_TAG_NAME)
        yield from reader.expect(">")
        yield from reader.literal("\n")
        return key


class GlmCalls:
    """`<tool_call>name` with `<arg_key>` and `<arg_value>` for each argument."""

    begins: tuple[str, ...] = ("<tool_call>",)
    markers = frozenset(
        f"<{slash}{tag}>" for slash in ("", "/") for tag in ("tool_call", "arg_key", "arg_value")
    )
    value_ends = Markers(("</arg_value>",))
    call_end = "</tool_call>"
    _key_ends = Markers(("</arg_key>",))

    def at_start(self, reader: Reader, output: Output) -> Reading[None]:
        yield from ()

    def read(self, reader: Reader, output: Output) -> Reading[None]:
        yield from read_call(reader, output, self)

    def read_name(self, reader: Reader) -> Reading[str]:
        yield from reader.expect("<tool_call>")
        yield from reader.space()
        return (yield from read_name(reader))

    def read_key(self, reader: Reader) -> Reading[str]:
        """The key between its tags and the opening tag of the value."""
        yield from reader.expect("<arg_key>")
        pieces: list[str] = []
        yield from reader.until(self._key_ends, pieces.append)
        yield from reader.expect("</arg_key>")
        yield from reader.space()
        yield from reader.expect("<arg_value>")
        return "".join(pieces).strip()


class MiniMaxCalls:
    """`<invoke name="name">` with `<parameter name="name">` for each argument, for each call; all
    of them within `<minimax:tool_call>`.
    """

    begins: tuple[str, ...] = ("<minimax:tool_call>",)
    markers = frozenset(("<minimax:tool_call>", "</minimax:tool_call>"))
    value_ends = Markers(("</parameter>",))
    call_end = "</invoke>"

    def at_start(self, reader: Reader, output: Output) -> Reading[None]:
        yield from ()

    def read(self, reader: Reader, output: Output) -> Reading[None]:
        """All calls up to the closing tag. What is no call ends them."""
        yield from reader.expect("<minimax:tool_call>")
        yield from reader.space()
        begun = True
        while begun:
            yield from read_call(reader, output, self)
            yield from reader.space()
            closed = yield from reader.literal("</minimax:tool_call>")
            begun = not closed and (yield from reader.peek()) == "<"

    def read_name(self, reader: Reader) -> Reading[str]:
        return (yield from self._read_tag(reader, "invoke"))

    def read_key(self, reader: Reader) -> Reading[str]:
        return (yield from self._read_tag(reader, "parameter"))

    def _read_tag(self, reader: Reader, tag: str) -> Reading[str]:
        """Take an opening tag; the name in it."""
        yield from reader.expect(f'<{tag} name="')
        name = yield from reader.run(_AFTER_QUOTED_NAME)
        yield from reader.expect('">')
        return name
