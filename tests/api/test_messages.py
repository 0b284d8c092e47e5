"""/v1/messages: what a body means as a conversation, and what an answer looks like."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from radixserve.api.anthropic.content import BlockEvents, blocks_of
from radixserve.api.anthropic.conversation import translated
from radixserve.api.anthropic.usage import last_breakpoint, usage_of
from radixserve.api.anthropic.wire import AS_IF_ABSENT, MessagesBody
from radixserve.api.body import decode_body
from radixserve.api.openai.wire import ChatBody
from radixserve.front.generation import Counts
from radixserve.front.stream import joined
from radixserve.parsing.parts import CallArguments, CallBegun, CallEnded, Part, Reasoning, Text
from tests.api.conftest import CHAT, MESSAGES, MODEL, Server, body_for
from tests.fakes import EOS

COUNT_TOKENS = f"{MESSAGES}/count_tokens"
EPHEMERAL = {"cache_control": {"type": "ephemeral"}}
CALL = {"type": "tool_use", "id": "t1", "name": "add", "input": {"a": 1, "b": [2]}}
TOOL = {"name": "add", "description": "adds", "input_schema": {"type": "object"}}
PARTS: list[Part] = [
    Reasoning("hm"),
    Reasoning("m"),
    Text("I "),
    Text("call"),
    CallBegun(0, "c0", "add"),
    CallArguments(0, '{"a":'),
    CallArguments(0, " 1}"),
    CallEnded(0),
    CallBegun(1, "c1", "now"),
    CallEnded(1),
]


def chat_of(**fields: Any) -> ChatBody:
    """The chat body of a Messages body with these fields."""
    body = {"max_tokens": 4, "messages": [{"role": "user", "content": "q"}], **fields}
    return translated(decode_body(json.dumps(body).encode(), MessagesBody)).body


def messages_of(*messages: tuple[str, Any], **fields: Any) -> list[dict[str, Any]]:
    """The chat messages of these roles and contents, without what is absent."""
    given = [{"role": role, "content": content} for role, content in messages]
    chat = chat_of(messages=given, **fields)
    return [
        {name: value for name, value in msgspec.to_builtins(each).items() if value is not None}
        for each in chat.messages
    ]


def text(content: str, **more: Any) -> dict[str, Any]:
    return {"type": "text", "text": content, **more}


class TestConversation:
    def test_the_system_prompt_is_a_message_and_its_blocks_are_lines(self) -> None:
        plain = messages_of(("user", "q"), system="one\ntwo")
        assert plain[0] == {"role": "system", "content": "one\ntwo"}
        assert messages_of(("user", "q"), system=[text("one", **EPHEMERAL), text("two")]) == plain
        assert [each["role"] for each in messages_of(("user", "q"), system="")] == ["user"]

    def test_turns_of_one_role_become_one_because_templates_want_them_to_alternate(self) -> None:
        assert messages_of(("user", "a"), ("user", [text("b"), text("c")]), ("assistant", "d")) == [
            {"role": "user", "content": "a\nb\nc"},
            {"role": "assistant", "content": "d"},
        ]

    def test_an_answer_with_reasoning_and_calls_is_one_message(self) -> None:
        thinking = {"type": "thinking", "thinking": "hm", "signature": "s"}
        redacted = {"type": "redacted_thinking", "data": "xyz"}
        content = [redacted, thinking, text("I "), text("add"), CALL]
        (_, answer) = messages_of(("user", "q"), ("assistant", content))
        assert answer["reasoning_content"] == "hm"
        assert answer["content"] == "I add"
        (call,) = answer["tool_calls"]
        assert (call["id"], call["function"]["name"]) == ("t1", "add")
        assert call["function"]["arguments"] == '{"a":1,"b":[2]}'

    def test_results_of_tools_come_before_the_text_beside_them(self) -> None:
        results = [
            {"type": "tool_result", "tool_use_id": "t1", "content": "3"},
            {"type": "tool_result", "tool_use_id": "t2", "content": [text("no"), text("way")]},
            {"type": "tool_result", "tool_use_id": "t3", "is_error": True, "content": "bad"},
            {"type": "tool_result", "tool_use_id": "t4"},
            text("go on"),
        ]
        assert messages_of(("user", results)) == [
            {"role": "tool", "tool_call_id": "t1", "content": "3"},
            {"role": "tool", "tool_call_id": "t2", "content": "no\nway"},
            {"role": "tool", "tool_call_id": "t3", "content": "Error: bad"},
            {"role": "tool", "tool_call_id": "t4", "content": ""},
            {"role": "user", "content": "go on"},
        ]

    def test_a_system_message_may_stand_between_turns(self) -> None:
        roles = [each["role"] for each in messages_of(("user", "a"), ("system", "b"))]
        assert roles == ["user", "system"]

    @pytest.mark.parametrize(
        ("last", "continues"),
        [
            (("user", "a"), None),
            (("assistant", "a"), True),
            (("assistant", [text("a")]), True),
            (("assistant", ""), None),
            (("assistant", []), None),
            (("assistant", [text("a"), CALL]), None),
        ],
    )
    def test_an_answer_that_was_begun_is_continued(
        self, last: tuple[str, Any], continues: bool | None
    ) -> None:
        given = [{"role": "user", "content": "q"}, {"role": last[0], "content": last[1]}]
        assert chat_of(messages=given).continue_final_message is continues

    def test_tools_are_functions(self) -> None:
        more = {
            "type": "custom",
            "strict": True,
            "eager_input_streaming": True,
            "input_examples": [{"a": 1}],
            "defer_loading": False,
            "allowed_callers": ["direct"],
            **EPHEMERAL,
        }
        tools = msgspec.to_builtins(chat_of(tools=[TOOL, {**TOOL, "name": "b", **more}]).tools)
        assert [each["type"] for each in tools] == ["function", "function"]
        assert tools[1]["function"] == {
            "name": "b",
            "description": "adds",
            "parameters": {"type": "object"},
            "strict": True,
        }

    @pytest.mark.parametrize(
        ("choice", "as_chat"),
        [
            ({"type": "auto"}, "auto"),
            ({"type": "any"}, "required"),
            ({"type": "none"}, "none"),
            ({"type": "tool", "name": "add"}, "add"),
        ],
    )
    def test_the_choice_of_tools_is_translated(self, choice: Any, as_chat: str) -> None:
        found = msgspec.to_builtins(chat_of(tools=[TOOL], tool_choice=choice).tool_choice)
        assert (found if isinstance(found, str) else found["function"]["name"]) == as_chat
        chat = chat_of(tools=[TOOL], tool_choice={**choice, "disable_parallel_tool_use": True})
        assert chat.parallel_tool_calls is False

    def test_thinking_turns_the_templates_reasoning_on_and_off(self) -> None:
        assert chat_of().chat_template_kwargs is None
        for thinking, enabled in (
            ({"type": "enabled", "budget_tokens": 2048}, True),
            ({"type": "adaptive", "display": "omitted"}, True),
            ({"type": "disabled"}, False),
        ):
            kwargs = chat_of(thinking=thinking).chat_template_kwargs
            assert kwargs == {"enable_thinking": enabled, "thinking": enabled}

    @pytest.mark.parametrize("old", [False, True])
    def test_a_format_is_a_schema(self, old: bool) -> None:
        schema = {"type": "object", "properties": {"a": {"type": "string"}}}
        wanted = {"type": "json_schema", "schema": schema}
        chat = chat_of(
            **({"output_format": wanted} if old else {"output_config": {"format": wanted}})
        )
        found = msgspec.to_builtins(chat.response_format)
        assert (found["type"], found["json_schema"]["schema"]) == ("json_schema", schema)

    async def test_a_conversation_is_the_same_tokens_as_in_a_chat_body(
        self, server: Server
    ) -> None:
        await server.post(MESSAGES, body_for(MESSAGES, system="be brief") | {"top_k": 3})
        chat = body_for(CHAT) | {"top_k": 3}
        chat["messages"] = [{"role": "system", "content": "be brief"}, *chat["messages"]]
        await server.post(CHAT, chat)
        messages, as_chat = server.engine.seen
        assert messages.prompt_ids == as_chat.prompt_ids
        assert messages.sampling == msgspec.structs.replace(
            as_chat.sampling, seed=messages.sampling.seed
        )


class TestContent:
    def test_parts_become_blocks(self) -> None:
        blocks = json.loads(msgspec.json.encode(blocks_of(joined(PARTS), shows_thinking=True)))
        assert [each["type"] for each in blocks] == ["thinking", "text", "tool_use", "tool_use"]
        assert (blocks[0]["thinking"], blocks[1]["text"]) == ("hmm", "I call")
        assert [each["input"] for each in blocks[2:]] == [{"a": 1}, {}]

    @pytest.mark.parametrize("arguments", ['{"a":', "[1]", "nonsense", '{"a": 1} x'])
    def test_arguments_that_were_cut_are_marked_so_that_no_tool_runs_with_them(
        self, arguments: str
    ) -> None:
        parts: list[Part] = [CallBegun(0, "c", "f"), CallArguments(0, arguments)]
        (block,) = json.loads(msgspec.json.encode(blocks_of(parts, shows_thinking=True)))
        assert block["input"] == {"INVALID_JSON": arguments}

    @pytest.mark.parametrize("shows_thinking", [False, True])
    def test_events_add_up_to_the_blocks(self, shows_thinking: bool) -> None:
        writer = BlockEvents(shows_thinking=shows_thinking)
        events = events_of(b"".join([writer.add(part) for part in PARTS]) + writer.close())
        whole = json.loads(
            msgspec.json.encode(blocks_of(joined(PARTS), shows_thinking=shows_thinking))
        )
        assert assembled(events) == whole
        assert writer.close() == b""


def events_of(stream: bytes) -> list[dict[str, Any]]:
    """The events of a stream; each is named after its type."""
    events = []
    for lines in stream.decode().split("\n\n")[:-1]:
        name, data = lines.split("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
    return events


def assembled(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The blocks that the events of content blocks add up to; one is open at a time."""
    blocks: list[dict[str, Any]] = []
    is_open = False
    for event in events:
        match event["type"]:
            case "content_block_start":
                assert not is_open
                assert event["index"] == len(blocks)
                blocks.append(event["content_block"] | {"json": ""})
                is_open = True
            case "content_block_delta":
                assert is_open
                assert event["index"] == len(blocks) - 1
                block, delta = blocks[-1], event["delta"]
                kind = delta.pop("type").removesuffix("_delta")
                (name, piece) = delta.popitem()
                member = "json" if kind == "input_json" else name
                block[member] += piece
            case "content_block_stop":
                assert is_open
                is_open = False
    assert not is_open
    for block in blocks:
        arguments = block.pop("json")
        if arguments:
            block["input"] = json.loads(arguments)
    return blocks


