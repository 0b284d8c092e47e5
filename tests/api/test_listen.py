"""Connections: how many, how long they may be idle, what is no HTTP, TLS and socket files, and a
system without files, memory or threads.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import json
import os
import resource
import shutil
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from radixserve.api import listen
from radixserve.api.address import KEPT_FILES, Address, connection_limit, take_address
from radixserve.api.app import ApiSettings, make_app
from radixserve.api.context import Api
from radixserve.api.listen import EXTRA_CONNECTIONS, Listener
from radixserve.config import Settings
from radixserve.defaults import OPENAI
from radixserve.errors import StartupError
from radixserve.metrics import Metrics
from tests.api.conftest import (
    CHAT,
    COMPLETIONS,
    MODEL,
    OPENAI_DIALECT,
    Server,
    body_for,
    reference,
    text_of,
)
from tests.api.test_disconnect import connect, raw_request, until
from tests.fakes import FakeEngine, LocalTokenizer

BOTH = (CHAT, COMPLETIONS)
HEALTH = b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n"


async def assert_serves(server: Server) -> None:
    for path in OPENAI_DIALECT:
        status, answer = await server.post(path, body_for(path))
        assert (status, text_of(path, answer)) == (200, reference(path))


async def answer_to(server: Server, request: bytes) -> tuple[bytes, dict[str, str], bytes]:
    """Status line, headers and body of the answer after which the server closes."""
    reader, writer = await connect(server, request)
    answer = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    status, *lines = head.split(b"\r\n")
    headers = dict(line.decode().lower().split(": ", 1) for line in lines)
    return status, headers, body


@pytest.mark.parametrize(
    ("request_", "status", "code"),
    [
        (b"nonsense\r\n\r\n", 400, "malformed_request"),
        (b"GET / HTTP/9.9\r\n\r\n", 400, "malformed_request"),
        (b"G\x00T / HTTP/1.1\r\nHost: x\r\n\r\n", 400, "malformed_request"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nbad header\r\n\r\n", 400, "malformed_request"),
        (b"GET / HTTP/1.1\r\n\r\n", 400, "malformed_request"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, "malformed_request"),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", 400, "malformed_request"),
        (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 431, "header_too_large"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 9000 + b"\r\n\r\n", 431, "header_too_large"),
        (b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 200 + b"\r\n", 400, "malformed_request"),
    ],
)  # fmt: skip
async def test_what_is_no_http_is_refused_in_the_envelope(
    server: Server, request_: bytes, status: int, code: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "radixserve")
    line, headers, body = await answer_to(server, request_)
    assert line.split()[1] == str(status).encode()
    assert headers["content-type"].startswith("application/json")
    assert headers["server"] == "radixserve"
    assert headers["x-request-id"].startswith("req-")
    assert json.loads(body)["error"]["code"] == code
    assert "aiohttp" not in (str(headers) + body.decode()).lower()
    assert [record.exc_info for record in caplog.records] == [None]
    assert f"status={status} code={code}" in caplog.text
    await assert_serves(server)


class TestDeadlines:
    @pytest.fixture
    def settings(self) -> ApiSettings:
        return ApiSettings(keep_alive_seconds=0.6, header_read_seconds=0.2, lingering_seconds=0.1)

    @pytest.mark.parametrize("sent", [b"", b"POST /v1/completions HTT", HEALTH[:-2]])
    async def test_headers_that_do_not_arrive_end_the_connection(
        self, server: Server, sent: bytes
    ) -> None:
        reader, writer = await connect(server, sent)
        assert await asyncio.wait_for(reader.read(), 3) == b""
        writer.close()
        await assert_serves(server)

    async def test_a_trickle_of_headers_does_not_keep_it_open(self, server: Server) -> None:
        reader, writer = await connect(server, b"GET / HTTP/1.1\r\n")

        async def trickle() -> None:
            while True:
                writer.write(b"X: y\r\n")
                await asyncio.sleep(0.05)

        trickling = asyncio.create_task(trickle())
        with contextlib.suppress(ConnectionError):  # it goes on writing to a closed connection
            assert await asyncio.wait_for(reader.read(), 3) == b""
        trickling.cancel()
        writer.close()

    async def test_half_a_second_request_ends_it_as_well(self, server: Server) -> None:
        reader, writer = await connect(server, HEALTH)
        await reader.readuntil(b"}")
        writer.write(HEALTH[:-2])
        assert await asyncio.wait_for(reader.read(), 3) == b""
        writer.close()

    async def test_an_idle_connection_is_closed_after_the_keep_alive_time(
        self, server: Server
    ) -> None:
        reader, writer = await connect(server, HEALTH)
        await reader.readuntil(b"}")
        await asyncio.sleep(0.35)
        writer.write(HEALTH)
        await reader.readuntil(b"}")
        assert await asyncio.wait_for(reader.read(), 3) == b""
        writer.close()

    @pytest.mark.parametrize("stream", [False, True])
    async def test_a_long_answer_is_not_cut(self, server: Server, stream: bool) -> None:
        server.engine.hold_at = 2
        request = raw_request(COMPLETIONS, body_for(COMPLETIONS, stream=stream))
        reader, writer = await connect(server, request)
        await asyncio.sleep(1.0)
        server.engine.go_on.set()
        end = b"[DONE]" if stream else b"}}"
        assert b"200 OK" in await asyncio.wait_for(reader.readuntil(end), 5)
        writer.close()


class TestMany:
    @pytest.fixture
    async def server(self, tokenizer: LocalTokenizer) -> AsyncIterator[Server]:
        engine, metrics = FakeEngine(), Metrics()
        settings = ApiSettings(lingering_seconds=0.1)
        api = Api.of(engine, tokenizer, metrics, settings, (MODEL,))
        app = make_app(api)
        address = take_address(Settings(port=0, max_connections=4))
        listener = Listener(app, address)
        await listener.start()
        async with aiohttp.ClientSession() as session:
            yield Server(engine, metrics, session, address.url, address.port, api)  # type: ignore[arg-type]
        engine.go_on.set()
        await listener.close()

    async def test_the_longest_idle_connection_makes_room(self, server: Server) -> None:
        crowd = []
        for _ in range(4):
            reader, writer = await connect(server, HEALTH)
            await reader.readuntil(b"}")
            crowd.append((reader, writer))
        crowd[0][1].write(HEALTH)  # now the second is the longest idle one
        await crowd[0][0].readuntil(b"}")
        await assert_serves(server)
        assert await asyncio.wait_for(crowd[1][0].read(), 3) == b""
        crowd[0][1].write(HEALTH)
        await asyncio.wait_for(crowd[0][0].readuntil(b"}"), 3)
        for _, writer in crowd:
            writer.close()

    async def test_a_crowd_that_sends_nothing_keeps_nobody_out(self, server: Server) -> None:
        crowd = [await connect(server, b"GET") for _ in range(40)]
        await assert_serves(server)
        for _, writer in crowd:
            writer.close()

    async def test_health_is_told_while_all_connections_are_busy(self, server: Server) -> None:
        server.engine.hold_at = 2
        request = raw_request(COMPLETIONS, body_for(COMPLETIONS))
        busy = [await connect(server, request) for _ in range(4)]
        await until(lambda: len(server.engine.live) == 4)
        line, headers, _ = await answer_to(server, HEALTH)
        assert line.split()[1] == b"200"
        line, headers, body = await answer_to(server, request)
        assert (line.split()[1], headers["retry-after"]) == (b"503", "1")
        assert json.loads(body)["error"]["code"] == "server_is_overloaded"
        server.engine.go_on.set()
        for reader, writer in busy:
            assert b"200 OK" in await asyncio.wait_for(reader.readuntil(b"}}"), 5)
            writer.close()
        server.engine.hold_at = None
        await assert_serves(server)

    async def test_beyond_the_extra_ones_the_others_wait(
        self, server: Server, caplog: pytest.LogCaptureFixture
    ) -> None:
        server.engine.hold_at = 2
        request = raw_request(COMPLETIONS, body_for(COMPLETIONS))
        busy = [await connect(server, request) for _ in range(4)]
        await until(lambda: len(server.engine.live) == 4)
        slow = [await connect(server, request[:-3]) for _ in range(EXTRA_CONNECTIONS + 20)]
        asked = asyncio.create_task(answer_to(server, HEALTH))
        assert (await asyncio.wait_for(asked, 10))[0].split()[1] == b"200"
        server.engine.go_on.set()
        for reader, _ in busy:
            await asyncio.wait_for(reader.readuntil(b"}}"), 5)
        for _, writer in (*busy, *slow):
            writer.close()
        server.engine.hold_at = None
        await assert_serves(server)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
async def test_without_files_idle_connections_make_room_and_the_log_stays_small(
    server: Server, number: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As the kernel refuses: nothing is accepted while more than five connections are open."""
    accept, open_now = socket.socket.accept, [0]
    listener: Any = next(each for each in _listeners() if each._address.port == server.port)

    def refusing(listening: socket.socket) -> Any:
        if listener.num_connections >= 5:
            open_now[0] += 1
            raise OSError(number, os.strerror(number))
        return accept(listening)

    monkeypatch.setattr(socket.socket, "accept", refusing)
    crowd = [await connect(server, b"GET") for _ in range(30)]
    for _ in range(5):
        await assert_serves(server)
        await asyncio.sleep(0.05)
    assert open_now[0] >= 10
    lines = [each for each in caplog.records if "cannot be accepted" in each.getMessage()]
    assert len(lines) == 1
    for _, writer in crowd:
        writer.close()


