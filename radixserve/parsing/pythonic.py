"""Tool calls as a Python list of function calls: Llama 4, Llama 3.2 with some templates, LFM2.

Arguments become JSON while they arrive.
"""

from __future__ import annotations

from radixserve.parsing.json_calls import JsonCall, read_name
from radixserve.parsing.output import Output
from radixserve.parsing.python_text import read_literal
from radixserve.parsing.reader import Broken, Reader, Reading
from radixserve.parsing.values import Arguments


class PythonicCalls:
    """`[name(key=value, ...), ...]` from the first character of the answer on, or behind
    `<|python_start|>`.
    """

    begin, end = "<|python_start|>", "<|python_end|>"
    begins: tuple[str, ...] = (begin,)
    markers = frozenset((begin, end))

    def at_start(self, reader: Reader, output: Output) -> Reading[None]:
        yield from reader.space()
        yield from self._read_list(reader, output)

    def read(self, reader: Reader, output: Output) -> Reading[None]:
        yield from reader.expect(self.begin)
        yield from reader.space()
        yield from self._read_list(reader, output)
        yield from reader.space()
        yield from reader.literal(self.end)

    def _read_list(self, reader: Reader, output: Output) -> Reading[None]:
        yield from reader.expect("[")
        separated = True
        while separated:
            yield from reader.space()
            yield from self.read_call(reader, output)
            yield from reader.space()
            separated = yield from reader.literal(",")
        yield from reader.literal("]")
        reader.mark()

    def read_call(self, reader: Reader, output: Output) -> Reading[None]:
        """Take one call of the list."""
        yield from _read_call(reader, output)


class LfmCalls(PythonicCalls):
    """The same between other markers, and only there. Some templates have the calls of earlier
    turns as JSON objects in the list, so a model may write these, too.
    """

    begin, end = "<|tool_call_start|>", "<|tool_call_end|>"
    begins: tuple[str, ...] = (begin,)
    markers = frozenset((begin, end))

    def at_start(self, reader: Reader, output: Output) -> Reading[None]:
        yield from ()

    def read_call(self, reader: Reader, output: Output) -> Reading[None]:
        if (yield from reader.peek()) == "{":
            yield from JsonCall(reader, output).read()
        else:
            yield from super().read_call(reader, output)


def _read_call(reader: Reader, output: Output) -> Reading[None]:
    """Take a call; a new mark stands behind it.

    The call begins with its first argument or its end. If its markup breaks later it ends there
    without the closing bracket of its arguments.
    """
    name = yield from read_name(reader)
    output.require(name)
    arguments = Arguments(output)
    begun = False
    try:
        yield from reader.expect("(")
        yield from reader.space()
        while not (yield from reader.literal(")")):
            key = yield from _read_key(reader)
            reader.unmark()
            if not begun:
                output.begin(name)
            begun = True
            arguments.key(key)
            yield from read_literal(reader, output.arguments)
            reader.mark()
            yield from _read_separator(reader)
    except Broken:
        if begun and not reader.ended:
            output.end()
        raise
    if not begun:
        output.begin(name)
    arguments.close()
    output.end()
    reader.mark()


def _read_key(reader: Reader) -> Reading[str]:
    key = yield from read_name(reader)
    yield from reader.space()
    yield from reader.expect("=")
    yield from reader.space()
    return key


def _read_separator(reader: Reader) -> Reading[None]:
    """Take the comma between arguments, or nothing before a closing bracket."""
    yield from reader.space()
    if (yield from reader.literal(",")):
        yield from reader.space()
    elif (yield from reader.peek()) != ")":
        raise Broken
