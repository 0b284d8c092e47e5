"""What a stream is on the wire: charset, comments while nothing comes, and its end for HTTP/1.0."""

from __future__ import annotations

import asyncio
import json
import re

import pytest

from radixserve.api.app import ApiSettings
from tests.api.conftest import OPENAI_DIALECT, RESPONSES, Server, body_for, with_choices
from tests.api.test_disconnect import connect, raw_request


@pytest.mark.parametrize("path", OPENAI_DIALECT)
async def test_a_stream_names_its_charset(server: Server, path: str) -> None:
    async with server.session.post(server.url + path, json=body_for(path, stream=True)) as response:
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        await response.read()


@with_choices
async def test_a_stream_to_an_http_1_0_client_with_keep_alive_ends(
    server: Server, path: str, n: int
) -> None:
    request = raw_request(path, body_for(path, stream=True, n=n))
    request = request.replace(b"HTTP/1.1", b"HTTP/1.0")
    request = request.replace(b"Host: x", b"Host: x\r\nConnection: keep-alive")
    reader, writer = await connect(server, request)
    answer = await asyncio.wait_for(reader.read(), 10)
    assert answer.endswith(b"}\n\n" if path == RESPONSES else b"data: [DONE]\n\n")
    assert b"keep-alive" not in answer.lower()
    writer.close()


@pytest.mark.parametrize("path", OPENAI_DIALECT)
async def test_an_http_1_0_client_keeps_its_connection_after_a_body_with_length(
    server: Server, path: str
) -> None:
    request = raw_request(path, body_for(path)).replace(b"HTTP/1.1", b"HTTP/1.0")
    request = request.replace(b"Host: x", b"Host: x\r\nConnection: keep-alive")
    reader, writer = await connect(server, request)
    for _ in range(2):
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r")[0])
        assert json.loads(await reader.readexactly(length))["usage"]
        writer.write(request)
    writer.close()


class TestSilence:
    @pytest.fixture
    def settings(self) -> ApiSettings:
        return ApiSettings(stream_comment_seconds=0.05)

    @pytest.mark.parametrize("hold_at", [0, 2])
    @with_choices
    async def test_a_silent_stream_gets_comments_and_then_the_same_events(
        self, server: Server, path: str, hold_at: int, n: int
    ) -> None:
        body = body_for(path, stream=True, n=n, seed=1)
        async with server.session.post(server.url + path, json=body) as response:
            plain = (await response.text()).split("\n\n")
        server.engine.hold_at = hold_at
        async with server.session.post(server.url + path, json=body) as response:
            assert response.status == 200
            await asyncio.sleep(0.2)
            server.engine.go_on.set()
            held = (await response.text()).split("\n\n")
        comments = [event for event in held if event.startswith(":")]
        assert 2 <= len(comments) <= 5
        assert "\n" not in "".join(comments)
        events = sorted(self._without_id(each) for each in held if each not in comments)
        assert events == sorted(self._without_id(each) for each in plain)
        if hold_at == 0:
            assert held[0].startswith(":")
        assert [self._without_id(each) for each in held[-2:]] == [self._without_id(plain[-2]), ""]

    def _without_id(self, event: str) -> str:
        """The event without what differs between requests."""
        ids = re.compile(r'"(id|item_id)":"[^"]*"|"(created|created_at|completed_at)":[0-9]+')
        return ids.sub("", event)

    @pytest.mark.parametrize("path", OPENAI_DIALECT)
    async def test_a_failure_after_a_comment_is_an_event(self, server: Server, path: str) -> None:
        server.engine.hold_at = server.engine.fail_at = 0
        body = body_for(path, stream=True)
        async with server.session.post(server.url + path, json=body) as response:
            assert response.status == 200
            server.engine.go_on.set()
            *_, last = (await response.text()).strip().split("\n\n")
        name, _, data = last.rpartition("data: ")
        event = json.loads(data)
        if path == RESPONSES:
            assert name == "event: response.failed\n"
            assert event["response"]["error"]["code"] == "server_error"
        else:
            assert event["error"]["code"] == "generation_failed"

    @pytest.mark.parametrize("path", OPENAI_DIALECT)
    async def test_an_answer_that_is_not_streamed_keeps_its_status(
        self, server: Server, path: str
    ) -> None:
        server.engine.hold_at = server.engine.fail_at = 0
        asked = asyncio.create_task(server.post(path, body_for(path)))
        await asyncio.sleep(0.2)
        server.engine.go_on.set()
        status, answer = await asked
        assert (status, answer["error"]["code"]) == (500, "generation_failed")

    @pytest.mark.parametrize("path", OPENAI_DIALECT)
    async def test_a_client_that_leaves_while_it_gets_comments_stops_its_work(
        self, server: Server, path: str
    ) -> None:
        server.engine.hold_at = 0
        reader, writer = await connect(server, raw_request(path, body_for(path, stream=True)))
        await reader.readuntil(b": ")
        await reader.readuntil(b"\n\n")
        writer.close()
        async with asyncio.timeout(10):
            while server.engine.live or not server.metrics.records:
                await asyncio.sleep(0.01)
        assert [record.outcome for record in server.metrics.records] == ["abort"]
