"""The header that bounds the time of a request."""

from __future__ import annotations

import pytest

from tests.api.conftest import CHAT, GENERATING, MESSAGES, Server, body_for


@pytest.mark.parametrize("path", GENERATING)
@pytest.mark.parametrize("given", ["0", "-1", "nan", "inf", "soon", ""])
async def test_nonsense_is_refused_by_name(server: Server, path: str, given: str) -> None:
    headers = {"x-request-timeout": given}
    status, answer = await server.post(path, body_for(path), headers=headers)
    assert status == 400
    assert "x-request-timeout" in answer["error"]["message"]


@pytest.mark.parametrize("path", GENERATING)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_that_waits_too_long_is_refused_and_computes_nothing_more(
    server: Server, path: str, stream: bool
) -> None:
    server.engine.hold_at = 0
    headers = {"x-request-timeout": "0.05"}
    async with server.session.post(
        server.url + path, json=body_for(path, stream=stream), headers=headers
    ) as response:
        assert response.status == 503
        assert 1 <= int(response.headers["Retry-After"]) <= 60
        error = (await response.json())["error"]
    assert (
        error["type"] == "overloaded_error"
        if path == MESSAGES
        else error["code"] == "request_timeout"
    )
    assert server.engine.live == {}
    assert len(server.engine.aborted) == 1


async def test_a_stream_that_takes_too_long_ends_with_an_error_event(server: Server) -> None:
    server.engine.hold_at = 2
    headers = {"x-request-timeout": "0.2"}
    async with server.session.post(
        server.url + CHAT, json=body_for(CHAT, stream=True), headers=headers
    ) as response:
        assert response.status == 200
        text = await response.text()
    assert "request_timeout" in text
    assert '"finish_reason":"' not in text
    assert server.engine.live == {}


@pytest.mark.parametrize("path", GENERATING)
async def test_enough_time_changes_nothing(server: Server, path: str) -> None:
    headers = {"x-request-timeout": "30.5"}
    assert (await server.post(path, body_for(path), headers=headers))[0] == 200
