"""Compares the policies of eviction: on the prompts of every workload of the load test, and on a
trace beside what is possible at all.

    python benchmarks/bench_eviction.py [--trace FILE] [--repeats 10] [--svg FOLDER]

Nothing is served: prompts go through `radixserve.simulate`. For a workload a word is a token, a
block is 16 of them, answers are made-up words, every request takes a second, and the cache has an
eighth to three quarters of the blocks that the workload has. It runs ten times in a row, each time
with new prompts, because policies that learn need traffic to learn from. Shown is the share of
blocks that hit, in points above or below LRU.

For the trace it prints two limits: MIN, which knows the future, and what a policy could reach that
knows only, but exactly and from the beginning, how soon prompts of one class are used again
(`statistical_limit`).
"""

from __future__ import annotations

import argparse
import heapq
import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from radixserve.cache.policies.table import POLICIES
from radixserve.loadtest import trace
from radixserve.loadtest.session import Session
from radixserve.loadtest.trace import Line
from radixserve.loadtest.workload import Workload, load_workload, names
from radixserve.simulate import command
from radixserve.simulate.minimum import minimum
from radixserve.simulate.replay import Traffic, replay

BLOCK = 16  # words
SHARES = (2, 4, 8, 12)  # sixteenths
BUDGETS = (1000, 5000, 10000)
BIN_SECONDS = 3.0
DRAWN = ("chat", "agent", "shared_system")

Classes = npt.NDArray[np.int64]


def prompts(session: Session) -> Iterator[list[str]]:
    """The words of each request of a session, answers made up."""
    words = [word for message in session.opening for word in message["content"].split()]
    for number, turn in enumerate(session.turns):
        text = turn.text if isinstance(turn.text, str) else " ".join(map(str, turn.text))
        own = text.split()
        yield words + own if turn.endpoint == "chat" else own
        answer = f"{session.name}/{number}"
        words = [*words, *own, *[answer] * int(turn.body.get("max_tokens", 16))]


def lines_of(workload: Workload) -> list[Line]:
    """The requests of a workload in the order in which they would arrive."""
    waiting, ids = deque(workload.sessions), dict[tuple[int, tuple[str, ...]], int]()
    order = itertools.count()
    running = [
        (session.at or 0.0, next(order), prompts(session)) for session in _first(waiting, workload)
    ]
    heapq.heapify(running)
    lines: list[Line] = []
    while running:
        at, _, session = heapq.heappop(running)
        words = next(session, None)
        if words is not None:
            lines.append(Line(len(lines), at, len(words), 1, _blocks(words, ids), BLOCK))
            again = at + 1.0 + workload.load.pause_seconds
            heapq.heappush(running, (again, next(order), session))
        elif waiting:
            heapq.heappush(running, (at, next(order), prompts(waiting.popleft())))
    return lines


def _first(waiting: deque[Session], workload: Workload) -> list[Session]:
    """The sessions that begin without waiting for another to end."""
    closed = workload.load.shape == "closed"
    number = min(workload.load.clients, len(waiting)) if closed else len(waiting)
    return [waiting.popleft() for _ in range(number)]


def _blocks(words: list[str], ids: dict[tuple[int, tuple[str, ...]], int]) -> tuple[int, ...]:
    found, last = [], -1
    for start in range(0, len(words), BLOCK):
        last = ids.setdefault((last, tuple(words[start : start + BLOCK])), len(ids))
        found.append(last)
    return tuple(found)


def long_traffic(name: str, repeats: int) -> Traffic:
    """A workload so many times, one after the other, each with another seed."""
    lines: list[Line] = []
    for seed in range(repeats):
        later = lines[-1].seconds + 1.0 if lines else 0.0
        base = (seed + 1) << 32  # blocks of different seeds are different
        for line in lines_of(load_workload(name, [f"seed={seed + 1}"])):
            ids = tuple(base + each for each in line.hash_ids)
            lines.append(replace(line, seconds=later + line.seconds, hash_ids=ids))
    return Traffic.of(lines)


