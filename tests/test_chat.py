from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from tests.signals import usual_signals

CHAT = """
import argparse, sys
from radixserve import chat
parser = argparse.ArgumentParser()
chat.add_arguments(parser)
sys.exit(chat.main(parser.parse_args()))
"""
USAGE = {
    "prompt_tokens": 31,
    "completion_tokens": 3,
    "prompt_tokens_details": {"cached_tokens": 24},
}


class FakeServer:
    """Answers as the script says; keeps every request body."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.parts = ["Paris", " is", " it."]
        self.endless = False
        self.left = asyncio.Event()

    async def models(self, _: web.Request) -> web.Response:
        return web.json_response(
            {"object": "list", "data": [{"id": "tiny-model", "object": "model"}]}
        )

    async def chat(self, request: web.Request) -> web.StreamResponse:
        self.bodies.append(await request.json())
        self.keys.append(request.headers.get("Authorization"))
        if self.bodies[-1]["messages"][-1]["content"] == "too long":
            error = {
                "message": "the prompt is longer than the context",
                "type": "invalid_request_error",
            }
            return web.json_response({"error": error}, status=400)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for part in self.parts:
            await send(
                response, {"choices": [{"index": 0, "delta": {"content": part}}], "usage": None}
            )
        if self.endless:
            await self._until_left(response)
        await send(
            response,
            {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "usage": None},
        )
        await send(response, {"choices": [], "usage": USAGE})
        await response.write(b"data: [DONE]\n\n")
        return response

    async def _until_left(self, response: web.StreamResponse) -> None:
        self.endless = False
        try:
            for _ in range(1000):
                await send(response, {"choices": [{"index": 0, "delta": {"content": "."}}]})
                await asyncio.sleep(0.02)
        except (ConnectionError, asyncio.CancelledError):
            self.left.set()
            raise


async def send(response: web.StreamResponse, event: dict[str, Any]) -> None:
    await response.write(b"data: " + json.dumps(event).encode() + b"\n\n")


class Served(FakeServer):
    url: str


@pytest.fixture
async def fake() -> AsyncIterator[Served]:
    served = Served()
    app = web.Application()
    app.router.add_get("/v1/models", served.models)
    app.router.add_post("/v1/chat/completions", served.chat)
    async with TestServer(app, host="127.0.0.1") as server:
        served.url = f"http://127.0.0.1:{server.port}"
        yield served


async def start(*options: str) -> asyncio.subprocess.Process:
    pipe = asyncio.subprocess.PIPE
    with usual_signals():
        return await asyncio.create_subprocess_exec(
            sys.executable, "-c", CHAT, *options, stdin=pipe, stdout=pipe, stderr=pipe
        )


async def talk(lines: str, *options: str) -> tuple[int | None, str]:
    process = await start(*options)
    out, err = await asyncio.wait_for(process.communicate(lines.encode()), 60)
    assert err == b""
    return process.returncode, out.decode()


@pytest.mark.parametrize(
    ("environment", "typed", "asked"),
    [
        ({"PYTHONIOENCODING": "ascii"}, b"hi\n", "hi"),
        ({"PYTHONIOENCODING": "cp1252"}, b"caf\xe9?\n", "caf\xe9?"),
        ({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, b"hi\n", "hi"),
        ({"LC_ALL": "C.UTF-8"}, b"caf\xe9?\n", "caf\ufffd?"),
        ({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, b"\xe9\n", "\ufffd"),
    ],
)
async def test_any_encoding_of_the_terminal_is_survived(
    environment: dict[str, str], typed: bytes, asked: str, fake: Served
) -> None:
    fake.parts = ["Zo\u00eb \u2603 ", "\u4e2d."]
    inherited = {
        k: v for k, v in os.environ.items() if not k.startswith(("LC_", "LANG", "PYTHONI"))
    }
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "radixserve", "chat", "--url", fake.url),
        stdin=pipe,
        stdout=pipe,
        stderr=pipe,
        env=inherited | environment,
    )
    out, err = await asyncio.wait_for(process.communicate(typed + b"/quit\n"), 60)
    assert (process.returncode, err) == (0, b"")
    assert fake.bodies[0]["messages"][0]["content"] == asked
    assert b"prompt tokens, 24 cached" in out


async def test_an_answer_is_shown_with_what_it_cost(fake: Served) -> None:
    status, out = await talk("The capital of France?\n", "--url", fake.url)
    assert status == 0
    answer, cost = out.splitlines()[-2:]
    assert answer == "Paris is it."
    assert cost.startswith("31 prompt tokens, 24 cached · TTFT ")
    assert cost.endswith(" tokens/s")
    assert out.startswith(f"tiny-model at {fake.url}. /reset ")
    assert fake.bodies == [
        {
            "messages": [{"role": "user", "content": "The capital of France?"}],
            "stream": True,
            "stream_options": {"include_usage": True},
            "model": "tiny-model",
        }
    ]


async def test_options_reach_the_server(fake: Served) -> None:
    options = (
        "--model",
        "other",
        "--system",
        "Be brief.",
        "--max-tokens",
        "5",
        "--temperature",
        "0",
    )
    await talk("hello\n", "--url", fake.url + "/v1", *options)
    [body] = fake.bodies
    assert (body["model"], body["max_tokens"], body["temperature"]) == ("other", 5, 0.0)
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}


async def test_the_key_is_the_flag_or_the_variable_and_never_that_of_another_service(
    fake: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "not-yours")
    await talk("hello\n", "--url", fake.url)
    monkeypatch.setenv("RADIXSERVE_API_KEY", "from-variable")
    await talk("hello\n", "--url", fake.url)
    await talk("hello\n", "--url", fake.url, "--api-key", "from-flag")
    assert fake.keys == [None, "Bearer from-variable", "Bearer from-flag"]


async def test_the_conversation_grows_until_it_is_reset(fake: Served) -> None:
    status, _ = await talk(
        "one\n\ntwo\n/reset\nthree\n/quit\nnever\n", "--url", fake.url, "--system", "S"
    )
    assert status == 0
    said = [[message["content"] for message in body["messages"]] for body in fake.bodies]
    assert said == [["S", "one"], ["S", "one", "Paris is it.", "two"], ["S", "three"]]


async def test_a_refusal_is_shown_and_forgotten(fake: Served) -> None:
    status, out = await talk("too long\nshort\n", "--url", fake.url)
    assert status == 0
    assert "the prompt is longer than the context\n" in out
    assert [message["content"] for message in fake.bodies[1]["messages"]] == ["short"]


async def test_a_refused_last_question_makes_the_exit_status_1(fake: Served) -> None:
    assert (await talk("too long\n", "--url", fake.url))[0] == 1


async def test_escape_sequences_of_the_model_do_not_reach_the_terminal(fake: Served) -> None:
    fake.parts = ["a\x1b[2J", "b\tc\n", "[bold]d[/bold] 🦄"]
    _, out = await talk("hello\n", "--url", fake.url)
    assert "a\ufffd[2Jb\tc\n[bold]d[/bold] 🦄\n" in out


async def test_ctrl_c_stops_the_answer_and_the_talk_goes_on(fake: Served) -> None:
    fake.endless = True
    process = await start("--url", fake.url)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b"first\n")
    await asyncio.wait_for(process.stdout.readuntil(b"Paris is it.."), 60)
    process.send_signal(signal.SIGINT)
    await asyncio.wait_for(fake.left.wait(), 30)
    out, err = await asyncio.wait_for(process.communicate(b"second\n"), 60)
    assert (process.returncode, err) == (0, b"")
    assert "stopped · TTFT" in out.decode()
    assert "Paris is it.\n31 prompt tokens" in out.decode()
    kept = fake.bodies[1]["messages"]
    assert [message["role"] for message in kept] == ["user", "assistant", "user"]
    assert kept[1]["content"].startswith("Paris is it..")


async def test_no_server_there_is_said_plainly(unused_tcp_port: int) -> None:
    url = f"http://127.0.0.1:{unused_tcp_port}"
    status, out = await talk("hello\n", "--url", url)
    assert status == 1
    assert out == (
        f"no server answers at {url}; start one with: radixserve serve, "
        "or name the address of another with --url\n"
    )


async def test_something_that_is_not_a_model_server_is_said_plainly() -> None:
    app = web.Application()
    async with TestServer(app, host="127.0.0.1") as server:
        status, out = await talk("hello\n", "--url", f"127.0.0.1:{server.port}")
    assert status == 1
    assert out == "the server answers 404 Not Found\n"


async def test_an_answer_cut_off_by_the_server_is_an_error(fake: Served) -> None:
    async def cut_off(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await send(response, {"choices": [{"index": 0, "delta": {"content": "half"}}]})
        return response

    app = web.Application()
    app.router.add_get("/v1/models", fake.models)
    app.router.add_post("/v1/chat/completions", cut_off)
    async with TestServer(app, host="127.0.0.1") as server:
        status, out = await talk("hello\n", "--url", f"http://127.0.0.1:{server.port}")
    assert status == 1
    assert "half\nthe server ended the answer before it was complete\n" in out


async def test_an_error_in_the_middle_of_an_answer_is_shown(fake: Served) -> None:
    async def fail(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await send(response, {"error": {"message": "the engine stopped", "type": "server_error"}})
        return response

    app = web.Application()
    app.router.add_get("/v1/models", fake.models)
    app.router.add_post("/v1/chat/completions", fail)
    async with TestServer(app, host="127.0.0.1") as server:
        status, out = await talk("hello\n", "--url", f"http://127.0.0.1:{server.port}")
    assert (status, "the engine stopped\n" in out) == (1, True)


async def test_a_wrong_address_is_refused() -> None:
    status, out = await talk("", "--url", "ftp://somewhere")
    assert status == 1
    assert out == "'ftp://somewhere' is not an http:// or https:// address\n"
