"""Clients that leave, at every moment, and clients that stop reading: their work stops, others'
goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
import struct
from typing import Any

import msgspec
import pytest
from aiohttp import web

from radixserve.api.app import ApiSettings
from tests.api.conftest import (
    CHAT,
    COMPLETIONS,
    GENERATING,
    MESSAGES,
    RESPONSES,
    Server,
    body_for,
    limit_of,
    reference,
    text_of,
)
from tests.fakes import repeat_prompt


def raw_request(path: str, body: Any) -> bytes:
    data = json.dumps(body).encode()
    return f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data


async def connect(
    server: Server, request: bytes
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(request)
    await writer.drain()
    return reader, writer


def leave(writer: asyncio.StreamWriter, reset: bool) -> None:
    """Close the connection, with RST instead of FIN if `reset`."""
    if reset:
        linger = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        writer.transport.abort()
    else:
        writer.close()


async def until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


async def assert_forgotten(server: Server, num_requests: int) -> None:
    """All requests of the client are aborted, it is recorded once, and others are served."""
    await until(lambda: server.engine.live == {} and server.metrics.records)
    assert sorted(server.engine.aborted) == sorted(request.id for request in server.engine.seen)
    assert len(server.engine.aborted) == num_requests
    assert [record.outcome for record in server.metrics.records] == ["abort"]
    server.engine.go_on.set()
    for path in GENERATING:
        status, answer = await server.post(path, body_for(path))
        assert (status, text_of(path, answer)) == (200, reference(path))


@pytest.mark.parametrize("reset", [False, True], ids=["fin", "rst"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("hold_at", [0, 2])
@pytest.mark.parametrize(
    ("path", "n"),
    [(CHAT, 1), (CHAT, 2), (COMPLETIONS, 1), (COMPLETIONS, 2), (RESPONSES, 1), (MESSAGES, 1)],
)
async def test_a_client_that_leaves_stops_its_work(
    server: Server, path: str, hold_at: int, stream: bool, n: int, reset: bool
) -> None:
    server.engine.hold_at = hold_at
    reader, writer = await connect(server, raw_request(path, body_for(path, stream=stream, n=n)))
    await server.engine.held.wait()
    if stream and hold_at:
        await reader.readuntil(b"\n\n")
    leave(writer, reset)
    await assert_forgotten(server, n)


@pytest.mark.parametrize("path", GENERATING)
async def test_a_client_that_leaves_while_tokens_flow_stops_its_work(
    server: Server, path: str
) -> None:
    body = body_for(path, text="x", stream=True) | {limit_of(path): 490}
    server.engine.hold_at = 400
    reader, writer = await connect(server, raw_request(path, body))
    await reader.readuntil(b"data: ")
    leave(writer, reset=True)
    await assert_forgotten(server, 1)


@pytest.mark.parametrize("path", GENERATING)
async def test_a_client_that_leaves_before_its_body_is_there_reaches_no_engine(
    server: Server, path: str
) -> None:
    request = raw_request(path, body_for(path))
    _, writer = await connect(server, request[:-5])
    await asyncio.sleep(0.05)
    leave(writer, reset=False)
    await until(lambda: server.metrics.records)
    assert server.engine.seen == []
    assert [record.outcome for record in server.metrics.records] == ["abort"]


@pytest.mark.parametrize("path", GENERATING)
async def test_one_client_leaving_does_not_touch_another(server: Server, path: str) -> None:
    server.engine.hold_at = 2
    _, leaving = await connect(server, raw_request(path, body_for(path, stream=True)))
    await server.engine.held.wait()
    staying = asyncio.create_task(server.post(path, body_for(path)))
    await until(lambda: len(server.engine.live) == 2)
    leave(leaving, reset=True)
    await until(lambda: len(server.engine.live) == 1)
    server.engine.go_on.set()
    status, answer = await staying
    assert (status, text_of(path, answer)) == (200, reference(path))


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What an operator would take for a fault."""
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("path", GENERATING)
async def test_a_client_found_gone_by_a_write_is_no_fault(
    server: Server, path: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A write may find out before the handler is cancelled."""
    write = web.StreamResponse.write

    async def found_gone(response: web.StreamResponse, data: bytes) -> None:
        await write(response, data)
        raise ConnectionResetError("Cannot write to closing transport")

    with monkeypatch.context() as patch:
        patch.setattr(web.StreamResponse, "write", found_gone)
        _, writer = await connect(server, raw_request(path, body_for(path, stream=True)))
        await until(lambda: server.metrics.records)
    await asyncio.sleep(0.05)  # for aiohttp to say what it thinks of it
    assert told(caplog) == []
    await assert_forgotten(server, 1)
    writer.close()


class TestSlowClients:
    @pytest.fixture
    def settings(self) -> ApiSettings:
        return ApiSettings(client_write_seconds=0.2, body_read_seconds=0.2, lingering_seconds=0.1)

    @pytest.mark.parametrize("path", GENERATING)
    async def test_a_client_that_stops_reading_is_dropped_and_delays_nobody(
        self, server: Server, path: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        endless = [65] * 200_000
        server.engine.answer = lambda request: (
            endless if request.sampling.max_tokens > 1000 else repeat_prompt(request)
        )
        assert server.engine.info is not None
        server.engine.info = msgspec.structs.replace(
            server.engine.info, context_length=1 << 20, max_request_tokens=1 << 20
        )
        body = body_for(path, stream=True) | {limit_of(path): 200_000}
        body |= {"logprobs": 5} if path == COMPLETIONS else {}
        connection = socket.create_connection(("127.0.0.1", server.port))
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall(raw_request(path, body))
        await until(lambda: server.engine.live)
        status, answer = await server.post(path, body_for(path))
        assert (status, text_of(path, answer)) == (200, reference(path))
        await until(lambda: len(server.metrics.records) == 2)
        connection.close()
        assert {record.outcome for record in server.metrics.records} == {"length", "abort"}
        assert server.engine.aborted == [server.engine.seen[0].id]
        assert told(caplog) == []

    async def test_a_client_that_does_not_read_the_end_is_dropped(
        self, server: Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def stalled(response: web.StreamResponse, data: bytes = b"") -> None:
            await asyncio.Event().wait()

        monkeypatch.setattr(web.StreamResponse, "write_eof", stalled)
        reader, writer = await connect(
            server, raw_request(COMPLETIONS, body_for(COMPLETIONS, stream=True))
        )
        with contextlib.suppress(ConnectionError):
            await asyncio.wait_for(reader.read(), 10)
        writer.close()
        assert [record.outcome for record in server.metrics.records] == ["abort"]

    async def test_a_body_that_does_not_arrive_is_refused_in_time(self, server: Server) -> None:
        reader, writer = await connect(server, raw_request(CHAT, body_for(CHAT))[:-5])
        answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b'"code":"request_timeout"' in answer
        writer.close()


async def test_http_1_0_pipelining_and_expect_are_served(server: Server) -> None:
    data = raw_request(COMPLETIONS, body_for(COMPLETIONS))
    reader, writer = await connect(server, data.replace(b"HTTP/1.1", b"HTTP/1.0"))
    assert b'"text":"abca"' in await reader.read()
    writer.close()
    reader, writer = await connect(
        server, data + data.replace(b"Host: x", b"Host: x\r\nConnection: close")
    )
    assert (await reader.read()).count(b'"text":"abca"') == 2
    writer.close()
    head, _, body = data.replace(
        b"Host: x", b"Host: x\r\nExpect: 100-continue\r\nConnection: close"
    ).partition(b"\r\n\r\n")
    reader, writer = await connect(server, head + b"\r\n\r\n")
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(body)
    assert b'"text":"abca"' in await reader.read()
    writer.close()
    stream = raw_request(COMPLETIONS, body_for(COMPLETIONS, stream=True)).replace(
        b"HTTP/1.1", b"HTTP/1.0"
    )
    reader, writer = await connect(server, stream)
    assert (await reader.read()).endswith(b"data: [DONE]\n\n")
    writer.close()