class TestUsage:
    COUNTS = Counts(prompt=10, cached=6, cached_below={}, generated=3, reasoning=0)

    def test_without_a_breakpoint_what_is_not_cached_is_input(self) -> None:
        usage = usage_of(self.COUNTS, None)
        assert usage.input_tokens == 4
        assert usage.cache_read_input_tokens == 6
        assert usage.cache_creation_input_tokens == 0

    @pytest.mark.parametrize(
        ("fields", "ttl"),
        [
            ({"system": [text("s", **EPHEMERAL)]}, None),
            ({"cache_control": {"type": "ephemeral", "ttl": "1h"}}, "1h"),
            ({"tools": [{**TOOL, "cache_control": {"type": "ephemeral", "ttl": "1h"}}]}, "1h"),
            (
                {
                    "messages": [{"role": "user", "content": [text("q", **EPHEMERAL)]}],
                    "system": [text("s", cache_control={"type": "ephemeral", "ttl": "1h"})],
                },
                None,
            ),
        ],
    )
    def test_with_one_it_is_written_for_the_time_of_the_last(
        self, fields: dict[str, Any], ttl: str | None
    ) -> None:
        body = {"max_tokens": 4, "messages": [{"role": "user", "content": "q"}], **fields}
        found = last_breakpoint(decode_body(json.dumps(body).encode(), MessagesBody))
        assert found is not None
        usage = usage_of(self.COUNTS, found)
        assert (usage.input_tokens, usage.cache_creation_input_tokens) == (0, 4)
        assert usage.cache_creation.ephemeral_1h_input_tokens == (4 if ttl == "1h" else 0)
        assert usage.cache_creation.ephemeral_5m_input_tokens == (0 if ttl == "1h" else 4)

    async def test_cached_tokens_are_reported_at_the_start_and_at_the_end_of_a_stream(
        self, server: Server
    ) -> None:
        server.engine.num_cached = 5
        _, answer = await server.post(MESSAGES, body_for(MESSAGES))
        assert answer["usage"]["cache_read_input_tokens"] == 5
        assert answer["usage"]["input_tokens"] == len(server.engine.seen[0].prompt_ids) - 5
        events = await streamed(server, body_for(MESSAGES))
        start = events[0]["message"]["usage"]
        end = events[-2]["usage"]
        for name in ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens"):
            assert start[name] == end[name] == answer["usage"][name]
        assert end["output_tokens"] == answer["usage"]["output_tokens"] == 4


