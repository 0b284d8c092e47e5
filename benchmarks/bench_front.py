"""How many tokens per second can be streamed when the model costs nothing.

    python benchmarks/bench_front.py [--engine process|none] [--streams 64] [--tokens 400]
                                     [--endpoint chat|completions|responses|messages|tools]

The application runs in this process. With `--engine process` the real engine process stands behind
it, with the model of no cost: the whole way of a token but the forward pass. With `none` it is the
tests' fake engine, which gives each stream one token per turn of the event loop: the front alone.
`tools` is chat with a tool offered, so that the text is parsed; it needs `--engine none`. All
clients run in one other process and only count events. Prints tokens per second of wall time
and microseconds of this process's CPU time per token.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
from aiohttp import web

sys.path.insert(0, str(Path(__file__).parent.parent))

from radixserve.api.app import ApiSettings, make_app
from radixserve.api.context import Api
from radixserve.config import Settings
from radixserve.front.client import ProcessEngine
from radixserve.front.protocol import EngineClient
from radixserve.metrics import Metrics
from tests.fakes import INFO, FakeEngine, byte_tokenizer

PATHS = {
    "chat": "/v1/chat/completions",
    "completions": "/v1/completions",
    "responses": "/v1/responses",
    "messages": "/v1/messages",
    "tools": "/v1/chat/completions",
}
TOOL = {
    "type": "function",
    "function": {
        "name": "look_up",
        "parameters": {"type": "object", "properties": {"word": {"type": "string"}}},
    },
}


@asynccontextmanager
async def engine_process(streams: int, vocab_size: int) -> AsyncIterator[EngineClient]:
    """The real engine with the model of no cost."""
    settings = Settings(fake_model=True, max_running=streams, threads=1, log_level="warning")
    with tempfile.TemporaryDirectory() as folder:
        config = {"vocab_size": vocab_size, "max_position_embeddings": 1 << 20}
        (Path(folder) / "config.json").write_text(json.dumps(config))
        engine = ProcessEngine(
            settings, folder, lambda stats: None, lambda cause: None, lambda: None
        )
        try:
            await engine.start()
            yield engine
        finally:
            await engine.stop()


@asynccontextmanager
async def no_engine() -> AsyncIterator[EngineClient]:
    """The tests' fake engine."""
    yield FakeEngine(
        msgspec.structs.replace(INFO, context_length=1 << 20, max_request_tokens=1 << 20)
    )


async def serve(engine: EngineClient) -> web.AppRunner:
    """The application on a free port."""
    app = make_app(Api.of(engine, byte_tokenizer(), Metrics(), ApiSettings(), ("bench",)))
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    return runner


def request_bytes(args: argparse.Namespace) -> bytes:
    """One streamed request, as it goes over the wire."""
    text = "The quick brown fox jumps over the lazy dog. " * 4
    chat = {"messages": [{"role": "user", "content": text}], "max_tokens": args.tokens}
    asked: dict[str, dict[str, object]] = {
        "chat": chat,
        "tools": chat | {"tools": [TOOL]},
        "completions": {"prompt": text, "max_tokens": args.tokens},
        "messages": chat,
        "responses": {"input": text, "max_output_tokens": args.tokens},
    }
    common = {"model": "bench", "stream": True, "temperature": 0}
    body = json.dumps(common | asked[args.endpoint]).encode()
    head = f"POST {PATHS[args.endpoint]} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


async def read_stream(port: int, request: bytes) -> int:
    """Events of one stream, read to the end of its chunked body; a final [DONE] is not counted."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    num_events, tail = 0, b""
    while not tail.endswith(b"\r\n0\r\n\r\n"):
        data = await reader.read(1 << 16)
        assert data, "the stream ended early"
        num_events += data.count(b"data: {")
        tail = (tail + data)[-64:]
    writer.close()
    return num_events


def run_clients(
    port: int, num_streams: int, request: bytes, results: multiprocessing.Queue[tuple[int, float]]
) -> None:
    """All clients at once; reports events and seconds."""

    async def all_streams() -> int:
        return sum(await asyncio.gather(*(read_stream(port, request) for _ in range(num_streams))))

    started = time.perf_counter()
    results.put((asyncio.run(all_streams()), time.perf_counter() - started))


async def main() -> None:
    """Run and print one measurement."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--engine", choices=["process", "none"], default="process")
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=400)
    parser.add_argument("--endpoint", choices=PATHS, default="chat")
    args = parser.parse_args()
    if args.endpoint == "tools" and args.engine == "process":
        parser.error("the model of no cost has no tokenizer, so no grammar: add --engine none")
    vocab_size = (
        49_152  # as large as the embedded model's: drawing a token costs what it costs there
    )
    async with (
        engine_process(args.streams, vocab_size)
        if args.engine == "process"
        else no_engine() as engine
    ):
        await measure(engine, args)


async def measure(engine: EngineClient, args: argparse.Namespace) -> None:
    """Stream everything once and print the figures."""
    runner = await serve(engine)
    spawn = multiprocessing.get_context("spawn")
    results = spawn.Queue()
    clients = spawn.Process(
        target=run_clients,
        args=(runner.addresses[0][1], args.streams, request_bytes(args), results),
    )
    cpu_before = time.process_time()
    clients.start()
    num_events, seconds = await asyncio.to_thread(results.get)
    cpu = time.process_time() - cpu_before
    await asyncio.to_thread(clients.join)
    await runner.cleanup()
    num_tokens = args.streams * args.tokens
    print(
        f"{args.endpoint}: {args.streams} streams x {args.tokens} tokens, {num_events} "
        f"events, {seconds:.2f} s"
    )
    print(
        f"{num_tokens / seconds:,.0f} tokens/s; {cpu / num_tokens * 1e6:.0f} us of front "
        "CPU per token"
    )


if __name__ == "__main__":
    asyncio.run(main())
