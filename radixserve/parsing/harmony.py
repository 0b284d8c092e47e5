"""The channels of gpt-oss: reasoning, text and tool calls are messages of their own.

The text is parsed here and not by the `openai-harmony` package, because that reads tokens with a
vocabulary that it downloads.
"""

from __future__ import annotations

import re

from radixserve.parsing.json_calls import read_arguments
from radixserve.parsing.json_text import structure
from radixserve.parsing.output import Output
from radixserve.parsing.reader import Markers, Reader, Reading

_START, _CHANNEL, _MESSAGE = "<|start|>", "<|channel|>", "<|message|>"
_ENDS = ("<|end|>", "<|call|>", "<|return|>")
_RECIPIENT = re.compile(r"\bto=(?:functions\.)?([\w.:/-]+)")
_ANALYSIS = re.compile(r"<\|channel\|>\s*analysis\b")


class HarmonyCalls:
    """Messages: a header with channel and recipient, `<|message|>`, the content, an end."""

    begins: tuple[str, ...] = (_START, _CHANNEL)
    markers = frozenset((_START, _CHANNEL, _MESSAGE, "<|constrain|>", *_ENDS))
    _header_ends = Markers((_MESSAGE, *_ENDS))
    _content_ends = Markers((_START, _CHANNEL, *_ENDS))
    _structure = structure((_START, _CHANNEL, *_ENDS))

    def at_start(self, reader: Reader, output: Output) -> Reading[None]:
        """The prompt ends within a header, so a recipient may come first."""
        yield from reader.space()
        yield from reader.expect("to=")
        yield from self._read_message(reader, output, "to=")

    def read(self, reader: Reader, output: Output) -> Reading[None]:
        yield from self._read_message(reader, output, "")

    def _read_message(self, reader: Reader, output: Output, header: str) -> Reading[None]:
        """Take a message from behind the beginning of its header on."""
        pieces = [header]
        yield from reader.until(self._header_ends, pieces.append)
        header = "".join(pieces)
        yield from reader.expect(_MESSAGE)
        if recipient := _RECIPIENT.search(header):
            output.require(recipient[1])
            yield from reader.space()
            yield from read_arguments(reader, output, recipient[1], self._structure)
            yield from reader.space()
        else:
            reader.unmark()
            yield from self._read_content(reader, output, _ANALYSIS.search(header) is not None)
        for end in _ENDS:
            if (yield from reader.literal(end)):
                break

    def _read_content(self, reader: Reader, output: Output, is_reasoning: bool) -> Reading[None]:
        if is_reasoning:
            output.reasoning.touch()
        prose = output.reasoning if is_reasoning else output.text
        yield from reader.until(self._content_ends, prose.write)