def compare(name: str, repeats: int) -> None:
    """Print the rows of one workload."""
    traffic = long_traffic(name, repeats)
    for share in SHARES:
        budget = max(share * traffic.num_distinct // repeats // 16, 1)
        hits = {policy: _hits(traffic, policy, budget) for policy in (*POLICIES, "min")}
        cells = [f"{hits[each] - hits['lru']:+.1f}" for each in hits if each != "lru"]
        print("|", " | ".join([name, f"{share}/16", f"{hits['lru']:.1f}", *cells]), "|", flush=True)


def _hits(traffic: Traffic, policy: str, budget: int) -> float:
    if policy == "min":
        return 100 * minimum(traffic, budget, lambda: None).hits
    return 100 * replay(traffic, policy, budget, lambda: None).hits


class Uses:
    """Every use of a block in a trace: when, when next, and what a cache can know of it."""

    def __init__(self, lines: Sequence[Line]) -> None:
        times = np.array([line.seconds for line in lines])
        request = np.repeat(np.arange(len(lines)), [len(line.hash_ids) for line in lines])
        blocks = np.concatenate([np.array(line.hash_ids) for line in lines])
        turn, gap = _history(lines)
        length = np.array([len(line.hash_ids) for line in lines])
        self.end = float(times[-1])
        self.at = times[request]
        self.wait = _waits(blocks, self.at)
        self.turn = np.minimum(turn, 6)[request]
        self.gap = np.digitize(gap, [0, 60, 120, 240])[request]
        self.length = np.minimum(np.log2(length + 1).astype(int), 7)[request]
        starts = np.concatenate([[0], np.cumsum([len(line.hash_ids) for line in lines])[:-1]])
        self.request, self.first = request, starts + (length > 1)  # of each its second block
        self.turn[starts] = 0  # the opening that all share is a class of its own


def _history(lines: Sequence[Line]) -> tuple[Classes, npt.NDArray[np.float64]]:
    """For each request: how many requests continue each other up to it, and the time since the one
    before (-1: none). The first block, which all share, continues nothing.
    """
    owner: dict[int, int] = {}
    turns, gaps = np.ones(len(lines), np.int64), np.full(len(lines), -1.0)
    for number, line in enumerate(lines):
        hits = list(itertools.takewhile(owner.__contains__, line.hash_ids))
        if len(hits) > 1:
            before = owner[hits[-1]]
            turns[number] = turns[before] + 1
            gaps[number] = line.seconds - lines[before].seconds
        owner.update(dict.fromkeys(line.hash_ids, number))
    return turns, gaps


def _waits(blocks: Classes, at: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Seconds from each use of a block to the next one of the same; infinite if there is none."""
    waits, latest = np.full(len(blocks), np.inf), dict[int, float]()
    for index in range(len(blocks) - 1, -1, -1):
        block = int(blocks[index])
        if block in latest:
            waits[index] = latest[block] - at[index]
        latest[block] = float(at[index])
    return waits


def statistical_limit(uses: Uses, classes: Classes, budget: int) -> float:
    """The greatest share of hits with `budget` blocks on average over time, if the law of reuse of
    each class is known, and nothing else of the future.

    Whether to go on keeping a block can depend on its class and age only. At a price for each
    block and second the best choice is found class by class, from the greatest age down; the price
    at which the blocks kept are `budget` on average gives the limit (Lagrange's dual, so it is one
    for every such policy).
    """
    stay = np.minimum(uses.wait, uses.end - uses.at)
    num_bins = int(uses.end / BIN_SECONDS) + 2
    _, inverse = np.unique(classes, return_inverse=True)
    table = np.zeros((2, inverse.max() + 1, num_bins))
    bins = (stay / BIN_SECONDS).astype(int)
    again = np.isfinite(uses.wait)
    np.add.at(table[0], (inverse[again], bins[again]), 1)
    np.add.at(table[1], (inverse, bins), 1)
    hits, seconds = table[0], BIN_SECONDS * table[1][:, ::-1].cumsum(1)[:, ::-1]
    room, low, high = budget * uses.end, 0.0, 1000.0
    for _ in range(60):
        price = (low + high) / 2
        _, kept = _best(hits, seconds, price)
        low, high = (price, high) if kept > room else (low, price)
    gained, kept = _best(hits, seconds, high)
    return (gained + high * (room - kept)) / len(uses.wait)


def _best(
    hits: npt.NDArray[np.float64], seconds: npt.NDArray[np.float64], price: float
) -> tuple[float, float]:
    """Hits and block seconds, if every class is kept up to the age that gains the most."""
    value = np.zeros(len(hits))
    total = np.zeros((2, len(hits)))
    for at in range(hits.shape[1] - 1, -1, -1):
        value = value + hits[:, at] - price * seconds[:, at]
        total = np.where(value > 0, total + np.stack([hits[:, at], seconds[:, at]]), 0)
        value = np.maximum(value, 0)
    gained, kept = total.sum(1)
    return float(gained), float(kept)


def limits(lines: Sequence[Line]) -> None:
    """Print the limits of the trace at `BUDGETS`. The last row shows how much of the one before is
    chance, because the laws are those of this very trace.
    """
    uses = Uses(lines)
    mixed = uses.gap * 8 + uses.length
    chance = np.random.default_rng(0).permutation(mixed[uses.first])[uses.request]
    for label, classes in (
        ("nothing but the age", np.minimum(uses.turn, 1)),
        ("turn", uses.turn),
        ("turn, time since the turn before", uses.turn * 8 + uses.gap),
        ("turn, length", uses.turn * 8 + uses.length),
        ("turn, time since the turn before, length", uses.turn * 64 + mixed),
        ("turn, and another request's time and length", uses.turn * 64 + chance),
    ):
        cells = [f"{100 * statistical_limit(uses, classes, budget):.1f} %" for budget in BUDGETS]
        print("|", " | ".join([label, str(len(np.unique(classes))), *cells]), "|", flush=True)


def main() -> None:
    """Print the tables, and draw the trace's."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--trace", type=Path)
    parser.add_argument("--repeats", type=int, default=10, help="of each workload [10]")
    parser.add_argument("--svg", type=Path, help="folder for pictures")
    chosen = parser.parse_args()
    print("|", " | ".join(["workload", "cache", *POLICIES, "min"]), "|")
    for name in names():
        compare(name, chosen.repeats)
    if chosen.trace is not None:
        lines = list(trace.read(chosen.trace))
        print("\n|", " | ".join(["known of a prompt", "classes", *map(str, BUDGETS)]), "|")
        limits(lines)
    if chosen.svg is not None:
        for name in DRAWN:
            traffic = long_traffic(name, chosen.repeats)
            whole = traffic.num_distinct // chosen.repeats
            shares = [max(whole * share // 16, 1) for share in (1, 2, 4, 6, 8, 12, 16)]
            draw(traffic, shares, f"{name}, {chosen.repeats} times", chosen.svg / f"{name}.svg")
    if chosen.svg is not None and chosen.trace is not None:
        budgets = (500, 1000, 2000, 5000, 10000, 20000, 50000)
        draw(Traffic.of(lines), budgets, chosen.trace.stem, chosen.svg / "trace.svg")


def draw(traffic: Traffic, budgets: Sequence[int], name: str, file: Path) -> None:
    """Draw the hit rates of all policies to a file."""
    results = command.simulate(traffic, list(POLICIES), budgets)
    file.write_text(command.draw(traffic, results, name))


if __name__ == "__main__":
    main()
