"""When requests are refused because too many wait: a simulated server under load, without time."""

from __future__ import annotations

import heapq
import logging
import random
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec
import pytest

from radixserve.config import Settings
from radixserve.engine.counters import BACKLOG_TOKENS, PREFILL_RATE
from radixserve.front.backlog import Ahead, Backlog
from radixserve.front.overload import QUIET_SECONDS, Overload
from radixserve.step import EngineStats

SEATS = 16
PROMPT_TOKENS = 120
ALWAYS_LONG = Settings(overload_queue_seconds=60.0)


@dataclass
class Server:
    """A server that computes `capacity` requests per second, and what became of the requests.

    Tenants take turns. The estimate and the refusals are those of the front.
    """

    capacity: float
    limits: Settings = field(default_factory=Settings)
    now: float = 0.0
    served: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    longest_wait: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._random = random.Random(7)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._lines: dict[str, deque[tuple[float, Callable[[], None]]]] = {}
        self._running = self._serial = 0
        self._backlog = Backlog(lambda: self.now)
        self.overload = Overload(lambda: self.now)
        self.at(0.0, self._report)

    @property
    def waiting(self) -> Counter[str]:
        return Counter({tenant: len(line) for tenant, line in self._lines.items() if line})

    def at(self, time: float, do: Callable[[], None]) -> None:
        self._serial += 1
        heapq.heappush(self._events, (time, self._serial, do))

    def run(self, until: float) -> None:
        while self._events[0][0] <= until:
            self.now, _, do = heapq.heappop(self._events)
            do()
        self.now = until

    def ask(self, tenant: str = "a", then: Callable[[], None] = lambda: None) -> None:
        """A request comes; `then` is called once it is served."""
        ahead = self._backlog.ahead(tenant, self.waiting)
        if self.overload.refusal(tenant, ahead, self.waiting, self.limits):
            self.refused[tenant] += 1
            return
        self._backlog.sent(PROMPT_TOKENS)
        self._lines.setdefault(tenant, deque()).append((self.now, then))
        self._begin()

    def open_loop(self, times: float, seconds: float, tenant: str = "a") -> None:
        """Requests at so many times the capacity from now on, whatever becomes of them."""
        time = self.now
        while time < self.now + seconds:
            self.at(time, lambda: self.ask(tenant))
            time += self._random.expovariate(times * self.capacity)

    def closed_loop(self, clients: int, tenant: str = "a") -> None:
        """Clients that send their next request when the one before is served."""
        for _ in range(clients):
            self._client(tenant)

    def _client(self, tenant: str) -> None:
        self.ask(tenant, lambda: self._client(tenant))

    def recovery(self) -> float:
        """Seconds from now until a request would begin at once."""
        began = self.now
        while self._running == SEATS:
            self.run(self.now + 0.1)
        return self.now - began

    def _begin(self) -> None:
        while self._running < SEATS and self.waiting:
            tenant = next(iter(self.waiting))
            came, then = self._lines[tenant].popleft()
            self._lines[tenant] = self._lines.pop(tenant)  # the others are next
            self.longest_wait[tenant] = max(self.longest_wait[tenant], int(self.now - came))
            self._compute(tenant, then)

    def _compute(self, tenant: str, then: Callable[[], None]) -> None:
        self._running += 1
        seconds = SEATS / self.capacity * self._random.uniform(0.5, 1.5)
        self.at(self.now + seconds, lambda: self._end(tenant, then))

    def _end(self, tenant: str, then: Callable[[], None]) -> None:
        self._running -= 1
        self.served[tenant] += 1
        self._begin()
        self._backlog.ended(others_wait=bool(self.waiting))
        then()

    def _report(self) -> None:
        tokens, rate = PROMPT_TOKENS * self.waiting.total(), 2 * PROMPT_TOKENS * self.capacity
        numbers = {BACKLOG_TOKENS.key(): tokens, PREFILL_RATE.key(): rate}
        self._backlog.report(EngineStats(numbers=numbers))
        self.at(self.now + 0.1, self._report)


@pytest.mark.parametrize("times", [2.0, 5.0, 10.0])
def test_an_overload_costs_no_throughput_and_is_soon_over(times: float) -> None:
    server = Server(capacity=8.0)
    server.open_loop(times, 60.0)
    server.run(60.0)
    assert server.served["a"] >= 0.9 * 60.0 * server.capacity
    assert server.refused["a"]
    assert server.recovery() < 10.0


