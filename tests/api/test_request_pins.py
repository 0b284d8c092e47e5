"""Fields that ask for a time in the cache: what the engine is asked for, and what usage says."""

from __future__ import annotations

import json
from typing import Any

import anthropic
import openai
import pytest

from tests.api.conftest import (
    CHAT,
    COMPLETIONS,
    GENERATING,
    MESSAGES,
    MODEL,
    OPENAI_DIALECT,
    RESPONSES,
    Server,
    body_for,
)

HOUR, MINUTES = {"type": "ephemeral", "ttl": "1h"}, {"type": "ephemeral", "ttl": "5m"}
TOOL = {"name": "f", "input_schema": {"type": "object"}}


def text(value: str, **more: Any) -> dict[str, Any]:
    return {"type": "text", "text": value, **more}


def beginnings(server: Server) -> list[tuple[str, float]]:
    """The text of each beginning that the last request wishes to be pinned, and its seconds."""
    asked = server.engine.seen[-1]
    return [(spelled(asked.prompt_ids[: each.num_tokens]), each.seconds) for each in asked.pins]


def whole(server: Server) -> str:
    return spelled(server.engine.seen[-1].prompt_ids)


def spelled(ids: list[int]) -> str:
    """The text, with one character for each control token."""
    return "".join(chr(each) if each < 128 else "|" for each in ids)


def details(path: str, usage: dict[str, Any]) -> dict[str, Any]:
    names = {RESPONSES: "input_tokens_details", MESSAGES: None}
    name = names.get(path, "prompt_tokens_details")
    return usage if name is None else usage[name]


@pytest.mark.parametrize("path", GENERATING)
async def test_without_a_time_nothing_is_pinned(server: Server, path: str) -> None:
    marked = {"cache_control": {"type": "ephemeral"}}
    body = body_for(path)
    if path in (CHAT, MESSAGES):
        body["messages"] = [{"role": "user", "content": [text("abc", **marked)]}]
    status, answer = await server.post(path, body)
    assert status == 200
    assert server.engine.seen[-1].pins == ()
    found = details(path, answer["usage"])
    assert "pinned_tokens" not in found
    assert found.get("prompt_cache") == ("clipped" if path == CHAT else None)


@pytest.mark.parametrize("path", OPENAI_DIALECT)
@pytest.mark.parametrize("most", [1000, 3, 0])
async def test_a_time_alone_pins_the_whole_prompt_and_usage_says_what_became_of_it(
    server: Server, path: str, most: int
) -> None:
    server.engine.most_pinned = most
    status, answer = await server.post(
        path, body_for(path, "abcdef", prompt_cache_options={"ttl": "30m"})
    )
    assert status == 200
    assert beginnings(server) == [(whole(server), 1800.0)]
    num = len(server.engine.seen[-1].prompt_ids)
    found = details(path, answer["usage"])
    expected = {1000: ("accepted", num), 3: ("clipped", 3), 0: ("refused", 0)}[most]
    assert (found["prompt_cache"], found["pinned_tokens"]) == expected


async def test_each_prompt_is_pinned_once_whatever_n_is(server: Server) -> None:
    body = {"prompt": ["ab", "cde"], "n": 2, "prompt_cache_options": {"ttl": "1h"}, "max_tokens": 2}
    _, answer = await server.post(COMPLETIONS, body)
    assert [len(each.pins) for each in server.engine.seen] == [1, 0, 1, 0]
    assert answer["usage"]["prompt_tokens_details"]["pinned_tokens"] == 5


async def test_the_prompt_is_pinned_up_to_the_last_mark_of_the_longest_time_and_the_last(
    server: Server,
) -> None:
    body = body_for(CHAT, prompt_cache_options={"ttl": "2m"})
    body["messages"] = [
        {"role": "system", "content": [text("one", cache_control=HOUR), text("two")]},
        {"role": "user", "content": [text("abc", prompt_cache_breakpoint={"mode": "explicit"})]},
        {"role": "assistant", "content": "d"},
        {"role": "user", "content": "efg"},
    ]
    assert (await server.post(CHAT, body))[0] == 200
    (long, hour), (short, minutes) = beginnings(server)
    assert (hour, minutes) == (3600.0, 120.0)
    assert long.endswith("one")
    assert "abc" in short
    assert "efg" not in short
    assert whole(server).startswith(short)
    body["messages"][0]["content"][0]["cache_control"] = MINUTES
    body["messages"][3]["cache_control"] = HOUR
    await server.post(CHAT, body)
    ((last, _),) = beginnings(server)
    assert "efg" in last