def _listeners() -> Iterator[Listener]:
    # isinstance would look through weak proxies, which raise if their object is gone
    return (each for each in gc.get_objects() if type(each) is Listener and each._sockets)


def test_the_limit_of_connections_leaves_files_for_the_rest() -> None:
    files, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))
        assert connection_limit(0) == 512 - KEPT_FILES
        assert connection_limit(100) == 100
        with pytest.raises(StartupError, match="max_connections=500 does not fit the limit of 512"):
            connection_limit(500)
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
        with pytest.raises(StartupError, match="leaves none for connections"):
            connection_limit(0)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "error",
    [MemoryError(), RuntimeError("can't start new thread"), BlockingIOError(errno.EAGAIN, "fork"),
     OSError(errno.EMFILE, "too many open files"), OSError(errno.ENOMEM, "no memory")],
    ids=["memory", "thread", "process", "files", "errno"],
)  # fmt: skip
@pytest.mark.parametrize("path", OPENAI_DIALECT)
async def test_what_the_system_refuses_is_a_503_to_come_back_from(
    server: Server, path: str, error: Exception, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(*_: object, **__: object) -> Any:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(LocalTokenizer, "stream", exhausted)
        async with server.session.post(
            server.url + path, json=body_for(path, stream=stream)
        ) as response:
            assert (response.status, response.headers["Retry-After"]) == (503, "1")
            assert (await response.json())["error"]["code"] == "server_is_overloaded"
    await assert_serves(server)


async def served(tokenizer: LocalTokenizer, settings: Settings) -> tuple[Listener, Address]:
    app = make_app(
        Api.of(FakeEngine(), tokenizer, Metrics(), ApiSettings.of(settings, OPENAI), (MODEL,))
    )
    address = take_address(settings)
    listener = Listener(app, address)
    await listener.start()
    return listener, address


async def test_a_socket_file_is_listened_on_and_gone_afterwards(
    tokenizer: LocalTokenizer, tmp_path: Path
) -> None:
    path = tmp_path / "server.sock"
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(path))
    stale.close()
    listener, address = await served(tokenizer, Settings(uds=str(path)))
    assert address.url == f"unix:{path}"
    connector = aiohttp.UnixConnector(str(path))
    async with aiohttp.ClientSession(connector=connector) as session:
        async with session.post("http://any/v1/completions", json=body_for(COMPLETIONS)) as answer:
            assert text_of(COMPLETIONS, await answer.json()) == reference(COMPLETIONS)
        with pytest.raises(StartupError, match="a server listens there already"):
            take_address(Settings(uds=str(path)))
    await listener.close()
    assert not path.exists()


