"""Fields that this version does not know: refused, or left out where the operator says so."""

from __future__ import annotations

import json
import logging
from typing import Any

import msgspec
import pytest

from radixserve.api.app import ApiSettings
from radixserve.api.body import decode_known
from radixserve.api.openai.wire import ChatBody
from radixserve.errors import BadRequest
from tests.api.conftest import (
    CHAT,
    COMPLETIONS,
    MESSAGES,
    MODEL,
    OPENAI_DIALECT,
    RESPONSES,
    Server,
    body_for,
)
from tests.fakes import INFO

GOOD = b'{"messages": [{"role": "user", "content": "a"}]'


def test_unknown_fields_are_left_out_at_every_level_and_the_log_names_them(
    caplog: pytest.LogCaptureFixture,
) -> None:
    raw = b'{"mood": 1, "messages": [{"role": "user", "content": "a", "tone": {"x": [1]}}]}'
    with caplog.at_level(logging.WARNING):
        body = decode_known(raw, ChatBody)
    assert body == decode_known(GOOD + b"}", ChatBody)
    assert "'mood'" in caplog.text
    assert "messages[0].tone" in caplog.text


NAMES = ("mood", "", "a.b", "messages[0].role", ".[]", "[0]", "x" * 3000, "\n", "'", "`x`", "type ")


@pytest.mark.parametrize("name", NAMES)
def test_a_field_may_have_any_name(name: str) -> None:
    raw = {name: 1, "messages": [{"role": "user", "content": "a", name: {"role": 5}}]}
    assert decode_known(json.dumps(raw).encode(), ChatBody) == decode_known(GOOD + b"}", ChatBody)


def test_many_fields_of_one_body_are_one_line_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    raw = GOOD + b"".join(b', "f%d\\n": 1' % i for i in range(5000)) + b"}"
    with caplog.at_level(logging.WARNING):
        assert decode_known(raw, ChatBody) == decode_known(GOOD + b"}", ChatBody)
    assert "'f7\\n' and 4992 more" in caplog.text
    assert len(caplog.text.splitlines()) == 1


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (GOOD + b', "mood": 1, "temperature": "hot"}', "invalid_type"),
        (GOOD + b', "mood": 1', "invalid_json"),
        (b'{"mood": 1}', "missing_required_parameter"),
        (GOOD + b', "mood": 1, "top_k": {"a.b": 1}}', "invalid_type"),
        (b'{"messages": [{"mood": 1, "content": "a"}]}', "missing_required_parameter"),
        (b'{"messages": [{"mood": 1, "role": "user", "content": [5]}]}', "invalid_type"),
    ],
)
def test_what_is_wrong_otherwise_is_refused_as_always(raw: bytes, code: str) -> None:
    with pytest.raises(BadRequest) as refusal:
        decode_known(raw, ChatBody)
    assert refusal.value.code == code


