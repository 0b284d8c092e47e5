"""How many tokens per second the HTTP front can stream when the engine costs nothing.

    python benchmarks/bench_front.py [--streams 64] [--tokens 400] [--endpoint chat|completions]

The application runs in this process over the tests' fake engine, which gives each stream one token per turn of the
event loop; all clients run in one other process and only count events. Prints tokens per second of wall time and
microseconds of this process's CPU time per token.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import sys
import time
from pathlib import Path

import msgspec
from aiohttp import web

sys.path.insert(0, str(Path(__file__).parent.parent))

from radixserve.api.app import ApiSettings, make_app
from radixserve.metrics import Metrics
from tests.fakes import INFO, FakeEngine, byte_tokenizer

PATHS = {"chat": "/v1/chat/completions", "completions": "/v1/completions"}


async def serve(args: argparse.Namespace) -> web.AppRunner:
    """The application on a free port."""
    engine = FakeEngine(msgspec.structs.replace(INFO, context_length=1 << 20, num_slots=1 << 20))
    app = make_app(engine, byte_tokenizer(), Metrics(), ApiSettings(), "bench")
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    return runner


def request_bytes(args: argparse.Namespace) -> bytes:
    """One streamed request, as it goes over the wire."""
    text = "The quick brown fox jumps over the lazy dog. " * 4
    asked = {"messages": [{"role": "user", "content": text}]} if args.endpoint == "chat" else {"prompt": text}
    body = json.dumps({"model": "bench", "stream": True, "max_tokens": args.tokens, **asked}).encode()
    head = f"POST {PATHS[args.endpoint]} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


async def read_stream(port: int, request: bytes) -> int:
    """Events of one stream, the final [DONE] not counted."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    num_events, tail = 0, b""
    while b"data: [DONE]" not in tail:
        data = await reader.read(1 << 16)
        assert data, "the stream ended early"
        num_events += data.count(b"data: {")
        tail = (tail + data)[-64:]
    writer.close()
    return num_events


def run_clients(port: int, num_streams: int, request: bytes, results: multiprocessing.Queue[tuple[int, float]]) -> None:
    """All clients at once; reports events and seconds."""

    async def all_streams() -> int:
        return sum(await asyncio.gather(*(read_stream(port, request) for _ in range(num_streams))))

    started = time.perf_counter()
    results.put((asyncio.run(all_streams()), time.perf_counter() - started))


async def main() -> None:
    """Run and print one measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=400)
    parser.add_argument("--endpoint", choices=PATHS, default="chat")
    args = parser.parse_args()
    runner = await serve(args)
    spawn = multiprocessing.get_context("spawn")
    results = spawn.Queue()
    clients = spawn.Process(
        target=run_clients, args=(runner.addresses[0][1], args.streams, request_bytes(args), results)
    )
    cpu_before = time.process_time()
    clients.start()
    num_events, seconds = await asyncio.to_thread(results.get)
    cpu = time.process_time() - cpu_before
    await asyncio.to_thread(clients.join)
    await runner.cleanup()
    num_tokens = args.streams * args.tokens
    print(f"{args.endpoint}: {args.streams} streams x {args.tokens} tokens, {num_events} events, {seconds:.2f} s")
    print(f"{num_tokens / seconds:,.0f} tokens/s; {cpu / num_tokens * 1e6:.0f} us of front CPU per token")


if __name__ == "__main__":
    asyncio.run(main())
