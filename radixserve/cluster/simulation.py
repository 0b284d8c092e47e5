"""Servers and gateways without processes, in the time of a trace.

A server computes prompts one after the other at a fixed speed and keeps their blocks in an LRU
cache; what it finds there it does not compute. As it serves in the order of arrival, what it will
find is known when the request comes, so no queue has to be simulated: a request ends its prefill at

    max(now, the end of the one before) + tokens that are not cached / tokens per second

A gateway knows what it sent itself at once, and everything else late: the blocks that a prompt
stored or evicted `delay` seconds after its prefill, and what servers have to do every
`report_seconds`.

Left out: decode steps, which slow down prefill, batches, preemption, K/V of answers. So shares of
hits can be compared with those of real servers, and times only with each other.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from radixserve.cluster.index import PrefixIndex
from radixserve.cluster.policy import Asked, Policy
from radixserve.loadtest.trace import Line


@dataclass(frozen=True, slots=True)
class Cluster:
    """What is simulated."""

    servers: int
    blocks: int  # in the cache of each server
    tokens_per_second: float  # of prefill
    gateways: int = 1
    delay: float = 0.0  # seconds until a gateway hears of a block
    report_seconds: float = 0.5


@dataclass(slots=True)
class Outcome:
    """What came of it."""

    prompt_tokens: int = 0
    hit_tokens: int = 0
    seconds: list[float] = field(default_factory=list)  # to the first token, of each request
    computed: list[int] = field(default_factory=list)  # tokens, of each server

    @property
    def hits(self) -> float:
        """The share of prompt tokens that were not computed."""
        return self.hit_tokens / self.prompt_tokens

    @property
    def imbalance(self) -> float:
        """What the busiest server computed, as a multiple of the mean."""
        return max(self.computed) * len(self.computed) / max(sum(self.computed), 1)


@dataclass(frozen=True, slots=True, order=True)
class _News:
    """What happened to a server's cache, and when gateways hear of it."""

    at: float
    number: int
    server: int
    stored: Sequence[int]
    evicted: Sequence[int]


class _Server:
    def __init__(self, blocks: int) -> None:
        self.free_at = 0.0
        self._most = blocks
        self._blocks: OrderedDict[int, None] = OrderedDict()  # the least recently used one first

    def serve(self, keys: Sequence[int]) -> tuple[int, list[int]]:
        """How many blocks are cached, from the first on, and which are evicted for the others.
        Deeper blocks go first.
        """
        keys = keys[: self._most]
        cached = next((i for i, key in enumerate(keys) if key not in self._blocks), len(keys))
        for key in reversed(keys):
            self._blocks[key] = None
            self._blocks.move_to_end(key)
        num_evicted = max(len(self._blocks) - self._most, 0)
        return cached, [self._blocks.popitem(last=False)[0] for _ in range(num_evicted)]


class _Gateway:
    def __init__(self, policy: Policy, cluster: Cluster) -> None:
        self.index = PrefixIndex(2 * cluster.servers * cluster.blocks)
        self.free_at = [0.0] * cluster.servers  # as far as it knows
        self._policy, self._speed = policy, cluster.tokens_per_second

    def choose(self, line: Line, now: float) -> int:
        """The server that gets a request."""
        seconds = {
            server: _uncached(line, depth) / self._speed
            for server, depth in self.index.depths(line.hash_ids).items()
        }
        whole = line.input_length / self._speed
        asked = Asked(line.hash_ids, whole, {each: whole - left for each, left in seconds.items()})
        waits = [max(free_at - now, 0.0) for free_at in self.free_at]
        chosen = self._policy.choose(asked, waits)
        self.free_at[chosen] = now + waits[chosen] + seconds.get(chosen, whole)
        self.index.store(chosen, line.hash_ids)
        return chosen


def simulate(
    lines: Sequence[Line],
    cluster: Cluster,
    make_policy: Callable[[], Policy],
    step: Callable[[], None] = lambda: None,
) -> Outcome:
    """Serve `lines`, which are in the order of their times; calls `step` after each request."""
    servers = [_Server(cluster.blocks) for _ in range(cluster.servers)]
    gateways = [_Gateway(make_policy(), cluster) for _ in range(cluster.gateways)]
    outcome = Outcome(computed=[0] * cluster.servers)
    news: list[_News] = []
    reported = 0.0
    for number, line in enumerate(lines):
        now = line.seconds
        _tell(gateways, news, now)
        if now - reported >= cluster.report_seconds:
            reported = now
            for gateway in gateways:
                gateway.free_at = [server.free_at for server in servers]
        chosen = gateways[number % cluster.gateways].choose(line, now)
        server = servers[chosen]
        cached, evicted = server.serve(line.hash_ids)
        uncached = _uncached(line, cached)
        server.free_at = max(now, server.free_at) + uncached / cluster.tokens_per_second
        at = server.free_at + cluster.delay
        heapq.heappush(news, _News(at, number, chosen, line.hash_ids[: cluster.blocks], evicted))
        _note(outcome, line, chosen, uncached, server.free_at - now)
        step()
    return outcome


def _uncached(line: Line, cached: int) -> int:
    """Tokens to compute: the last one of a prompt always is."""
    return max(line.input_length - cached * line.block_tokens, 1)


def _tell(gateways: Iterable[_Gateway], news: list[_News], now: float) -> None:
    while news and news[0].at <= now:
        told = heapq.heappop(news)
        for gateway in gateways:
            gateway.index.store(told.server, told.stored)
            gateway.index.remove(told.server, told.evicted)


def _note(outcome: Outcome, line: Line, server: int, uncached: int, seconds: float) -> None:
    outcome.prompt_tokens += line.input_length
    outcome.hit_tokens += line.input_length - uncached
    outcome.seconds.append(seconds)
    outcome.computed[server] += uncached


def spread(lines: Iterable[Line]) -> list[Line]:
    """The requests in the order of their times. Those that have one time, because the trace's clock
    is coarse, are spread evenly over the time to the next.
    """
    ordered = sorted(lines, key=lambda line: line.seconds)
    groups = [list(group) for _, group in groupby(ordered, key=lambda line: line.seconds)]
    ends = [group[0].seconds for group in (*groups[1:], *groups[-1:])]
    return [
        _later(line, (end - line.seconds) * i / len(group))
        for group, end in zip(groups, ends, strict=True)
        for i, line in enumerate(group)
    ]


def copies(lines: Sequence[Line], count: int) -> list[Line]:
    """`count` times the traffic: each copy has blocks of its own, but for those that begin most
    prompts, and comes a little later than the one before.
    """
    if count == 1 or not lines:
        return list(lines)
    first = lines[0].hash_ids[0]
    is_shared = 2 * sum(first in line.hash_ids[:1] for line in lines) > len(lines)
    shared = {first} if is_shared else set()
    gap = (lines[-1].seconds - lines[0].seconds) / len(lines) / count
    made = [
        _later(_renamed(line, copy, count, shared), copy * gap)
        for line in lines
        for copy in range(count)
    ]
    return sorted(made, key=lambda line: line.seconds)


def _renamed(line: Line, copy: int, count: int, shared: set[int]) -> Line:
    ids = tuple(each * count + (0 if each in shared else copy) for each in line.hash_ids)
    lengths = (line.input_length, line.output_length)
    return Line(line.number, line.seconds, *lengths, ids, line.block_tokens)


def _later(line: Line, seconds: float) -> Line:
    lengths = (line.input_length, line.output_length)
    return Line(line.number, line.seconds + seconds, *lengths, line.hash_ids, line.block_tokens)