async def test_responses_have_marks_in_their_items(server: Server) -> None:
    items = [
        {
            "role": "user",
            "content": [
                {
                    "type": "input_text",
                    "text": "abc",
                    "prompt_cache_breakpoint": {"mode": "explicit", "ttl": "30m"},
                }
            ],
        },
        {"role": "assistant", "content": "d"},
        {"role": "user", "content": "efg"},
    ]
    body = body_for(RESPONSES) | {"input": items}
    assert (await server.post(RESPONSES, body))[0] == 200
    ((beginning, seconds),) = beginnings(server)
    assert seconds == 1800.0
    assert "abc" in beginning
    assert "efg" not in beginning


@pytest.mark.parametrize(
    ("fields", "last", "behind"),
    [
        ({"cache_control": HOUR}, "hij", ""),
        ({"system": [text("one", cache_control=HOUR), text("two")]}, "one", "two"),
        (
            {
                "tools": [{**TOOL, "cache_control": HOUR}],
                "tool_choice": {"type": "none"},
                "system": "one",
            },
            "one",
            "abc",
        ),
        (
            {"messages": [{"role": "user", "content": [text("a", cache_control=HOUR), text("b")]}]},
            "a",
            "b",
        ),
    ],
)
async def test_breakpoints_of_messages_with_a_time_are_pinned(
    server: Server, fields: dict[str, Any], last: str, behind: str
) -> None:
    turns = [("user", "abc"), ("assistant", "def"), ("user", "hij")]
    messages = [{"role": role, "content": content} for role, content in turns]
    body = body_for(MESSAGES) | {"messages": messages} | fields
    status, answer = await server.post(MESSAGES, body)
    assert status == 200, answer
    ((beginning, seconds),) = beginnings(server)
    assert seconds == 3600.0
    assert last in beginning
    assert whole(server).startswith(beginning)
    assert not behind or behind not in beginning.rpartition(last)[2]
    assert answer["usage"]["prompt_cache"] == "accepted"
    assert answer["usage"]["pinned_tokens"] == len(beginning)


async def test_a_stream_tells_it_with_its_usage(server: Server) -> None:
    body = body_for(CHAT, stream=True, prompt_cache_options={"ttl": "1h"})
    body["stream_options"] = {"include_usage": True}
    async with server.session.post(server.url + CHAT, json=body) as response:
        lines = (await response.text()).split("\n")
    usage = json.loads(next(each for each in lines if '"usage":{' in each)[6:])["usage"]
    assert usage["prompt_tokens_details"]["prompt_cache"] == "accepted"
    body = body_for(MESSAGES, stream=True, cache_control=HOUR)
    async with server.session.post(server.url + MESSAGES, json=body) as response:
        events = await response.text()
    assert events.count('"prompt_cache":"accepted"') == 2, "at the start and at the end"


async def test_the_clients_own_fields(server: Server) -> None:
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
        await client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": "abc"}],
            max_tokens=2,
            prompt_cache_options={"ttl": "30m"},
        )
    assert beginnings(server) == [(whole(server), 1800.0)]
    async with anthropic.AsyncAnthropic(base_url=server.url, api_key="none") as claude:
        message = await claude.messages.create(
            model=MODEL,
            max_tokens=2,
            system=[
                {"type": "text", "text": "one", "cache_control": {"type": "ephemeral", "ttl": "5m"}}
            ],
            messages=[{"role": "user", "content": "abc"}],
        )
    ((_, seconds),) = beginnings(server)
    assert seconds == 300.0
    assert message.usage.model_extra == {
        "prompt_cache": "accepted",
        "pinned_tokens": server.engine.seen[-1].pins[0].num_tokens,
    }


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        *(
            (path, {"prompt_cache_options": {"ttl": "x"}}, "prompt_cache_options.ttl")
            for path in OPENAI_DIALECT
        ),
        (CHAT, {"prompt_cache_options": {"ttl": "31d"}}, "prompt_cache_options.ttl"),
        (CHAT, {"prompt_cache_options": {"ttl": "-5m"}}, "prompt_cache_options.ttl"),
        (CHAT, {"prompt_cache_options": {"ttl": "nan"}}, "prompt_cache_options.ttl"),
        (
            CHAT,
            {"messages": [{"role": "user", "content": "a", "cache_control": {"ttl": 5}}]},
            "messages[0].cache_control.ttl",
        ),
        (
            CHAT,
            {"messages": [{"role": "user", "content": [text("a", cache_control={"ttl": ""})]}]},
            "messages[0].content[0].cache_control.ttl",
        ),
        (MESSAGES, {"cache_control": {"type": "ephemeral", "ttl": "2h"}}, "cache_control.ttl"),
    ],
)
async def test_a_time_that_is_none_is_refused_by_name(
    server: Server, path: str, fields: dict[str, Any], param: str
) -> None:
    status, answer = await server.post(path, body_for(path) | fields)
    assert status == 400
    assert param in json.dumps(answer)
    assert not server.engine.seen
