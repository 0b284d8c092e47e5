"""POST /cache/explain over the fake engine: bodies of every dialect, regions, hints, refusals."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from radixserve.api.cache.hints import (
    BILLING,
    DATE,
    IDENTIFIER,
    KEY_ORDER,
    REASONING,
    TOOL_ORDER,
    hints,
)
from radixserve.api.cache.regions import Region
from radixserve.questions import Compared, Explain, Explanation
from tests.api.conftest import CHAT, COMPLETIONS, GENERATING, MESSAGES, RESPONSES, Server, body_for

EXPLAIN = "/cache/explain"


def differing(server: Server, at: int, theirs: bytes, before: bytes = b"") -> None:
    """The engine says that the prompt differs at `at` from one that goes on with `theirs`."""
    server.engine.answers[Explain] = Explanation(
        matched={"device": at},
        lost={"prefix_changed": 5},
        compared=Compared(kind="recent", tokens=400, shared=at, age_seconds=3.0),
        differs_at=at,
        theirs=[*before, *theirs],
        theirs_from=at - len(before),
    )


@pytest.mark.parametrize("path", GENERATING)
async def test_every_body_is_explained_as_its_endpoint_takes_it(server: Server, path: str) -> None:
    body = body_for(path)
    await server.post(path, body)
    status, answer = await server.post(EXPLAIN, body)
    assert status == 200
    (asked,) = server.engine.asked
    assert isinstance(asked, Explain)
    assert asked.tokens == server.engine.seen[0].prompt_ids
    assert (answer["prompt_tokens"], answer["cause"]) == (len(asked.tokens), "hit")
    assert len(server.engine.seen) == 1, "something was generated"


async def test_a_prompt_of_one_token_is_too_short_for_the_cache(server: Server) -> None:
    for tokens, cause in (([97], "too_short"), ([97, 98], "hit")):
        server.engine.answers[Explain] = Explanation(matched={"device": len(tokens) - 1}, lost={})
        answer = (await server.post("/cache/explain", {"tokens": tokens}))[1]
        assert answer["cause"] == cause


async def test_token_ids(server: Server) -> None:
    status, answer = await server.post(EXPLAIN, {"tokens": [97, 98, 99]})
    assert (status, answer["prompt_tokens"]) == (200, 3)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "messages"),
        ({"tokens": []}, "tokens"),
        ({"tokens": [99999]}, "tokens[0]"),
        ({"tokens": [1], "model": "x"}, "model"),
        ({"prompt": ""}, "prompt"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": "a"}], "temperature": 9}, "temperature"),
        ({"input": "a", "store": "x"}, "store"),
    ],
)
async def test_what_its_endpoint_refuses_is_refused(
    server: Server, body: dict[str, Any], param: str
) -> None:
    status, answer = await server.post(EXPLAIN, body)
    assert status == 400
    assert str(answer["error"]["param"]).startswith(param.partition("[")[0])
    assert not server.engine.asked


@pytest.mark.parametrize("raw", [b"", b"[]", b"{", b'{"messages": ' + b"[" * 5000])
async def test_a_body_that_is_no_object_is_refused(server: Server, raw: bytes) -> None:
    status, _ = await server.post(EXPLAIN, raw)
    assert status == 400


async def test_without_keys_only_this_machine_is_told(server: Server) -> None:
    headers = {"X-Forwarded-For": "192.0.2.7"}
    status, _ = await server.post(EXPLAIN, {"tokens": [1]}, headers=headers)
    assert status == 403


SYSTEM = "You are kind. Today is 2026-11-27. Answer."
TALK = {
    "messages": [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": "What is new?"},
        {"role": "assistant", "content": "Nothing."},
        {"role": "user", "content": "And now?"},
    ]
}


def place(words: str) -> int:
    """Where `words` begin in the tokens of `TALK`: one a byte, and one for each <turn>."""
    text = "".join(f"\0{each['role']}: {each['content']}\n" for each in TALK["messages"])
    return text.index(words)


@pytest.mark.parametrize(
    ("words", "kind", "message"),
    [
        ("2026-11", "system", 0),
        ("is new", "message", 1),
        ("othing", "message", 2),
        ("assistant", "template", 2),
        ("now?", "message", 3),
    ],
)
async def test_the_region_of_a_difference(
    server: Server, words: str, kind: str, message: int
) -> None:
    at = place(words)
    differing(server, at, b"another text")
    _, answer = await server.post(EXPLAIN, TALK)
    region = answer["first_difference"]["region"]
    assert (region["kind"], region["message"]) == (kind, message)
    shown = "".join(each["text"] for each in answer["first_difference"]["prompt"])
    assert shown.startswith(words[:8])
    assert len(answer["first_difference"]["before"]) == 8


async def test_a_changed_date_in_a_block_of_the_system_prompt(server: Server) -> None:
    blocks = [{"type": "text", "text": "You are kind."}, {"type": "text", "text": "Now: 10:42"}]
    body = {
        "model": "model",
        "max_tokens": 5,
        "system": blocks,
        "messages": [{"role": "user", "content": "a"}],
    }
    await server.post(EXPLAIN, body)
    (asked,) = server.engine.asked
    assert isinstance(asked, Explain)
    at = bytes(min(each, 255) for each in asked.tokens).index(b"42")
    differing(server, at, b"43", before=b"Now: 10:")
    _, answer = await server.post(EXPLAIN, body)
    region = answer["first_difference"]["region"]
    assert (region["kind"], region["block"]) == ("system", 1)
    assert answer["hints"] == [DATE]


async def test_what_was_never_seen_has_no_hints(server: Server) -> None:
    differing(server, 12, b"11:47 o'clock", before=b"It is ")
    told = server.engine.answers[Explain]
    assert isinstance(told, Explanation)
    server.engine.answers[Explain] = msgspec.structs.replace(told, lost={"never_seen": 5})
    _, answer = await server.post(EXPLAIN, TALK)
    assert answer["first_difference"]["position"] == 12
    assert (answer["cause"], answer["hints"]) == ("never_seen", [])


def test_bodies_are_those_of_all_dialects() -> None:
    assert {CHAT, COMPLETIONS, RESPONSES, MESSAGES} == set(GENERATING)


TOOLS = Region(kind="tools")
SCHEMA = '''{"type": "function", "function": {"name": "price", "description": "Gets the price",
"parameters": {"type": "object", "properties": {"'''


@pytest.mark.parametrize(
    ("before", "mine", "theirs", "region", "expected"),
    [
        ("Today is 2026-11-2", "7. Be kind", "6. Be kind", None, DATE),
        ("It is ", "Friday", "Thursday", None, DATE),
        ("Date:", " 11/28/2026. Be", " 11/27/2026. Be", None, DATE),
        ("Heute, ", "28. Nov 2026", "27. Nov 2026", None, DATE),
        ("May ", "4", "5", None, DATE),
        ("at 2026-11-28T10:", "42:05", "43:05", None, DATE),
        ("On 2026-11-28 I saw a lot of ", "cats", "dogs", None, None),
        ("request ", "4f2a99c01b7d", "88aa01c01b7e", None, IDENTIFIER),
        ("x-anthropic-billing-header: cc_version=2.1.", "7; x", "8; x", None, BILLING),
        ("# Tools\n", '{"name": "a"}, {"name": "b"}', '{"name": "b"}, {"name": "a"}', TOOLS,
         TOOL_ORDER),
        ('# Tools\n{"name": "', 'a"}, {"name": "b"}', 'b"}, {"name": "a"}', TOOLS, TOOL_ORDER),
        ("{", '"x": 1, "y": 2}', '"y": 2, "x": 1}', None, KEY_ORDER),
        (SCHEMA, 'part": {"type": "integer"}, "unit": {"type": "string"}}',
         'unit": {"type": "string"}, "part": {"type": "integer"}}', TOOLS, KEY_ORDER),
        (SCHEMA, 'part": {"type": "integer"}, "unit": {"type": "string"}}',
         'part": {"type": "number"}, "unit": {"type": "string"}}', TOOLS, None),
        ('"parameters": {"', 'type": "object", "properties": {"a": {}}, "required": ["a"]}',
         'required": ["a"], "properties": {"a": {}}, "type": "object"}', TOOLS, KEY_ORDER),
        ('{"', 'description": "Gets", "name": "a"}', 'name": "a", "description": "Gets"}', TOOLS,
         KEY_ORDER),
        ("assistant\n", "<think>hm</think>Yes", "Yes", None, REASONING),
        ("The cat ", "sat", "ran", None, None),
    ],
)  # fmt: skip
def test_hints(
    before: str, mine: str, theirs: str, region: Region | None, expected: str | None
) -> None:
    assert hints(before, mine, theirs, region) == ([] if expected is None else [expected])
