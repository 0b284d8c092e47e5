"""A server whose budgets move by themselves while another process takes the machine's memory away.

    python benchmarks/bench_shortage.py --hide 16GiB -- --kv-budget 1GiB --kv-budget-max 2GiB \\
        --host-budget 512MiB --host-budget-max 1GiB

Requests run all the time, with prompts that fill both budgets. After some seconds another process
takes memory until `--leave` is free, and holds it for `--hold` seconds. So that a machine with
other work can be used, the server takes it to have `--hide` less memory than it has, and `--leave`
counts so, too. Prints memory and budgets every two seconds, and the changes and failed requests at
the end.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

from radixserve.machine import THIS
from radixserve.sizes import parse_size

MIB = 1 << 20
_HOG = """
import mmap, sys, time
memory = mmap.mmap(-1, int(sys.argv[1]))
for at in range(0, len(memory), 4096):
    memory[at] = 1
time.sleep(float(sys.argv[2]))
"""


_SERVE = """
import sys
from radixserve.machine import Machine
hidden = int(sys.argv.pop(1))
free, limit = Machine.free_bytes, Machine.memory_limit
Machine.free_bytes = lambda self: max(0, free(self) - hidden)
Machine.memory_limit = lambda self: limit(self) - hidden
from radixserve.cli import main
sys.exit(main())
"""


def call(url: str, body: Any = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    asked = urllib.request.Request(url, data, {"content-type": "application/json"})
    with urllib.request.urlopen(asked, timeout=120) as answer:
        return json.load(answer)


class Clients:
    """Requests one after the other, with random prompts of a fixed set."""

    def __init__(self, url: str, num_prompts: int) -> None:
        self._url, self._num_prompts = url + "/v1/completions", num_prompts
        self.answered = 0
        self.failed: list[str] = []
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        chance = random.Random(1)
        while not self.stop.is_set():
            words = random.Random(chance.randrange(self._num_prompts))
            prompt = [words.randrange(1000, 20000) for _ in range(1000)]
            try:
                call(self._url, {"prompt": prompt, "max_tokens": 2, "temperature": 0})
                self.answered += 1
            except Exception as error:
                self.failed.append(repr(error))


def resident_mib(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) >> 10
    return 0


def engine_of(server: int) -> int:
    """The largest child process of the server."""
    children = Path(f"/proc/{server}/task/{server}/children").read_text().split()
    return max((int(pid) for pid in children), key=resident_mib)


def watch(url: str, engine: int, hidden: int, seconds: float, begun: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        settings = call(url + "/config")["settings"]
        budgets = [
            f"{name} {settings[name]['value'] >> 20:,} MiB"
            for name in ("kv_budget", "host_budget")
            if name in settings
        ]
        free, resident = (THIS.free_bytes() - hidden) >> 20, resident_mib(engine)
        print(
            f"{time.monotonic() - begun:5.0f} s: {free:,} MiB free, engine {resident:,} MiB, "
            + ", ".join(budgets),
            flush=True,
        )
        time.sleep(2)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--leave", default="150MiB", help="memory that stays free")
    arguments.add_argument("--hide", default="0", help="memory that the server does not see")
    arguments.add_argument("--hold", type=float, default=20, help="seconds")
    arguments.add_argument("--before", type=float, default=30, help="seconds")
    arguments.add_argument("--after", type=float, default=20, help="seconds")
    arguments.add_argument("--prompts", type=int, default=40)
    arguments.add_argument("serve", nargs="*", help="arguments of the server")
    given = arguments.parse_args()
    hidden = parse_size(given.hide)
    with tempfile.TemporaryFile("w+") as log:
        command = [sys.executable, "-c", _SERVE, str(hidden), "serve", "--port", "0", *given.serve]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        assert server.stdout is not None
        try:
            url = next(line.split()[-1] for line in server.stdout if "listening on" in line)
            measure(url, server.pid, hidden, given)
        finally:
            server.terminate()
            server.wait()
        log.seek(0)
        print("".join(line for line in log if "auto changed" in line or "WARNING" in line))


def measure(url: str, server: int, hidden: int, given: argparse.Namespace) -> None:
    clients, begun, engine = Clients(url, given.prompts), time.monotonic(), engine_of(server)
    clients.thread.start()
    hog = None
    try:
        watch(url, engine, hidden, given.before, begun)
        size = max(0, THIS.free_bytes() - hidden - parse_size(given.leave))
        print(f"another process takes {size / MIB:,.0f} MiB for {given.hold:.0f} s")
        hog = subprocess.Popen([sys.executable, "-c", _HOG, str(size), str(given.hold)])
        watch(url, engine, hidden, given.hold, begun)
        hog.wait()
        print("it has ended")
        watch(url, engine, hidden, given.after, begun)
    finally:
        if hog is not None:
            hog.kill()
        clients.stop.set()
        clients.thread.join()
    print(
        f"{clients.answered} requests answered, {len(clients.failed)} failed {clients.failed[:3]}"
    )


if __name__ == "__main__":
    main()