def test_a_file_that_is_no_socket_stays(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("data")
    with pytest.raises(StartupError, match="is no socket"):
        take_address(Settings(uds=str(path)))
    assert path.read_text() == "data"
    with pytest.raises(StartupError, match="cannot listen on"):
        take_address(Settings(uds=str(tmp_path / ("x" * 200))))


def test_a_port_in_use_is_refused_with_what_helps() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(StartupError) as refused:
            take_address(Settings(host="127.0.0.1", port=port))
    said = str(refused.value)
    assert said.startswith(f"cannot listen on 127.0.0.1:{port}: Address already in use; --port ")
    assert "attempting" not in said


def test_a_port_is_held_before_clients_can_connect_and_given_back() -> None:
    first = take_address(Settings(port=0))
    port = first.port
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))
    second = take_address(Settings(port=port))  # nobody listens yet
    first.listen()
    socket.create_connection(("127.0.0.1", port)).close()
    with pytest.raises(StartupError, match=r"cannot listen on port \d+: Address already in use"):
        second.listen()
    second.close()
    first.close()
    first.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make a certificate with")
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
               "-subj", "/CN=localhost", "-keyout", str(key), "-out", str(cert),
               "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True)
    return cert, key


async def test_https_is_served_and_plain_http_on_it_harms_nobody(
    tokenizer: LocalTokenizer, certificate: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    cert, key = map(str, certificate)
    settings = Settings(port=0, ssl_certfile=cert, ssl_keyfile=key)
    listener, address = await served(tokenizer, settings)
    url = address.url
    assert url == f"https://127.0.0.1:{address.port}"
    reader, writer = await asyncio.open_connection("127.0.0.1", address.port)
    writer.write(HEALTH)
    assert b"HTTP/" not in await asyncio.wait_for(reader.read(), 5)
    writer.close()
    trust = ssl.create_default_context(cafile=cert)
    async with aiohttp.ClientSession() as session:
        for path in BOTH:
            async with session.post(url + path, json=body_for(path), ssl=trust) as answer:
                assert text_of(path, await answer.json()) == reference(path)
    await listener.close()
    assert [each.getMessage() for each in caplog.records if each.levelname == "ERROR"] == []


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_an_unusable_certificate_is_one_sentence(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "cert.pem"
    if content is not None:
        path.write_text(content)
    with pytest.raises(StartupError, match=r"cannot use the certificate in .*cert.pem: ") as caught:
        take_address(Settings(port=0, ssl_certfile=str(path)))
    assert "\n" not in str(caught.value)


def test_a_key_without_a_certificate_is_refused() -> None:
    with pytest.raises(StartupError, match="without ssl_certfile"):
        take_address(Settings(port=0, ssl_keyfile="key.pem"))


def test_listening_beyond_this_machine_without_a_key_is_warned_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    for quiet in (Settings(), Settings(host="0.0.0.0", api_key="k"), Settings(uds="/x")):
        listen.warn_if_open(quiet)
    assert caplog.messages == []
    listen.warn_if_open(Settings(host="0.0.0.0"))
    assert "listening on 0.0.0.0 without an API key" in caplog.text
