"""A stand-in for any OpenAI-compatible server: words for tokens, a prefix cache of words, faults on
order.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

Json = dict[str, Any]


@dataclass
class FakeOpenAI:
    """`fault` names what goes wrong; None: nothing."""

    fault: str | None = None
    seen: set[int] = field(default_factory=set)  # one hash per known prefix
    bodies: list[Json] = field(default_factory=list)
    running: int = 0
    most_running: int = 0
    gone: int = 0  # clients that left
    keys: set[str | None] = field(default_factory=set)  # what clients sent as Authorization
    lists: int = 0  # times that the models were asked for
    word_seconds: float = 0.0
    usage_seconds: float = 0.0  # between the last token of a stream and its usage

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_post("/v1/chat/completions", self._generate)
        app.router.add_post("/v1/completions", self._generate)
        return app

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[str]:
        runner = web.AppRunner(self.app(), handler_cancellation=True)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            yield f"http://127.0.0.1:{runner.addresses[0][1]}"
        finally:
            await runner.cleanup()

    async def _models(self, request: web.Request) -> web.Response:
        self.lists += 1
        self.keys.add(request.headers.get("Authorization"))
        return web.json_response({"object": "list", "data": [{"id": "fake", "object": "model"}]})

    async def _metrics(self, request: web.Request) -> web.Response:
        if self.fault == "no metrics":
            raise web.HTTPNotFound
        name = "fake:num_requests_running"
        return web.Response(
            text=f"# TYPE {name} gauge\n{name} {self.running}\n"
            f"# TYPE fake_requests_total counter\nfake_requests_total {len(self.bodies)}\n"
        )

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        try:
            self.keys.add(request.headers.get("Authorization"))
            body = await request.json()
            self.bodies.append(body)
            refused = self._refusal(body)
        except (ValueError, TypeError, RecursionError):
            refused = 500 if self.fault == "falls over garbage" else 400
        if refused:
            return web.json_response(
                {"error": {"message": "no", "type": "t", "param": None, "code": None}},
                status=refused,
            )
        if self.fault == "binary error":
            return web.Response(status=500, body=b"\xff\xfe", content_type="text/plain")
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            return await self._answer(request, body)
        except (asyncio.CancelledError, ConnectionError):
            self.gone += 1
            raise
        finally:
            self.running -= 1

    def _refusal(self, body: Json) -> int | None:
        if body["model"] != "fake":
            return 404
        if body.get("temperature", 1) < 0 or body["max_tokens"] < 1:
            return 400
        if self.fault == "exit" and len(self.bodies) > 20:
            os._exit(9)
        return 503 if self.fault == "overloaded" else None

    async def _answer(self, request: web.Request, body: Json) -> web.StreamResponse:
        prompt = json.dumps(body["messages"]) if "messages" in body else body["prompt"]
        if isinstance(prompt, list):
            prompt = " ".join(map(str, prompt))
        salt = self.running if self.fault == "depends on the batch" else 0
        seed = hashlib.sha256(f"{prompt}{salt}".encode()).hexdigest()
        words = [f"w{seed[i % 60 : i % 60 + 4]} " for i in range(body["max_tokens"])]
        usage = self._usage(prompt.split(), len(words) * body.get("n", 1))
        await asyncio.sleep(self.word_seconds)
        if body.get("stream"):
            return await self._stream(request, body, words, usage)
        choices = [
            self._choice(body, "message", i, "".join(words), "stop")
            for i in range(body.get("n", 1))
        ]
        return web.json_response({"choices": choices, "usage": usage})

    def _usage(self, prompt: list[str], completion_tokens: int) -> Json:
        chain = list(
            itertools.accumulate(prompt, lambda before, word: hash((before, word)), initial=0)
        )
        known = sum(each in self.seen for each in chain[1:-1])
        self.seen.update(chain[1:])
        usage: Json = {"prompt_tokens": len(prompt), "completion_tokens": completion_tokens}
        return (
            usage
            if self.fault == "no cached_tokens"
            else usage | {"prompt_tokens_details": {"cached_tokens": known}}
        )

    def _choice(self, body: Json, key: str, index: int, text: str, finish: str | None) -> Json:
        part = {key: {"content": text}} if "messages" in body else {"text": text}
        return {"index": index, "finish_reason": finish, **part}

    async def _stream(
        self, request: web.Request, body: Json, words: list[str], usage: Json
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for place, word in enumerate(words):
            finish = "length" if place == len(words) - 1 else None
            if self.fault == "cut" and place == 2:
                return response
            if self.fault == "nameless error":
                await response.write(b'data: {"error": {}}\n\n')
                return response
            if self.fault == "error in stream" and place == 2:
                await response.write(b'data: {"error": {"message": "engine died"}}\n\n')
                return response
            choices = [
                self._choice(body, "delta", i, word, finish) for i in range(body.get("n", 1))
            ]
            await response.write(
                f"data: {json.dumps({'choices': choices, 'usage': None})}\n\n".encode()
            )
            await asyncio.sleep(self.word_seconds)
        await asyncio.sleep(self.usage_seconds)
        await response.write(
            f"data: {json.dumps({'choices': [], 'usage': usage})}\n\ndata: [DONE]\n\n".encode()
        )
        return response


async def _main() -> None:
    """As a process of its own: says where it listens as radixserve does, and ends with a signal or
    by its fault.
    """
    async with FakeOpenAI(os.environ.get("FAKE_FAULT")).serve() as url:
        print(f"fake listening on {url}", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_main())
