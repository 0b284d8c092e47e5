"""Bad bodies and failures at /v1/messages: each gets Anthropic's envelope with a message that names
the field, and the next good request its usual answer.
"""

from __future__ import annotations

import asyncio
import gzip
import json
from typing import Any

import pytest

from radixserve.api.app import ApiSettings
from tests.api.conftest import MESSAGES, Server, body_for, reference, text_of
from tests.api.test_bad_inputs import NOT_JSON, case_id
from tests.api.test_disconnect import assert_forgotten, connect, leave, raw_request

COUNT_TOKENS = f"{MESSAGES}/count_tokens"
BOTH = (MESSAGES, COUNT_TOKENS)


def user(*blocks: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(blocks)}]


def tool(**more: Any) -> list[dict[str, Any]]:
    return [{"name": "f", "input_schema": {"type": "object"}} | more]


# field, value, and what the message names if it is not the field
FIELDS: list[tuple[Any, ...]] = [
    ("messages", []),
    ("messages", "hello"),
    ("messages", [1], "messages[0]"),
    ("messages", [{}], "messages[0].role"),
    ("messages", [{"role": "alien", "content": "x"}], "messages[0].role"),
    ("messages", [{"role": "tool", "content": "x"}], "messages[0].role"),
    ("messages", [{"role": "user"}], "messages[0].content"),
    ("messages", [{"role": "user", "content": 5}], "messages[0].content"),
    ("messages", [{"role": "user", "content": None}], "messages[0].content"),
    ("messages", [{"role": "user", "content": []}], "messages[0].content"),
    ("messages", [{"role": "user", "content": "x", "name": "n"}], "messages[0].name"),
    ("messages", user("x"), "messages[0].content[0]"),
    ("messages", user({"text": "x"}), "messages[0].content[0]"),
    ("messages", user({"type": "alien"}), "messages[0].content[0].type"),
    ("messages", user({"type": "text"}), "messages[0].content[0].text"),
    ("messages", user({"type": "text", "text": 1}), "messages[0].content[0].text"),
    (
        "messages",
        user({"type": "text", "text": "x", "cache_control": {"type": "lasting"}}),
        "messages[0].content[0].cache_control.type",
    ),
    (
        "messages",
        user({"type": "text", "text": "x", "citations": [{"type": "page_location"}]}),
        "messages[0].content[0].citations",
    ),
    ("messages", user({"type": "image", "source": {}}), "messages[0].content[0].type"),
    ("messages", user({"type": "document", "source": {}}), "messages[0].content[0].type"),
    ("messages", user({"type": "search_result", "title": "t"}), "messages[0].content[0].type"),
    (
        "messages",
        user({"type": "tool_use", "id": "a", "name": "f", "input": {}}),
        "messages[0].content[0].type",
    ),
    (
        "messages",
        user({"type": "tool_result", "tool_use_id": "a", "content": [{"type": "image"}]}),
        "messages[0].content[0].content[0].type",
    ),
    (
        "messages",
        [{"role": "assistant", "content": [{"type": "tool_result", "tool_use_id": "a"}]}],
        "messages[0].content[0].type",
    ),
    (
        "messages",
        [{"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "f"}]}],
        "messages[0].content[0].input",
    ),
    ("system", 5),
    ("system", [{"type": "image"}], "system[0].type"),
    ("system", ["x"], "system[0]"),
    ("tools", {}),
    ("tools", [1], "tools[0]"),
    ("tools", [{}], "tools[0].name"),
    ("tools", [{"name": "f"}], "tools[0].input_schema"),
    ("tools", tool(input_schema=[]), "tools[0].input_schema"),
    ("tools", tool(no_such=1), "tools[0].no_such"),
    ("tools", [{"type": "web_search_20250305", "name": "w", "max_uses": 2}], "tools[0].type"),
    ("tools", [{"type": "bash_20250124", "name": "bash"}], "tools[0].type"),
    ("tools", [{"type": 7, "name": "bash"}], "tools[0].type"),
    ("tool_choice", "auto"),
    ("tool_choice", {"type": "some"}, "tool_choice.type"),
    ("tool_choice", {"type": "tool"}, "tool_choice.name"),
    ("tool_choice", {"type": "any"}),
    ("thinking", {"type": "deep"}, "thinking.type"),
    ("thinking", {"type": "enabled", "budget_tokens": 5}, "thinking.budget_tokens"),
    ("output_config", {"effort": "much"}, "output_config.effort"),
    ("output_config", {"format": {"type": "xml", "schema": {}}}, "output_config.format.type"),
    ("output_config", {"format": {"type": "json_schema"}}, "output_config.format.schema"),
    ("output_config", {"task_budget": {"total": 5}}, "output_config.task_budget"),
    ("mcp_servers", [{"url": "x"}]),
    ("container", "c"),
    ("context_management", {"edits": [{"type": "clear_tool_uses_20250919"}]}),
    ("speed", "fast"),
    ("fallbacks", "default"),
    ("cache_control", True),
    ("no_such_field", 1),
    ("x" * 500, 1, "Unknown field"),
    ("model", 3),
]
ANSWER_FIELDS: list[tuple[Any, ...]] = [
    ("max_tokens", -1),
    ("max_tokens", True),
    ("max_tokens", "10"),
    ("max_tokens", 10.0),
    ("max_tokens", 10**100),
    ("max_tokens", None),
    ("max_tokens", 2**63),
    ("temperature", 3),
    ("temperature", "1"),
    ("temperature", -1),
    ("temperature", False),
    ("temperature", 10**400),
    ("top_p", -0.1),
    ("top_p", 0),
    ("top_p", 1.5),
    ("top_k", -2),
    ("top_k", 1.5),
    ("stream", "yes"),
    ("stop_sequences", "x"),
    ("stop_sequences", list("abcde")),
    ("stop_sequences", [""]),
    ("stop_sequences", ["x" * 2000], "stop"),
    ("stop_sequences", [1], "stop_sequences[0]"),
    ("metadata", {"user": "u"}, "metadata.user"),
    ("metadata", 5),
    ("stream", 1),
    ("cache_salt", "x"),
    ("logit_bias", {"5": 1}),
    ("chat_template", "{{ 1 }}"),
    ("service_tier", "flex"),
    ("n", 2),
    ("stop", "x"),
]


async def assert_still_serves(server: Server) -> None:
    assert server.engine.live == {}
    status, answer = await server.post(MESSAGES, body_for(MESSAGES))
    assert (status, text_of(MESSAGES, answer)) == (200, reference(MESSAGES))


async def assert_refused(server: Server, path: str, body: Any, named: str) -> None:
    status, answer = await server.post(path, body)
    assert status == 400, answer
    assert set(answer) == {"type", "error", "request_id"}
    assert answer["type"] == "error"
    assert set(answer["error"]) == {"type", "message"}
    assert answer["error"]["type"] == "invalid_request_error"
    assert named in answer["error"]["message"]
    assert server.engine.seen == []
    await assert_still_serves(server)


@pytest.mark.parametrize("path", BOTH)
@pytest.mark.parametrize("case", FIELDS, ids=case_id)
async def test_a_bad_field_is_refused_by_name(
    server: Server, path: str, case: tuple[Any, ...]
) -> None:
    name, value, *named = case
    body = body_for(MESSAGES) | {name: value}
    if path == COUNT_TOKENS:
        if name == "tool_choice":
            return  # how tools may be used changes no token of the prompt
        del body["max_tokens"]
    await assert_refused(server, path, body, named[0] if named else name)


@pytest.mark.parametrize("case", ANSWER_FIELDS, ids=case_id)
async def test_a_bad_field_of_an_answer_is_refused_by_name(
    server: Server, case: tuple[Any, ...]
) -> None:
    name, value, *named = case
    await assert_refused(
        server, MESSAGES, body_for(MESSAGES) | {name: value}, named[0] if named else name
    )
    assert server.metrics.records[0].outcome == "rejected"


@pytest.mark.parametrize("path", BOTH)
@pytest.mark.parametrize("raw", NOT_JSON.values(), ids=NOT_JSON.keys())
async def test_what_is_not_a_json_object_is_refused(server: Server, path: str, raw: bytes) -> None:
    await assert_refused(server, path, raw, "JSON")


@pytest.mark.parametrize("name", ["messages", "max_tokens"])
async def test_a_missing_field_is_named(server: Server, name: str) -> None:
    body = body_for(MESSAGES)
    del body[name]
    await assert_refused(server, MESSAGES, body, name)


@pytest.mark.parametrize("path", BOTH)
async def test_too_long_a_prompt_is_told_in_the_words_that_agents_look_for(
    server: Server, path: str
) -> None:
    body = body_for(MESSAGES, "x" * 10_000)
    if path == COUNT_TOKENS:
        del body["max_tokens"]
    await assert_refused(server, path, body, "prompt is too long")


async def test_two_names_of_one_format_are_refused(server: Server) -> None:
    wanted = {"type": "json_schema", "schema": {}}
    body = body_for(MESSAGES, output_format=wanted, output_config={"format": wanted})
    await assert_refused(server, MESSAGES, body, "output_format")


@pytest.mark.parametrize("path", BOTH)
async def test_an_unknown_model_is_not_found(server: Server, path: str) -> None:
    body = body_for(MESSAGES, model="other")
    if path == COUNT_TOKENS:
        del body["max_tokens"]
    status, answer = await server.post(path, body)
    assert (status, answer["error"]["type"]) == (404, "not_found_error")


@pytest.mark.parametrize(
    ("method", "path", "status", "kind"),
    [
        ("GET", MESSAGES, 405, "invalid_request_error"),
        ("GET", COUNT_TOKENS, 405, "invalid_request_error"),
        ("POST", f"{MESSAGES}/batches", 404, "not_found_error"),
    ],
)
async def test_the_frameworks_errors_have_the_same_envelope(
    server: Server, method: str, path: str, status: int, kind: str
) -> None:
    async with server.session.request(method, server.url + path) as response:
        answer = await response.json()
        assert (response.status, answer["type"], answer["error"]["type"]) == (status, "error", kind)
        assert answer["request_id"] == response.headers["request-id"]


async def test_a_body_beyond_the_limit_is_refused_plain_or_inflated(server: Server) -> None:
    big = b'{"model": "' + b"x" * 70_000 + b'"}'
    packed = gzip.compress(b"x" * 10_000_000)
    for raw, headers in [(big, {}), (packed, {"Content-Encoding": "gzip"})]:
        status, answer = await server.post(MESSAGES, raw, headers=headers)
        assert (status, answer["error"]["type"]) == (413, "request_too_large")
    await assert_still_serves(server)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_full_queue_is_an_overload_that_says_when_to_come_back(
    server: Server, stream: bool
) -> None:
    server.engine.refuse_after = 0
    body = body_for(MESSAGES, stream=stream)
    async with server.session.post(server.url + MESSAGES, json=body) as response:
        assert (response.status, response.headers["Retry-After"]) == (503, "7")
        assert (await response.json())["error"]["type"] == "overloaded_error"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_failure_before_the_first_token_has_a_status(server: Server, stream: bool) -> None:
    server.engine.fail_at = 0
    status, answer = await server.post(MESSAGES, body_for(MESSAGES, stream=stream))
    assert (status, answer["error"]["type"]) == (500, "api_error")
    server.engine.fail_at = None
    await assert_still_serves(server)


async def test_chat_keeps_its_own_envelope(server: Server) -> None:
    _, answer = await server.post("/v1/chat/completions", {})
    assert set(answer) == {"error"}


class TestWithAKey:
    @pytest.fixture
    def settings(self) -> ApiSettings:
        return ApiSettings(api_key="right")

    @pytest.mark.parametrize("path", [MESSAGES, "/v1/chat/completions", "/metrics"])
    @pytest.mark.parametrize(
        ("headers", "permitted"),
        [
            ({"x-api-key": "right"}, True),
            ({"Authorization": "Bearer right"}, True),
            ({"x-api-key": "right", "Authorization": "Bearer other"}, True),
            ({"x-api-key": "wrong"}, False),
            ({"x-api-key": ""}, False),
            ({"x-api-key": "Bearer right"}, False),
            ({"Authorization": "Basic right"}, False),
            ({}, False),
        ],
    )
    async def test_either_header_opens_every_path(
        self, server: Server, path: str, headers: dict[str, str], permitted: bool
    ) -> None:
        method, body = ("GET", None) if path == "/metrics" else ("POST", body_for(path))
        async with server.session.request(
            method, server.url + path, json=body, headers=headers
        ) as response:
            assert response.status == (200 if permitted else 401)
            if path == MESSAGES and not permitted:
                answer = json.loads(await response.text())
                assert answer["error"]["type"] == "authentication_error"


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("hold_at", [0, 2])
async def test_a_client_that_leaves_stops_its_work(
    server: Server, hold_at: int, stream: bool
) -> None:
    server.engine.hold_at = hold_at
    reader, writer = await connect(server, raw_request(MESSAGES, body_for(MESSAGES, stream=stream)))
    await server.engine.held.wait()
    if stream and hold_at:
        await reader.readuntil(b"event: content_block_delta")
    leave(writer, reset=False)
    await assert_forgotten(server, 1)


class TestSilence:
    @pytest.fixture
    def settings(self) -> ApiSettings:
        return ApiSettings(stream_comment_seconds=0.05)

    @pytest.mark.parametrize("hold_at", [0, 2])
    async def test_a_silent_stream_gets_comments_between_its_events(
        self, server: Server, hold_at: int
    ) -> None:
        server.engine.hold_at = hold_at
        body = body_for(MESSAGES, stream=True)
        async with server.session.post(server.url + MESSAGES, json=body) as response:
            await asyncio.sleep(0.2)
            server.engine.go_on.set()
            pieces = (await response.text()).split("\n\n")
        comments = [piece for piece in pieces if piece.startswith(":")]
        assert comments
        first = next(piece for piece in pieces if piece not in comments)
        assert first.startswith("event: message_start")
        assert pieces[-2].startswith("event: message_stop")