def test_with_a_queue_that_stays_long_it_lasts_as_long_as_the_queue() -> None:
    server = Server(capacity=8.0, limits=ALWAYS_LONG)
    server.open_loop(10.0, 60.0)
    server.run(60.0)
    assert server.recovery() > 20.0


@pytest.mark.parametrize("capacity", [2.0, 8.0])
def test_clients_that_wait_for_their_answers_are_not_refused(capacity: float) -> None:
    server = Server(capacity)
    server.closed_loop(64)
    server.run(120.0)
    assert server.longest_wait["a"] > 5
    assert not server.refused


def test_in_a_long_overload_who_is_served_waits_for_a_short_time() -> None:
    server = Server(capacity=2.0)
    server.open_loop(2.0, 400.0)
    server.run(200.0)
    assert server.longest_wait["a"] > 50
    server.longest_wait.clear()
    server.run(400.0)
    assert server.longest_wait["a"] < 10
    assert server.served["a"] >= 0.9 * 400.0 * server.capacity


def test_a_burst_is_served_after_an_overload() -> None:
    server = Server(capacity=8.0)
    server.open_loop(10.0, 60.0)
    server.run(90.0)
    server.refused.clear()
    for _ in range(200):
        server.ask()
    assert not server.refused


def test_what_one_tenant_sends_too_much_does_not_shorten_the_queue_of_another() -> None:
    server = Server(capacity=8.0)
    server.open_loop(10.0, 120.0, "flood")
    server.run(60.0)
    for _ in range(60):
        server.ask("calm")
    server.run(120.0)
    assert server.refused["flood"]
    assert not server.refused["calm"]
    assert server.served["calm"] == 60
    assert server.longest_wait["calm"] > 5


def refusal(overload: Overload, tenant: str, ahead: Ahead, **limits: float) -> str | None:
    settings = msgspec.structs.replace(Settings(), **limits)
    return overload.refusal(tenant, ahead, Counter({tenant: ahead.requests}), settings)


@pytest.mark.parametrize(
    ("ahead", "reason"),
    [
        (Ahead(9, 10.0, 1.0), "9 requests wait already"),
        (Ahead(2, 500.0, 1.0), "500 prompt tokens wait to be computed already"),
        (Ahead(2, 10.0, 20.0), "a request would wait for 20 seconds"),
        (Ahead(2, 10.0, 9.0), None),
    ],
)
def test_count_tokens_and_wait_bound_the_queue(ahead: Ahead, reason: str | None) -> None:
    overload = Overload()
    limits = {"max_queue": 9, "max_queue_tokens": 500, "max_queue_seconds": 10.0}
    assert refusal(overload, "a", ahead, **limits) == reason
    short = refusal(overload, "a", Ahead(2, 10.0, 6.0), **limits)
    assert (short is None) == (reason is None)


def test_the_short_limit_is_never_the_longer_one() -> None:
    overload = Overload()
    for _ in range(2):
        assert refusal(overload, "a", Ahead(2, 10.0, 3.0), max_queue_seconds=2.0)


def test_it_is_over_when_the_queue_is_short_and_nobody_was_refused_for_a_while(
    caplog: pytest.LogCaptureFixture,
) -> None:
    now = [0.0]
    overload = Overload(lambda: now[0])
    long, short = Ahead(100, 0.0, 30.0), Ahead(2, 0.0, 1.0)
    with caplog.at_level(logging.WARNING):
        assert refusal(overload, "a", Ahead(256, 0.0, 40.0))
        now[0] = QUIET_SECONDS + 1
        assert refusal(overload, "a", long)  # it never became short
        now[0] += QUIET_SECONDS - 1
        assert refusal(overload, "a", short) is None
        assert refusal(overload, "a", long)  # the last one was refused a moment ago
        now[0] += QUIET_SECONDS
        assert refusal(overload, "a", short) is None
        assert refusal(overload, "a", long) is None
    assert len(caplog.records) == 1  # one for each overload, not for each refusal


def test_tenants_that_have_left_are_forgotten() -> None:
    now = [0.0]
    overload = Overload(lambda: now[0])
    for i in range(1000):
        now[0] += 1.0
        assert refusal(overload, f"tenant {i}", Ahead(256, 0.0, 40.0))
    assert len(overload._refused_at) <= QUIET_SECONDS
