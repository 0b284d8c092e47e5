"""A grammar of calls that is kept is the one that would be built."""

from __future__ import annotations

from typing import Any

import pytest

from radixserve.parsing.call_grammars import call_grammar
from radixserve.parsing.layouts import CONSTRAINTS
from radixserve.parsing.tool import Tool

_SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
_LARGE = {**_SCHEMA, "description": "x" * (1 << 20)}
_OPTIONS: list[dict[str, Any]] = [
    {"required": required, "parallel": parallel, "control": control, "after": after}
    for required in (True, False)
    for parallel in (True, False)
    for control in ({}, {"<tool_call>": 7, "</think>": 8})
    for after in ("", "</think>")
]


@pytest.mark.parametrize("name", CONSTRAINTS)
def test_every_grammar_is_that_of_its_format_tools_and_options(name: str) -> None:
    for schema in (_SCHEMA, {}, _LARGE):
        for options in _OPTIONS * 2:
            tools = [Tool("one", schema), Tool("two")]
            assert call_grammar(name, tools, **options) == CONSTRAINTS[name].grammar(
                tools, **options
            )


def test_the_grammar_of_the_same_tools_is_kept() -> None:
    def grammar() -> object:
        return call_grammar("hermes", [Tool("one", _SCHEMA)], **_OPTIONS[0])

    assert grammar() is grammar()