FUNCTION = {"name": "f", "parameters": {"type": "object", "properties": {"a": {}}}}
CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
CHAT_MESSAGES = [
    {"role": "user", "content": [{"type": "text", "text": "abc"}]},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "call_1", "content": "d"},
]
RICH: dict[str, dict[str, Any]] = {
    CHAT: {
        "messages": CHAT_MESSAGES,
        "tools": [{"type": "function", "function": FUNCTION}],
        "tool_choice": {"type": "function", "function": {"name": "f"}},
        "stream_options": None,
        "prompt_cache_options": {"mode": "implicit"},
        "prediction": {"type": "content", "content": [{"type": "text", "text": "x"}]},
    },
    COMPLETIONS: {
        "prompt": "abc",
        "response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA}},
        "prompt_cache_options": {"mode": "implicit"},
    },
    RESPONSES: {
        "input": [
            {"role": "user", "content": [{"type": "input_text", "text": "abc"}]},
            {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c", "output": "d"},
            {"type": "reasoning", "summary": [{"type": "summary_text", "text": "t"}]},
        ],
        "tools": [{"type": "function"} | FUNCTION, {"type": "custom", "name": "g"}],
        "tool_choice": {
            "type": "allowed_tools",
            "mode": "auto",
            "tools": [{"type": "function", "name": "f"}],
        },
        "text": {"format": {"type": "json_schema", "name": "s", "schema": SCHEMA}},
        "reasoning": {"summary": "auto"},
    },
    MESSAGES: {
        "system": [{"type": "text", "text": "s", "cache_control": {"type": "ephemeral"}}],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "abc"}]},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "t", "signature": "s"},
                    {"type": "tool_use", "id": "c", "name": "f", "input": {"a": 1}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {
                        "type": "tool_result",
                        "tool_use_id": "c",
                        "content": [{"type": "text", "text": "d"}],
                    }
                ],
            },
        ],
        "tools": [{"name": "f", "input_schema": SCHEMA}],
        "tool_choice": {"type": "auto"},
        "thinking": {"type": "disabled"},
        "output_config": {"format": {"type": "json_schema", "schema": SCHEMA}},
        "metadata": {"user_id": "u"},
    },
    "/tokenize": {"messages": CHAT_MESSAGES, "tools": [{"type": "function", "function": FUNCTION}]},
    "/detokenize": {"tokens": [97]},
}
RICH[f"{RESPONSES}/input_tokens"] = RICH[RESPONSES]
RICH[f"{MESSAGES}/count_tokens"] = {k: v for k, v in RICH[MESSAGES].items() if k != "metadata"}
FREE = ("parameters", "input_schema", "schema")
"""Members that may hold anything."""


def sprinkled(value: Any, name: str = "") -> Any:
    """`value` with unknown members in every object that has a type."""
    if isinstance(value, list):
        return [sprinkled(each, name) for each in value]
    if not isinstance(value, dict) or name in FREE or (name == "input" and "a" in value):
        return value
    known = {key: sprinkled(member, key) for key, member in value.items()}
    return known | {"mood": {"role": 1}, "a.b": [1], "": None, "messages[0]": 1}


class TestServed:
    @pytest.fixture
    def settings(self) -> ApiSettings:
        return ApiSettings(ignore_unknown_fields=True)

    @pytest.mark.parametrize("path", RICH)
    async def test_unknown_members_at_every_level_change_nothing(
        self, server: Server, path: str
    ) -> None:
        server.engine.info = msgspec.structs.replace(
            INFO, context_length=4096, max_request_tokens=4096
        )
        more = {"seed": 1} if path in OPENAI_DIALECT else {}
        plain = {"model": MODEL, "max_tokens": 4} | RICH[path] | more
        if path not in (CHAT, COMPLETIONS, MESSAGES):
            del plain["max_tokens"]
        answers = []
        for body in (plain, sprinkled(plain)):
            status, answer = await server.post(path, body)
            assert status == 200, answer
            answers.append(answer)
        if server.engine.seen:
            first, second = server.engine.seen
            assert first.prompt_ids == second.prompt_ids
            assert first.sampling.grammar == second.sampling.grammar
        else:
            assert answers[0] == answers[1]
        refused = plain | {"top_k": "x", "messages": 5, "input": 5, "prompt": 5, "tokens": "x"}
        assert (await server.post(path, sprinkled(refused)))[0] == 400


class TestResponses:
    @pytest.fixture
    def settings(self) -> ApiSettings:
        return ApiSettings(ignore_unknown_fields=True)

    async def test_unknown_members_of_items_and_hosted_tools_are_left_out(
        self, server: Server, caplog: pytest.LogCaptureFixture
    ) -> None:
        function = {"type": "function", "name": "f", "mood": 1}
        body = body_for(RESPONSES) | {
            "input": [{"role": "user", "content": "abc", "tone": 1}],
            "tools": [{"type": "web_search"}, function],
        }
        status, answer = await server.post(RESPONSES, body)
        assert status == 200, answer
        assert [tool["type"] for tool in answer["tools"]] == ["function"]
        assert "'web_search'" in caplog.text
        assert "input[0].tone" in caplog.text
        assert "tools[0].mood" in caplog.text
        plain = body_for(RESPONSES) | {"tools": [{"type": "function", "name": "f"}]}
        await server.post(RESPONSES, plain)
        first, second = server.engine.seen
        assert first.prompt_ids == second.prompt_ids
