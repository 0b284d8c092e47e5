"""Tool calls as JSON objects with a name and arguments: Hermes, Qwen, Llama 3, Mistral, DeepSeek.

Arguments are handed on as they arrive, in the model's own text.
"""

from __future__ import annotations

import re

from radixserve.parsing.json_text import (
    STRUCTURE,
    read_nested,
    read_scalar,
    read_string,
    skip_value,
    structure,
)
from radixserve.parsing.output import Output
from radixserve.parsing.reader import Broken, Markers, Reader, Reading

_NAME_KEYS = ("name", "function")
_ARGUMENT_KEYS = ("arguments", "parameters")
_OTHER_KEYS = ("type", "id")
_AFTER_NAME = re.compile(r"[^\w.:/-]")


def read_name(reader: Reader) -> Reading[str]:
    """Take the name of a function; empty if none comes next."""
    return (yield from reader.run(_AFTER_NAME))


def read_arguments(
    reader: Reader, output: Output, name: str, markers: Markers = STRUCTURE
) -> Reading[None]:
    """Take a call's arguments, which begins the call; a new mark stands behind them.

    `markers`: see `read_nested`.

    Raises:
        Broken: no such tool, or no object comes next.
    """
    output.require(name)
    if (yield from reader.peek()) != "{":
        raise Broken
    reader.unmark()
    output.begin(name)
    if (yield from read_nested(reader, output.arguments, markers)):
        output.end()
    reader.mark()


class JsonCall:
    """One object with a name and arguments, in any order. A call without arguments has none."""

    def __init__(self, reader: Reader, output: Output, markers: Markers = STRUCTURE) -> None:
        """`markers`: see `read_nested`."""
        self._reader = reader
        self._output = output
        self._markers = markers
        self._name: str | None = None
        self._arguments: str | None = None  # that stand before the name
        self._begun = False

    def read(self) -> Reading[None]:
        """Take the object; a new mark stands behind it. Once the call has begun, what makes no
        sense ends the reading.
        """
        reader = self._reader
        yield from reader.expect("{")
        yield from reader.space()
        while not (yield from reader.literal("}")):
            yield from self._read_member()
            yield from reader.space()
            if (yield from reader.literal(",")):
                yield from reader.space()
            elif (yield from reader.peek()) != "}":
                if self._begun:
                    return
                raise Broken
        if not self._begun:
            self._whole_call("{}")
        reader.mark()

    def _read_member(self) -> Reading[None]:
        reader = self._reader
        key = yield from read_string(reader)
        yield from reader.space()
        yield from reader.expect(":")
        yield from reader.space()
        if self._begun:
            yield from skip_value(reader)
        elif key in _NAME_KEYS:
            yield from self._read_name()
        elif key in _ARGUMENT_KEYS:
            yield from self._read_arguments()
        elif key in _OTHER_KEYS:
            yield from skip_value(reader)
        else:
            raise Broken

    def _read_name(self) -> Reading[None]:
        self._name = yield from read_string(self._reader)
        self._output.require(self._name)
        if self._arguments is not None:
            self._whole_call(self._arguments)

    def _read_arguments(self) -> Reading[None]:
        """Arguments may also be null, or a string that holds the object as JSON."""
        first = yield from self._reader.peek()
        if first == "{" and self._name is not None:
            self._begun = True
            yield from read_arguments(self._reader, self._output, self._name, self._markers)
            return
        pieces: list[str] = []
        if first == "{":
            yield from read_nested(self._reader, pieces.append)
        elif first == '"':
            pieces.append((yield from read_string(self._reader)).strip() or "{}")
        elif (yield from read_scalar(self._reader)) == "null":
            pieces.append("{}")
        if not pieces or not pieces[0].startswith("{"):
            raise Broken
        self._arguments = "".join(pieces)
        if self._name is not None:
            self._whole_call(self._arguments)

    def _whole_call(self, arguments: str) -> None:
        """Write the call.

        Raises:
            Broken: the object had no name.
        """
        if self._name is None:
            raise Broken
        self._begun = True
        self._reader.unmark()
        self._output.begin(self._name)
        self._output.arguments(arguments)
        self._output.end()
        self._reader.mark()


