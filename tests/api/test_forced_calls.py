"""The grammar that a chat request carries to the engine: what it accepts for each choice of tools
and form. The fake engine does not obey it, so it is asked directly.
"""

from __future__ import annotations

from typing import Any

import pytest

from radixserve.api.app import ApiSettings
from radixserve.grammar import Vocabulary, compile_grammar
from radixserve.request import Grammar
from tests.api.conftest import CHAT, Server, body_for
from tests.api.test_tools import TIME, WEATHER, answering
from tests.fakes import LocalTokenizer

ROME = '<tool_call>{"name": "weather", "arguments": {"city": "Rome"}}</tool_call>'
NOW = '<tool_call>{"name": "time", "arguments": {}}</tool_call>'
WRONG = '<tool_call>{"name": "weather", "arguments": {"town": "Rome"}}</tool_call>'
OBJECT = {"guided_json": {"properties": {"a": {"type": "integer"}}, "required": ["a"]}}
YES_OR_NO = {"structured_outputs": {"choice": ["yes", "no"]}}
# A tool whose schema cannot be enforced.
UNIQUE = {
    "type": "function",
    "function": {
        "name": "unique",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "array", "uniqueItems": True}},
        },
    },
}


async def grammar_of(server: Server, **fields: Any) -> Grammar | None:
    answering(server, "ok")
    status, answer = await server.post(CHAT, body_for(CHAT) | {"max_tokens": 400} | fields)
    assert status == 200, answer
    return server.engine.seen[-1].sampling.grammar


def accepts(tokenizer: LocalTokenizer, grammar: Grammar | None, text: str) -> bool:
    """Whether `text` is a whole answer."""
    if grammar is None:
        return True
    vocabulary = Vocabulary(tokenizer.tokenizer.to_json())
    matcher = compile_grammar(grammar, vocabulary).matcher()
    return matcher.consume(list(text.encode())) and matcher.is_accepting


CASES: list[tuple[dict[str, Any], list[str], list[str]]] = [
    ({}, ["hello", ROME, f"Let me see. {ROME}", f"{ROME}\n{NOW}"], [WRONG]),
    ({"tool_choice": "required"}, [ROME, f"{ROME}\n{NOW}"], ["hello", WRONG, f"x {ROME}", ""]),
    ({"tool_choice": "required", "parallel_tool_calls": False}, [ROME], [f"{ROME}\n{NOW}"]),
    (
        {"tool_choice": {"type": "function", "function": {"name": "time"}}},
        [NOW],
        [ROME, "hello", f"{NOW}\n{NOW}"],
    ),
    (
        {"tool_choice": "required"},
        [ROME],
        [ROME.replace('"Rome"', '"Rome", "unit": "C"'), ROME.replace(': "Rome"', ':"Rome"')],
    ),
    (OBJECT, ['{"a": 1}', '{"a":1}'], ['{"a": 1, "b": 2}']),
    (YES_OR_NO, ["yes", ROME], ["maybe", f"yes {ROME}", WRONG]),
    (YES_OR_NO | {"tool_choice": "required"}, [ROME], ["yes"]),
    (YES_OR_NO | {"tool_choice": "none"}, ["yes"], [ROME, "maybe"]),
    ({"tool_choice": "none"}, ["hello", ROME, WRONG], []),
]


@pytest.mark.parametrize(("fields", "good", "bad"), CASES)
async def test_the_answer_has_the_calls_and_the_form_that_were_asked_for(
    server: Server,
    tokenizer: LocalTokenizer,
    fields: dict[str, Any],
    good: list[str],
    bad: list[str],
) -> None:
    grammar = await grammar_of(server, tools=[WEATHER, TIME], **fields)
    assert [text for text in good if not accepts(tokenizer, grammar, text)] == []
    assert [text for text in bad if accepts(tokenizer, grammar, text)] == []


async def test_a_schema_that_cannot_be_enforced_is_advice_unless_it_has_to_be_obeyed(
    server: Server, tokenizer: LocalTokenizer
) -> None:
    grammar = await grammar_of(server, tools=[WEATHER, UNIQUE])
    any_object = '<tool_call>{"name": "unique", "arguments": {"b": [1, 1]}}</tool_call>'
    assert accepts(tokenizer, grammar, any_object)
    assert not accepts(tokenizer, grammar, WRONG)
    strict = {"type": "function", "function": {**UNIQUE["function"], "strict": True}}  # type: ignore[dict-item]
    for fields in ({"tools": [UNIQUE], "tool_choice": "required"}, {"tools": [strict]}):
        status, answer = await server.post(CHAT, body_for(CHAT) | fields)
        assert (status, answer["error"]["param"]) == (400, "tools")
        assert "uniqueItems" in answer["error"]["message"]
        assert "unique" in answer["error"]["message"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"not": {}}}}},
            "response_format",
        ),
        ({"guided_regex": "a(?=b)"}, "guided_regex"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs.choice"),
        ({"grammar": "root ::= x"}, "grammar"),
        ({"guided_json": "{"}, "guided_json"),
    ],
)
async def test_a_form_that_cannot_be_is_refused_by_name(
    server: Server, fields: dict[str, Any], param: str
) -> None:
    status, answer = await server.post(CHAT, body_for(CHAT) | fields)
    assert (status, answer["error"]["param"]) == (400, param)
    status, _ = await server.post(CHAT, body_for(CHAT))
    assert status == 200


async def test_a_grammar_beside_tools_is_refused_by_the_name_of_its_field(server: Server) -> None:
    fields = {"tools": [TIME], "guided_grammar": 'root ::= "a"'}
    status, answer = await server.post(CHAT, body_for(CHAT) | fields)
    assert (status, answer["error"]["param"]) == (400, "guided_grammar")
    assert "tools" in answer["error"]["message"]


class TestCallsWithoutAMarker:
    """A format whose calls begin like other text."""

    @pytest.fixture
    def settings(self) -> ApiSettings:
        return ApiSettings(tool_parser="llama3_json")

    async def test_an_answer_that_has_begun_a_call_obeys_the_schema(
        self, server: Server, tokenizer: LocalTokenizer
    ) -> None:
        rome = '{"name": "weather", "parameters": {"city": "Rome"}}'
        grammar = await grammar_of(server, tools=[WEATHER, TIME])
        for text in ("hello", rome, '{"name": "Ada", "parameters": 1}'):
            assert accepts(tokenizer, grammar, text)
        assert not accepts(tokenizer, grammar, rome.replace("city", "town"))
        grammar = await grammar_of(server, tools=[WEATHER, UNIQUE])
        assert accepts(tokenizer, grammar, '{"name": "unique", "parameters": {"b": [1, 1]}}')
        assert not accepts(tokenizer, grammar, rome.replace("city", "town"))
