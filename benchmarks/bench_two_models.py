"""Two models under one K/V budget: how fast memory follows conversations that move from one model
to the other and back.

    python benchmarks/bench_two_models.py
    python benchmarks/bench_two_models.py --a PATH --b PATH --budget 4GiB

The conversations of one model take `--fill` of the budget, more than its equal part. Their turns
are answered one after the other, with model a, then with b, then with a again, `--seconds` each.
Prints for each phase how long it took until the model had the memory that its conversations need,
and until a round of them was found in the cache; the hit share of the first and last round; errors
and moves.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from radixserve.sizes import parse_size

MIB = 1 << 20
CHECK_SECONDS = 0.2
FOUND = 0.9  # hit share of a round that was found


def call(url: str, body: Any = None) -> Any:
    """The JSON answer; with `body` to a POST of it."""
    data = None if body is None else json.dumps(body).encode()
    asked = urllib.request.Request(url, data, {"content-type": "application/json"})
    with urllib.request.urlopen(asked, timeout=300) as answer:
        return json.load(answer)


@contextmanager
def serving(models: dict[str, str], budget: int, least: int) -> Iterator[str]:
    """The address of a server with these models."""
    flags = [f"--model={name}={model}" for name, model in models.items()]
    sizes = [f"--kv-budget={budget}", f"--kv-budget-min={least}"]
    command = [sys.executable, "-m", "radixserve", "serve", "--port=0", *flags, *sizes]
    with tempfile.TemporaryFile("w+") as log:
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        try:
            assert server.stdout is not None
            yield next(line for line in server.stdout if "listening on" in line).split()[-1]
        finally:
            server.terminate()
            server.wait(60)


@dataclass
class Traffic:
    """Conversations with one model, which go on turn by turn until `stop`."""

    url: str
    model: str
    prompts: list[str]
    hits: list[tuple[int, int]] = field(default_factory=list)  # cached and prompt tokens of a turn
    errors: list[str] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        while not self.stop.is_set():
            for prompt in self.prompts:
                if self.stop.is_set():
                    return
                self._turn(prompt)

    def _turn(self, prompt: str) -> None:
        body = {"model": self.model, "prompt": prompt, "max_tokens": 2, "temperature": 0}
        try:
            usage = call(f"{self.url}/v1/completions", body)["usage"]
        except (urllib.error.URLError, OSError, KeyError) as error:
            self.errors.append(str(error))
        else:
            cached = usage["prompt_tokens_details"]["cached_tokens"]
            self.hits.append((cached, usage["prompt_tokens"]))

    @property
    def needed(self) -> int:
        """Tokens of all conversations; 0 before each had a turn."""
        first = self.hits[: len(self.prompts)]
        return sum(tokens for _, tokens in first) if len(first) == len(self.prompts) else 0

    @property
    def is_found(self) -> bool:
        """Whether the last round was found in the cache."""
        last = self.hits[-len(self.prompts) :]
        return len(self.hits) > len(self.prompts) and share(last) > FOUND


def share(hits: list[tuple[int, int]]) -> float:
    return sum(cached for cached, _ in hits) / max(1, sum(tokens for _, tokens in hits))


def phase(url: str, model: str, prompts: list[str], seconds: float) -> None:
    """Let traffic go to `model` for so long, and print what happened."""
    traffic, began = Traffic(url, model, prompts), time.monotonic()
    size, there, found = slot_bytes(url, model), "not", "not"
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(traffic.run)
        while (now := time.monotonic() - began) < seconds:
            part = call(f"{url}/config?model={model}")["shared_kv_budget"]["parts"][model]
            if there == "not" and 0 < size * traffic.needed <= part:
                there = f"after {now:.1f} s"
            if found == "not" and traffic.is_found:
                found = f"after {now:.1f} s"
            time.sleep(CHECK_SECONDS)
        traffic.stop.set()
        running.result()
    count = len(prompts)
    first, last = share(traffic.hits[:count]), share(traffic.hits[-count:])
    print(
        f"{model}: memory there {there}, a round found {found}; {len(traffic.hits)} turns, hit "
        f"share of the first {count} {first:.0%}, of the last {last:.0%}; {part / MIB:.0f} MiB; "
        f"{len(traffic.errors)} errors",
        flush=True,
    )


def slot_bytes(url: str, model: str) -> int:
    told = call(f"{url}/version")["models"]
    return int(next(each["engine"]["slot_bytes"] for each in told if each["model"] == model))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--a", default="auto", help="a model (default: the embedded one)")
    parser.add_argument("--b", default="auto", help="the other one")
    parser.add_argument("--budget", type=parse_size, default=96 * MIB)
    parser.add_argument("--fill", type=float, default=0.75, help="share of the budget")
    parser.add_argument("--tokens", type=int, default=150, help="words of a conversation")
    parser.add_argument("--seconds", type=float, default=30.0, help="of each phase")
    given = parser.parse_args()
    with serving({"a": given.a, "b": given.b}, given.budget, given.budget // 8) as url:
        for model in ("a", "b", "a"):
            room = int(given.fill * given.budget) // slot_bytes(url, model)
            count = max(1, room // given.tokens)
            prompts = [f"{number}:" + " word" * given.tokens for number in range(count)]
            phase(url, model, prompts, given.seconds)
        moves = call(f"{url}/config?model=a")["shared_kv_budget"]["moves"]
        for move in reversed(moves):
            where = f"{move['giver']} -> {move['taker']}"
            print(f"  {move['bytes'] / MIB:6.1f} MiB {where}: {move['why']}")


if __name__ == "__main__":
    main()
