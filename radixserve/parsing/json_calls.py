"""Tool calls as JSON objects with a name and arguments, or with arguments only: Hermes, Qwen,
Llama 3, Mistral, DeepSeek, Kimi, Cohere.

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

_NAME_KEYS = ("name", "function", "tool_name")
_ARGUMENT_KEYS = ("arguments", "parameters")
_OTHER_KEYS = ("type", "id", "tool_call_id")
_AFTER_NAME = re.compile(r"[^\w.:/-]")


def read_name(reader: Reader) -> Reading[str]:
    """Take the name of a function; empty if none comes next."""
    return (yield from reader.run(_AFTER_NAME))


def read_arguments(
    reader: Reader, output: Output, name: str, markers: Markers = STRUCTURE, own_id: str = ""
) -> Reading[None]:
    """Take a call's arguments, which begins the call; a new mark stands behind them.

    `markers`: see `read_nested`; `own_id`: see `Output.begin`.

    Raises:
        Broken: no such tool, or no object comes next.
    """
    output.require(name)
    if (yield from reader.peek()) != "{":
        raise Broken
    reader.unmark()
    output.begin(name, own_id)
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


def read_list(reader: Reader, output: Output) -> Reading[None]:
    """Take a list of objects with name and arguments."""
    separated = yield from reader.literal("[")
    while separated:
        yield from reader.space()
        yield from JsonCall(reader, output).read()
        yield from reader.space()
        separated = yield from reader.literal(",")
    yield from reader.literal("]")


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
            yield from read_list(reader, output)
        elif first == "{":
            yield from JsonCall(reader, output).read()
        else:
            yield from self._read_named(reader, output)

    def _read_named(self, reader: Reader, output: Output) -> Reading[None]:
        name = yield from read_name(reader)
        yield from reader.space()
        if (yield from reader.literal("[CALL_ID]")):
            yield from read_name(reader)
        yield from reader.literal("[ARGS]")
        yield from reader.space()
        yield from read_arguments(reader, output, name)


class CohereCalls:
    """`<|START_ACTION|>`, a list of objects with `tool_call_id`, `tool_name` and `parameters`,
    `<|END_ACTION|>`.
    """

    begins: tuple[str, ...] = ("<|START_ACTION|>",)
    markers = frozenset(("<|START_ACTION|>", "<|END_ACTION|>"))

    def at_start(self, reader: Reader, output: Output) -> Reading[None]:
        yield from ()

    def read(self, reader: Reader, output: Output) -> Reading[None]:
        """A list, or one object."""
        yield from reader.expect("<|START_ACTION|>")
        yield from reader.space()
        if (yield from reader.peek()) == "[":
            yield from read_list(reader, output)
        else:
            yield from JsonCall(reader, output).read()
        yield from reader.space()
        yield from reader.literal("<|END_ACTION|>")


class _SectionCalls:
    """Calls between tags of their own, all of them between outer tags, which may be missing."""

    all_begin: str
    begin: str
    separator: str
    all_end: str

    def at_start(self, reader: Reader, output: Output) -> Reading[None]:
        yield from ()

    def read(self, reader: Reader, output: Output) -> Reading[None]:
        """The calls between the outer tags."""
        yield from reader.literal(self.all_begin)
        yield from reader.space()
        yield from reader.expect(self.begin)
        begun = True
        while begun:
            yield from self.read_call(reader, output)
            reader.mark()
            yield from reader.space()
            begun = yield from reader.literal(self.begin)
        yield from reader.literal(self.all_end)

    def read_call(self, reader: Reader, output: Output) -> Reading[None]:
        """Take a call, behind its opening tag."""
        raise NotImplementedError


class DeepSeekCalls(_SectionCalls):
    """Calls between tags that no other family has: V3 names the type `function` and puts the
    arguments into a block of code, V3.1 writes name and arguments alone.
    """

    all_begin, all_end = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
    begin, separator, end = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"
    begins: tuple[str, ...] = (all_begin, begin)
    markers = frozenset((all_begin, all_end, begin, separator, end))
    _structure = structure((end, all_end))

    def read_call(self, reader: Reader, output: Output) -> Reading[None]:
        """A name and its arguments, in a block of code behind the type or alone."""
        name = yield from read_name(reader)
        yield from reader.expect(self.separator)
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
        yield from reader.literal(self.end)


class KimiCalls(_SectionCalls):
    """Calls that begin with an id, `functions.NAME:NUMBER`, which is all that names the function.
    Clients get this id, because the next prompt has to show it: the model counts on.
    """

    all_begin, all_end = "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"
    begin, separator = "<|tool_call_begin|>", "<|tool_call_argument_begin|>"
    end = "<|tool_call_end|>"
    begins: tuple[str, ...] = (all_begin, begin)
    markers = frozenset((all_begin, all_end, begin, separator, end))
    _structure = structure((end, all_end))
    _id = re.compile(r"(?:functions\.)?(.+?)(?::[0-9]+)?")

    def read_call(self, reader: Reader, output: Output) -> Reading[None]:
        """An id and arguments."""
        yield from reader.space()
        own_id = yield from read_name(reader)
        yield from reader.space()
        yield from reader.expect(self.separator)
        yield from reader.space()
        if (found := self._id.fullmatch(own_id)) is None:
            raise Broken
        yield from read_arguments(reader, output, found[1], self._structure, own_id)
        yield from reader.space()
        yield from reader.literal(self.end)