class HermesCalls:
    """`<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, any number of them."""

    begins: tuple[str, ...] = ("<tool_call>",)
    markers = frozenset(("<tool_call>", "</tool_call>"))
    _structure = structure(("<tool_call>", "</tool_call>"))

    def at_start(self, reader: Reader, output: Output) -> Reading[None]:
        yield from ()

    def read(self, reader: Reader, output: Output) -> Reading[None]:
        yield from reader.expect("<tool_call>")
        yield from reader.space()
        yield from JsonCall(reader, output, self._structure).read()
        yield from reader.space()
        yield from reader.literal("</tool_call>")


class LlamaCalls:
    """`{"name": ..., "parameters": {...}}` from the first character of the answer on, or behind
    `<|python_tag|>`; several are separated by semicolons.
    """

    begins: tuple[str, ...] = ("<|python_tag|>",)
    markers = frozenset(("<|python_tag|>",))

    def at_start(self, reader: Reader, output: Output) -> Reading[None]:
        yield from reader.space()
        if (yield from reader.peek()) != "{":
            raise Broken
        yield from self._read_all(reader, output)

    def read(self, reader: Reader, output: Output) -> Reading[None]:
        yield from reader.expect("<|python_tag|>")
        yield from reader.space()
        yield from self._read_all(reader, output)

    def _read_all(self, reader: Reader, output: Output) -> Reading[None]:
        separated = True
        while separated or (yield from reader.peek()) == "{":
            yield from JsonCall(reader, output).read()
            yield from reader.space()
            separated = yield from reader.literal(";")
            yield from reader.space()


class MistralCalls:
    """`[TOOL_CALLS]` and a list of objects with name and arguments, or a name, `[ARGS]` and the
    arguments.
    """

    begins: tuple[str, ...] = ("[TOOL_CALLS]",)
    markers = frozenset(("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"))

    def at_start(self, reader: Reader, output: Output) -> Reading[None]:
        yield from ()

    def read(self, reader: Reader, output: Output) -> Reading[None]:
        """A list, one object, or a name and arguments."""
        yield from reader.expect("[TOOL_CALLS]")
        yield from reader.space()
        first = yield from reader.peek()
        if first == "[":
            yield from self._read_list(reader, output)
        elif first == "{":
            yield from JsonCall(reader, output).read()
        else:
            yield from self._read_named(reader, output)

    def _read_list(self, reader: Reader, output: Output) -> Reading[None]:
        separated = yield from reader.literal("[")
        while separated:
            yield from reader.space()
            yield from JsonCall(reader, output).read()
            yield from reader.space()
            separated = yield from reader.literal(",")
        yield from reader.literal("]")

    def _read_named(self, reader: Reader, output: Output) -> Reading[None]:
        name = yield from read_name(reader)
        yield from reader.space()
        if (yield from reader.literal("[CALL_ID]")):
            yield from read_name(reader)
        yield from reader.literal("[ARGS]")
        yield from reader.space()
        yield from read_arguments(reader, output, name)


class DeepSeekCalls:
    """Calls between tags that no other family has: V3 names the type `function` and puts the
    arguments into a block of code, V3.1 writes name and arguments alone.
    """

    _ALL_BEGIN, _ALL_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
    _BEGIN, _SEPARATOR, _END = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"
    begins: tuple[str, ...] = (_ALL_BEGIN, _BEGIN)
    markers = frozenset((_ALL_BEGIN, _ALL_END, _BEGIN, _SEPARATOR, _END))
    _structure = structure((_END, _ALL_END))

    def at_start(self, reader: Reader, output: Output) -> Reading[None]:
        yield from ()

    def read(self, reader: Reader, output: Output) -> Reading[None]:
        """The calls between the outer tags, which may be missing."""
        yield from reader.literal(self._ALL_BEGIN)
        yield from reader.space()
        yield from reader.expect(self._BEGIN)
        begun = True
        while begun:
            yield from self._read_call(reader, output)
            reader.mark()
            yield from reader.space()
            begun = yield from reader.literal(self._BEGIN)
        yield from reader.literal(self._ALL_END)

    def _read_call(self, reader: Reader, output: Output) -> Reading[None]:
        name = yield from read_name(reader)
        yield from reader.expect(self._SEPARATOR)
        yield from reader.space()
        in_block = (yield from reader.peek()) != "{"
        if in_block:
            name = yield from read_name(reader)
            yield from reader.space()
            yield from reader.expect("```json")
            yield from reader.space()
        yield from read_arguments(reader, output, name, self._structure)
        yield from reader.space()
        if in_block:
            yield from reader.literal("```")
            yield from reader.space()
        yield from reader.literal(self._END)
