"""Whatever a grammar of calls lets a model write is read as calls that obey the tools' schemas.

The grammars are walked byte by byte, at random, as a model would that knows nothing.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from jsonschema import Draft202012Validator

from radixserve.grammar import compile_grammar
from radixserve.grammar.compiled import Compiled
from radixserve.parsing.formats import FORMATS
from radixserve.parsing.layouts import CONSTRAINTS
from radixserve.parsing.parts import CallArguments, CallBegun, CallEnded, Part, Reasoning
from radixserve.parsing.tool import Tool
from tests.grammar.accept import accepts, byte_vocabulary, vocabulary
from tests.parsing.transcripts import joined

PLACE: Mapping[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "days": {"type": "integer"},
        "unit": {"enum": ["C", "F"]},
        "sky": {"type": ["string", "null"]},
        "at": {"$ref": "#/$defs/Point"},
        "when": {"anyOf": [{"type": "string"}, {"type": "number"}]},
        "exact": {"type": "boolean"},
        "anything": {},
    },
    "required": ["days", "city", "at"],
    "additionalProperties": False,
    "$defs": {
        "Point": {
            "type": "object",
            "properties": {
                "x": {"type": "number"},
                "tags": {"type": "array", "items": {"enum": ["a"]}},
            },
            "required": ["x"],
            "additionalProperties": False,
        }
    },
}
TOOLS = [
    Tool("place", PLACE),
    Tool("now", {"type": "object", "additionalProperties": False}),
    Tool(
        "maybe",
        {
            "type": "object",
            "properties": {"a": {"type": "boolean"}, "b": {"type": "string"}},
            "additionalProperties": False,
        },
    ),
]
TAGS = (b"</parameter>", b"\n</parameter>", b"</arg_value>", b"<|end|>")
ENDINGS = (b'"', b"}", b"]", b"<", b"\\", *TAGS)


def walk(compiled: Compiled, draw: random.Random) -> str:
    """A whole output of the grammar, drawn byte by byte; often an ending is tried."""
    matcher, written, wish = compiled.matcher(), bytearray(), bytearray()
    while not matcher.is_complete and not (matcher.is_accepting and draw.random() < 0.3):
        bits = np.unpackbits(matcher.mask().view(np.uint8), bitorder="little")
        allowed = [int(byte) for byte in np.flatnonzero(bits[:256])]
        allowed = [byte for byte in allowed if byte < 128] or allowed
        if not wish and draw.random() < 0.5:
            wish += draw.choice(ENDINGS)
        byte = wish.pop(0) if wish else draw.choice(allowed)
        if byte not in allowed:
            wish.clear()
            byte = draw.choice(allowed)
        assert matcher.consume([byte])
        written.append(byte)
        assert len(written) < 5000, written
    return written.decode()


@pytest.mark.parametrize("parallel", [True, False], ids=["parallel", "one"])
@pytest.mark.parametrize("name", CONSTRAINTS)
def test_calls_that_must_come_are_read_and_obey_their_schemas(name: str, parallel: bool) -> None:
    wanted = CONSTRAINTS[name].grammar(TOOLS, required=True, parallel=parallel, control={})
    assert wanted is not None
    compiled = compile_grammar(wanted, byte_vocabulary())
    draw = random.Random(0)
    for _ in range(12):
        text = walk(compiled, draw)
        if _TAG_IN_STRING.search(text):
            continue  # between tags the first closing one counts
        each = FORMATS[name].parser(TOOLS)
        parts = joined(each.push(text) + each.finish())
        parts = [part for part in parts if not isinstance(part, Reasoning)]
        assert parts, text
        assert len(parts) == 3 or parallel, text
        while parts:
            check_call(parts[:3], text)
            parts = parts[3:]


_TAG_IN_STRING = re.compile(r'"[^\n"]*</(parameter|arg_value)>')


def check_call(parts: list[Part], text: str) -> None:
    begun, arguments, ended = parts
    assert isinstance(begun, CallBegun), text
    assert isinstance(arguments, CallArguments), text
    assert isinstance(ended, CallEnded), text
    schema = next(tool.parameters for tool in TOOLS if tool.name == begun.name)
    errors = list(Draft202012Validator(schema).iter_errors(json.loads(arguments.text)))
    assert errors == [], text


def test_every_format_has_a_constraint() -> None:
    assert set(CONSTRAINTS) == set(FORMATS)


@pytest.mark.parametrize("as_tokens", [True, False], ids=["tags are tokens", "tags are text"])
@pytest.mark.parametrize("required", [True, False], ids=["required", "auto"])
def test_text_between_tags_is_free_up_to_the_closing_tag(as_tokens: bool, required: bool) -> None:
    control = {
        name: number
        for name, number in vocabulary(extra=as_tokens).token_ids.items()
        if name.startswith("<")
    }
    tools = [Tool("write", {"properties": {"code": {"type": "string"}}, "required": ["code"]})]
    wanted = CONSTRAINTS["qwen3_coder"].grammar(
        tools, required=required, parallel=True, control=control
    )
    assert wanted is not None
    code = '#include <x>\nif (a < b) { return "</p>"; }\n'
    call = (
        f"<tool_call>\n<function=write>\n<parameter=code>\n{code}\n</parameter>\n</function>\n"
        "</tool_call>"
    )
    assert accepts(wanted, call, extra=as_tokens)
    assert not accepts(wanted, call.replace("code>", "text>"), extra=as_tokens)
    assert not accepts(wanted, call.replace("</function>\n", ""), extra=as_tokens)
    assert accepts(wanted, f"Let me see: {call}", extra=as_tokens) != required
