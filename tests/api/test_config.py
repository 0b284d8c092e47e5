"""GET and PUT /config over the fake engine: who may call them, what they answer and refuse."""

from __future__ import annotations

import json
from typing import Any

import pytest

from radixserve.errors import Unavailable
from radixserve.questions import Configure, Configured
from tests.api.conftest import CHAT, Server, body_for
from tests.fakes import INFO

SLOT = INFO.slot_bytes


async def put(server: Server, body: Any, **more: Any) -> tuple[int, Any]:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    async with server.session.put(server.url + "/config", data=raw, **more) as response:
        return response.status, await response.json()


@pytest.mark.parametrize("method", ["GET", "PUT"])
async def test_only_an_administrator_may_see_and_change_settings(
    server: Server, method: str
) -> None:
    headers = {"X-Forwarded-For": "192.0.2.7"}
    async with server.session.request(method, server.url + "/config", headers=headers) as answer:
        assert answer.status == 403
        assert (await answer.json())["error"]["code"] == "admin_required"
    assert not server.engine.asked


async def test_a_change_is_answered_with_all_settings_and_what_it_did(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    did = Configured(evicted_tokens={"device": 40}, excess_bytes={"device": 64})
    server.engine.answers[Configure] = did
    asked = {"kv_budget": 100 * SLOT, "max_queue": 9, "why": "lunch\nbreak"}
    status, answer = await put(server, asked)
    assert status == 200
    assert answer["evicted_tokens"] == {"device": 40}
    assert answer["excess_bytes"] == {"device": 64}
    assert server.engine.asked == [Configure(kv_budget=100 * SLOT)]
    status, shown = await server.get("/config")
    assert (status, shown["settings"]) == (200, answer["settings"])
    assert shown["settings"]["kv_budget"] == {
        "value": 100 * SLOT,
        "at_start": 4096 * SLOT,
        "min": 64 * SLOT,
        "max": 4096 * SLOT,
        "changed_by": "default",
        "why": "lunch break",
    }
    assert "why" not in shown["settings"]["max_running"]
    assert shown["settings"]["max_queue"]["value"] == 9
    async with server.session.get(server.url + "/metrics") as page:
        text = await page.text()
    for name in ("kv_budget", "max_queue"):
        assert f'radixserve_setting_changes_total{{by="admin",setting="{name}"}} 1.0' in text


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({}, "kv_budget", "missing_required_parameter"),
        ({"why": "no reason"}, "kv_budget", "missing_required_parameter"),
        ({"max_queue": 5, "port": 1}, "port", "unsupported_parameter"),
        ({"max_queue": 5, "nonsense": 1}, "nonsense", "unknown_parameter"),
        ({"max_queue": 0}, "max_queue", "invalid_value"),
        ({"max_queue": 5, "why": 3}, "why", "invalid_type"),
        ({"max_queue": 5, "why": "x" * 201}, "why", "string_above_max_length"),
        ([1], None, "invalid_json"),
        (b"", None, "invalid_json"),
        (b"{", None, "invalid_json"),
        (b"[" * 10_000, None, "invalid_json"),
        (b'{"max_queue": 1e999}', "[...]", "invalid_value"),
        (b'{"max_queue": NaN}', None, "invalid_json"),
        (b'{"max_queue": ' + b"9" * 5000 + b"}", None, None),
    ],
)
async def test_a_bad_body_is_refused_and_changes_nothing(
    server: Server, body: Any, param: str | None, code: str | None
) -> None:
    status, answer = await put(server, body)
    assert status == 400
    assert code is None or (answer["error"]["param"], answer["error"]["code"]) == (param, code)
    assert not server.engine.asked
    assert (await server.get("/config"))[1]["settings"]["max_queue"]["value"] == 256
    status, _ = await server.post(CHAT, body_for(CHAT))
    assert status == 200


async def test_a_web_page_must_declare_the_body(server: Server) -> None:
    headers = {"Origin": "https://example.com", "Content-Type": "text/plain"}
    status, answer = await put(server, {"max_queue": 5}, headers=headers)
    assert (status, answer["error"]["code"]) == (415, "unsupported_content_type")


async def test_a_large_body_is_refused(server: Server) -> None:
    status, _ = await put(server, {"why": "x" * 100_000})
    assert status == 413


async def test_without_an_answer_of_the_engine_nothing_has_changed(server: Server) -> None:
    server.engine.answers[Configure] = Unavailable("The engine did not answer in time.")
    status, _ = await put(server, {"max_running": 5, "max_queue": 5})
    assert status == 503
    settings = (await server.get("/config"))[1]["settings"]
    assert settings["max_queue"]["value"] == 256


@pytest.mark.parametrize("reason", ["draining", "restarting", "failing"])
async def test_settings_are_shown_in_every_state(server: Server, reason: str) -> None:
    server.engine.unready_reason = reason
    status, _ = await server.get("/config")
    assert status == 200


async def test_an_unknown_parameter_is_refused(server: Server) -> None:
    status, answer = await server.get("/config?name=kv_budget")
    assert status == 400
    assert answer["error"]["message"] == "Unknown parameter 'name'; there are none here."