async def streamed(server: Server, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The events of the streamed answer."""
    async with server.session.post(server.url + MESSAGES, json=body | {"stream": True}) as response:
        assert response.status == 200
        return events_of(await response.read())


class TestAnswers:
    async def test_a_stream_has_the_events_in_order(self, server: Server) -> None:
        events = await streamed(server, body_for(MESSAGES))
        assert [event["type"] for event in events] == [
            "message_start",
            "ping",
            "content_block_start",
            *["content_block_delta"] * 3,
            "content_block_stop",
            "message_delta",
            "message_stop",
        ]
        assert events[0]["message"]["content"] == []
        assert events[0]["message"]["stop_reason"] is None
        assert [block["text"] for block in assembled(events)] == ["use"]

    async def test_a_block_of_text_has_no_member_that_is_null(self, server: Server) -> None:
        """The AI SDK refuses an answer with `citations: null`."""
        _, message = await server.post(MESSAGES, body_for(MESSAGES))
        (block,) = message["content"]
        assert sorted(block) == ["text", "type"]

    async def test_an_answer_without_text_has_no_block(self, server: Server) -> None:
        server.engine.answer = lambda request: [EOS]
        _, answer = await server.post(MESSAGES, body_for(MESSAGES))
        assert (answer["content"], answer["stop_reason"]) == ([], "end_turn")
        events = await streamed(server, body_for(MESSAGES))
        assert [event["type"] for event in events] == [
            "message_start",
            "ping",
            "message_delta",
            "message_stop",
        ]

    @pytest.mark.parametrize(
        ("fields", "reason", "sequence"),
        [
            ({}, "max_tokens", None),
            ({"max_tokens": 2000}, "model_context_window_exceeded", None),
            ({"stop_sequences": ["zz", "se"]}, "stop_sequence", "se"),
        ],
    )
    async def test_the_reason_of_the_end_is_told(
        self, server: Server, fields: dict[str, Any], reason: str, sequence: str | None
    ) -> None:
        body = body_for(MESSAGES) | fields
        status, answer = await server.post(MESSAGES, body)
        assert (status, answer["stop_reason"], answer["stop_sequence"]) == (200, reason, sequence)
        events = await streamed(server, body)
        assert events[-2]["delta"] == {"stop_reason": reason, "stop_sequence": sequence}

    async def test_a_failure_after_the_first_token_is_an_error_event(self, server: Server) -> None:
        server.engine.fail_at = 2
        events = await streamed(server, body_for(MESSAGES))
        assert events[-1]["type"] == "error"
        assert events[-1]["error"]["type"] == "api_error"
        assert events[-1]["request_id"].startswith("req-")
        server.engine.fail_at = None

    async def test_answers_carry_the_request_id_where_the_clients_look(
        self, server: Server
    ) -> None:
        async with server.session.post(
            server.url + MESSAGES + "?beta=true", json=body_for(MESSAGES)
        ) as response:
            assert response.headers["request-id"] == response.headers["x-request-id"]
            assert (await response.json())["id"].startswith("msg_")

    async def test_requests_count_as_messages(self, server: Server) -> None:
        await server.post(MESSAGES, body_for(MESSAGES))
        await server.post(MESSAGES, body_for(MESSAGES, model="other"))
        assert [record.endpoint for record in server.metrics.records] == ["messages"] * 2

    async def test_tokens_are_counted_without_the_engine(self, server: Server) -> None:
        await server.post(MESSAGES, body_for(MESSAGES, system="s"))
        num_tokens = len(server.engine.seen[0].prompt_ids)
        body = body_for(MESSAGES, system="s")
        del body["max_tokens"]
        assert await server.post(COUNT_TOKENS, body) == (200, {"input_tokens": num_tokens})
        assert len(server.engine.seen) == 1

    async def test_with_no_token_to_generate_the_prompt_is_computed(self, server: Server) -> None:
        body = body_for(MESSAGES) | {"max_tokens": 0}
        status, answer = await server.post(MESSAGES, body)
        assert (status, answer["content"], answer["stop_reason"]) == (200, [], "max_tokens")
        assert answer["usage"]["output_tokens"] == 0
        events = await streamed(server, body)
        assert events[-2]["usage"]["output_tokens"] == 0
        assert len(server.engine.seen) == 2

    async def test_a_message_that_is_not_compared_says_so(self, server: Server) -> None:
        body = body_for(MESSAGES, diagnostics={"previous_message_id": "msg_1"})
        _, answer = await server.post(MESSAGES, body)
        assert answer["diagnostics"] == {"cache_miss_reason": {"type": "unavailable"}}


# what clients send that changes no token of an answer
WITHOUT_EFFECT: dict[str, Any] = {
    "cache_control": {"type": "ephemeral", "ttl": "1h", "scope": "global"},
    "diagnostics": {"previous_message_id": None},
    "metadata": {"user_id": "u"},
    "model": None,
    "service_tier": "auto",
    "stop_sequences": [],
    "stream": False,
    "system": [],
    "tools": [],
    **{name: values[-1] for name, values in AS_IF_ABSENT.items()},
}


@pytest.mark.parametrize("name", WITHOUT_EFFECT)
async def test_a_field_that_changes_no_token_is_taken(server: Server, name: str) -> None:
    for fields in ({}, {name: WITHOUT_EFFECT[name]}):
        status, answer = await server.post(MESSAGES, body_for(MESSAGES) | fields)
        assert status == 200, answer
    plain, with_field = server.engine.seen
    assert plain.prompt_ids == with_field.prompt_ids


async def test_null_is_taken_for_every_field_but_the_required(server: Server) -> None:
    nulls = dict.fromkeys(MessagesBody.__struct_fields__)
    status, _ = await server.post(MESSAGES, nulls | body_for(MESSAGES) | {"model": MODEL})
    assert status == 200
