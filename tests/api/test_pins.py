"""POST /cache/pin, GET /cache/pins and DELETE /cache/pin/{id} over the fake engine."""

from __future__ import annotations

import time
from typing import Any

import pytest

from radixserve.errors import NotFound
from radixserve.prefix import pack, unpack
from radixserve.questions import ListPins, Pin, PinList, Pinned, PinState, Unpin
from radixserve.text.templates import ChatTemplate
from tests.api.conftest import GENERATING, Server, body_for
from tests.fakes import TEMPLATE, LocalTokenizer

PIN = "/cache/pin"


async def call(server: Server, method: str, path: str, **more: Any) -> tuple[int, Any]:
    async with server.session.request(method, server.url + path, **more) as response:
        return response.status, await response.json()


@pytest.mark.parametrize(
    ("method", "path"), [("POST", PIN), ("GET", "/cache/pins"), ("DELETE", f"{PIN}/pin_1")]
)
async def test_only_administrators_may_pin(server: Server, method: str, path: str) -> None:
    headers = {"X-Forwarded-For": "192.0.2.7"}
    status, answer = await call(server, method, path, headers=headers)
    assert (status, answer["error"]["code"]) == (403, "admin_required")
    assert not server.engine.asked


@pytest.mark.parametrize("path", GENERATING)
async def test_the_prompt_of_any_body_is_pinned(server: Server, path: str) -> None:
    body = body_for(path)
    await server.post(path, body)
    (request,) = server.engine.seen
    status, answer = await server.post(PIN, body | {"ttl": 60})
    assert status == 200
    (asked,) = server.engine.asked
    assert isinstance(asked, Pin)
    assert (asked.packed, asked.namespace) == (pack(request.prompt_ids), request.namespace)
    assert (asked.seconds, asked.renews, asked.node) == (60.0, True, None)
    assert answer.pop("expires") == pytest.approx(time.time() + 60, abs=30)
    assert answer == {"id": "pin_1", "status": "accepted", "tokens": 4, "wanted": 4, "why": ""}


async def test_the_generation_prompt_is_not_pinned_unless_it_is_asked_for(
    server: Server, tokenizer: LocalTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = TEMPLATE + "{% if add_generation_prompt %}<turn>assistant:{% endif %}"
    template = ChatTemplate(tokenizer.tokenizer._loaded, text)
    monkeypatch.setattr(tokenizer.tokenizer, "template", template)
    body = {"messages": [{"role": "system", "content": "Be kind."}], "ttl": 60}
    pinned = []
    for more in ({}, {"add_generation_prompt": True}):
        await server.post(PIN, body | more)
        asked = server.engine.asked[-1]
        assert isinstance(asked, Pin)
        pinned.append(bytes(each % 256 for each in unpack(asked.packed)))
    assert pinned == [b"\x01system: Be kind.\n", b"\x01system: Be kind.\n\x01assistant:"]


async def test_token_ids_and_nodes_are_pinned_until_a_time(server: Server) -> None:
    until = time.time() + 3600
    assert (await server.post(PIN, {"tokens": [97, 98], "until": until}))[0] == 200
    assert (await server.post(PIN, {"node": 5, "until": until}))[0] == 200
    of_tokens, of_node = server.engine.asked
    assert isinstance(of_tokens, Pin)
    assert isinstance(of_node, Pin)
    assert (of_tokens.packed, of_tokens.node) == (pack([97, 98]), None)
    assert (of_node.packed, of_node.node) == (b"", 5)
    assert not of_tokens.renews
    assert of_tokens.seconds == pytest.approx(3600, abs=30)
    assert of_tokens.id != of_node.id


async def test_a_pin_that_is_refused_has_no_id(server: Server) -> None:
    server.engine.answers[Pin] = Pinned(status="refused", wanted=2, why="The cache is off.")
    status, answer = await server.post(PIN, {"tokens": [97, 98], "ttl": 1})
    assert status == 200
    assert answer == {
        "id": None,
        "status": "refused",
        "tokens": 0,
        "wanted": 2,
        "why": "The cache is off.",
        "expires": None,
    }


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"tokens": [97]}, "ttl"),
        ({"tokens": [97], "ttl": 0}, "ttl"),
        ({"tokens": [97], "ttl": -1}, "ttl"),
        ({"tokens": [97], "ttl": 30 * 86400 + 1}, "ttl"),
        ({"tokens": [97], "ttl": 1e300}, "ttl"),
        ({"tokens": [97], "ttl": 10**40}, "ttl"),
        ({"tokens": [97], "ttl": "1h"}, "ttl"),
        ({"tokens": [97], "ttl": True}, "ttl"),
        ({"tokens": [97], "until": 12}, "until"),
        ({"tokens": [97], "until": 1e12}, "until"),
        ({"tokens": [97], "ttl": 60, "until": 2e9}, "until"),
        ({"tokens": [], "ttl": 60}, "tokens"),
        ({"tokens": "abc", "ttl": 60}, "tokens"),
        ({"tokens": [10**9], "ttl": 60}, "tokens[0]"),
        ({"tokens": [97], "prompt": "a", "ttl": 60}, "prompt"),
        ({"node": 5, "tokens": [97], "ttl": 60}, "node"),
        ({"node": "5", "ttl": 60}, "node"),
        ({"node": 0, "ttl": 60}, "node"),
        ({"prompt": ["a", "b"], "ttl": 60}, "prompt"),
        ({"ttl": 60}, "messages"),
    ],
)
async def test_a_wrong_body_is_refused_by_name(
    server: Server, body: dict[str, Any], param: str
) -> None:
    status, answer = await server.post(PIN, body)
    assert (status, answer["error"]["param"]) == (400, param)
    assert not server.engine.asked


@pytest.mark.parametrize("ttl", [30 * 86400 + 1, 1e16, 10**400])
async def test_a_pin_that_would_last_too_long_is_told_the_most(server: Server, ttl: float) -> None:
    _, answer = await server.post(PIN, {"tokens": [97], "ttl": ttl})
    assert "at most 2592000 seconds (30 days)" in answer["error"]["message"]


async def test_pins_are_listed_and_ended(server: Server) -> None:
    state = PinState(
        id="pin_1",
        namespace="public",
        tokens=3,
        wanted=5,
        seconds_left=60.0,
        ttl=None,
        hits=2,
        first_tokens=[97, 98, 99],
    )
    server.engine.answers[ListPins] = PinList([state])
    status, answer = await call(server, "GET", "/cache/pins")
    (shown,) = answer["pins"]
    assert status == 200
    assert shown.pop("expires") == pytest.approx(time.time() + 60, abs=30)
    assert shown == {
        "id": "pin_1",
        "namespace": "public",
        "tokens": 3,
        "wanted": 5,
        "ttl": None,
        "hits": 2,
        "tenant": None,
        "text": "abc",
    }
    status, answer = await call(server, "DELETE", f"{PIN}/pin_1")
    assert (status, answer) == (200, {"id": "pin_1", "tokens": 4})
    assert server.engine.asked == [ListPins(), Unpin(id="pin_1")]
    server.engine.answers[Unpin] = NotFound("There is no such pin (any more).", code="not_found")
    assert (await call(server, "DELETE", f"{PIN}/pin_2"))[0] == 404
