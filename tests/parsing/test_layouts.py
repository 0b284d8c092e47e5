"""What the grammar of each tool format accepts, its parser reads: random answers are drawn from the
grammar and parsed.
"""

from __future__ import annotations

import json
import random

import numpy as np
import pytest

from radixserve.front.stream import joined
from radixserve.grammar import Vocabulary, compile_grammar
from radixserve.parsing.formats import FORMATS
from radixserve.parsing.layouts import CONSTRAINTS
from radixserve.parsing.parts import CallArguments, CallBegun, CallEnded
from radixserve.parsing.tool import Tool
from tests.fakes import byte_tokenizer

SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "enum": ["Rome", "New York"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 3},
        "wet": {"type": "boolean"},
    },
    "required": ["city"],
    "additionalProperties": False,
}
TOOLS = [Tool("weather", SCHEMA), Tool("now", {"type": "object", "additionalProperties": False})]


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary(byte_tokenizer().tokenizer.to_json())


def drawn(name: str, vocabulary: Vocabulary, draw: random.Random) -> str:
    """An answer that the format's grammar accepts."""
    constraint = CONSTRAINTS[name]
    grammar = constraint.grammar(TOOLS, required=True, parallel=True, control={})
    matcher, text = compile_grammar(grammar, vocabulary).matcher(), bytearray()
    while not matcher.is_complete and not (matcher.is_accepting and draw.random() < 0.5):
        bits = np.unpackbits(matcher.mask().view(np.uint8), bitorder="little")[:256]
        text.append(byte := draw.choice([int(i) for i in np.flatnonzero(bits)]))
        assert matcher.consume([byte])
        assert len(text) < 5000
    return text.decode()


def test_every_format_has_a_constraint() -> None:
    assert set(CONSTRAINTS) == set(FORMATS)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("seed", range(8))
def test_what_a_format_is_constrained_to_its_parser_reads(
    name: str, seed: int, vocabulary: Vocabulary
) -> None:
    text = drawn(name, vocabulary, random.Random(seed))
    parser = FORMATS[name].parser(TOOLS)
    parts = joined([*parser.push(text), *parser.finish()])
    assert parts, text
    assert {type(part) for part in parts} <= {CallBegun, CallArguments, CallEnded}, text
    names = [part.name for part in parts if isinstance(part, CallBegun)]
    arguments = [json.loads(part.text) for part in parts if isinstance(part, CallArguments)]
    assert len(names) == len(arguments), text
    for called, given in zip(names, arguments, strict=True):
        if called == "now":
            assert given == {}
        else:
            assert given["city"] in ("Rome", "New York")
            assert given.get("days") in (None, 1, 2, 3)
            assert given.get("wet") in (None, True, False)
