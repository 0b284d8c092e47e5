"""How long does a server take to start, and to serve again after its engine was killed?

    python benchmarks/bench_start.py [--times 5] [-- more options of radixserve serve]

Starts a server again and again: seconds from the command to /health/ready answering 200, and the
part until the port answers at all. Then, without and with a spare engine: the engine of a server is
killed (SIGKILL) under a stream, once its spare is ready; seconds from the kill to
/health/ready and to the stream's next event, and what the spare takes. Medians and the worst.

The compiled kernels, the model's files and the result of the load check must be in the caches:
start the server once before.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from soak_readings import engine_pid

NUM_TOKENS = 300
BEFORE_KILL = 20  # events of the stream
WAIT_SECONDS = 300.0
POLL_SECONDS = 0.01
SPARE = "radix-spare"  # the name of its process


class Started:
    """A server that was started, and how long that took."""

    def __init__(self, options: Sequence[str]) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.url = f"http://127.0.0.1:{free.getsockname()[1]}"
        port = self.url.rpartition(":")[2]
        command = [sys.executable, "-m", "radixserve", "serve", "--port", port]
        self.began = time.perf_counter()
        self.process = subprocess.Popen(
            [*command, "--log-level", "error", *options], stdout=subprocess.DEVNULL
        )
        self.answered = self._until((200, 503)) - self.began
        self.ready = self._until((200,)) - self.began

    def stop(self) -> None:
        self.process.send_signal(signal.SIGINT)
        self.process.wait()

    def kill(self) -> tuple[float, float]:
        """Kill the engine under a stream; seconds to ready and to the stream's next event."""
        arrivals: list[float] = []
        stream = threading.Thread(target=self._stream, args=(arrivals,))
        stream.start()
        while len(arrivals) < BEFORE_KILL:
            time.sleep(POLL_SECONDS)
        engine = engine_pid(self.process.pid)
        assert engine is not None, "it serves the stream"
        killed = time.perf_counter()
        os.kill(engine, signal.SIGKILL)
        self._until((503,))
        ready = self._until((200,))
        stream.join()
        return ready - killed, next(each for each in arrivals if each > ready) - killed

    def spare(self) -> int:
        """The process id of the spare, once it has imported everything and sleeps."""
        while True:
            for pid in self._children():
                name = Path(f"/proc/{pid}/comm").read_text().strip()
                if name == SPARE and not _works(pid):
                    return pid
            time.sleep(POLL_SECONDS)

    def _children(self) -> list[int]:
        pid = self.process.pid
        return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def _until(self, wanted: tuple[int, ...]) -> float:
        """The moment when /health/ready answers with a status of `wanted`."""
        while time.perf_counter() - self.began < WAIT_SECONDS:
            if self.process.poll() is not None:
                sys.exit("the server ended")
            if self._status() in wanted:
                return time.perf_counter()
            time.sleep(POLL_SECONDS)
        sys.exit(f"/health/ready did not answer {wanted} in {WAIT_SECONDS:.0f} s")

    def _status(self) -> int:
        try:
            with urllib.request.urlopen(f"{self.url}/health/ready", timeout=5) as response:
                return int(response.status)
        except urllib.error.HTTPError as error:
            with error:
                return error.code
        except OSError:
            return 0

    def _stream(self, arrivals: list[float]) -> None:
        with urllib.request.urlopen(f"{self.url}/v1/models") as response:
            model = json.load(response)["data"][0]["id"]
        asked = {"model": model, "prompt": "Once upon a time", "max_tokens": NUM_TOKENS}
        body = json.dumps(asked | {"stream": True, "temperature": 0, "ignore_eos": True}).encode()
        request = urllib.request.Request(
            f"{self.url}/v1/completions", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request) as lines:
            arrivals += (time.perf_counter() for line in lines if line.startswith(b"data: {"))


def _works(pid: int) -> bool:
    """Whether a process uses processor time within a second."""
    before = _processor_seconds(pid)
    time.sleep(1.0)
    return _processor_seconds(pid) > before


def _processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def own_bytes(pid: int) -> int:
    """Memory of a process that no other process shares."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    kib = (int(line.split()[1]) for line in lines if line.startswith("Private_"))
    return 1024 * sum(kib)


@contextmanager
def started(options: Sequence[str]) -> Iterator[Started]:
    server = Started(options)
    try:
        yield server
    finally:
        server.stop()


def starts(times: int, options: Sequence[str]) -> None:
    found = []
    for _ in range(times):
        with started(options) as server:
            found.append((server.answered, server.ready))
    answered, ready = zip(*found, strict=True)
    print(f"start: the port answers after {_told(answered)}, ready after {_told(ready)}")


def kills(times: int, mode: str, options: Sequence[str]) -> None:
    found = []
    with started([*options, "--spare-engine", mode]) as server:
        for _ in range(times):
            if mode == "on":
                spare = server.spare()
                told = f"{own_bytes(spare) / 2**20:.0f} MiB of its own"
                print(f"  spare: {told}, {_processor_seconds(spare):.1f} s of processor time")
            found.append(server.kill())
    ready, event = zip(*found, strict=True)
    print(f"kill, spare {mode}: ready after {_told(ready)}, next token after {_told(event)}")


def _told(seconds: Sequence[float]) -> str:
    return f"{statistics.median(seconds):.2f} s (at most {max(seconds):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("options", nargs="*", help="of radixserve serve")
    chosen = parser.parse_args()
    starts(chosen.times, chosen.options)
    for mode in ("off", "on"):
        kills(chosen.times, mode, chosen.options)


if __name__ == "__main__":
    main()
