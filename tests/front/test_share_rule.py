"""When memory moves between device and host memory: a table of readings, and traffic through real
caches, in which the shares must settle and beat both extremes.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from radixserve.cache.kvcache import KVCache
from radixserve.front.budget_rule import CHECKS, FIRST_HOLD
from radixserve.front.share_rule import (
    COPIED,
    MISSED,
    NONE_MISSED,
    Bounded,
    ShareRule,
    Shares,
)
from radixserve.prefix import Prefix
from radixserve.step import Slots

LEAST, MOST, START = 250, 4000, 1000


@dataclass
class Server:
    """A server whose budgets do what the rule says."""

    holds_more: bool = True
    device: int = START
    host: int = START
    rule: ShareRule = field(default_factory=ShareRule)
    check: int = 0
    prompt: int = 0
    copied: int = 0
    missed: int = 0
    moves: list[tuple[int, int, int]] = field(default_factory=list)  # check, device, host
    reasons: list[str] = field(default_factory=list)

    def see(self, copied: float = 0.0, missed: float = 0.0, tokens: int = 10_000) -> None:
        """One check, since which `tokens` prompt tokens came, of which these shares were copied up
        and missed.
        """
        self.check += 1
        self.prompt += tokens
        self.copied += round(copied * tokens)
        self.missed += round(missed * tokens)
        move = self.rule.decide(
            Shares(
                Bounded(self.device, LEAST, MOST),
                Bounded(self.host, LEAST, MOST),
                self.holds_more,
                self.prompt,
                self.copied,
                self.missed,
            )
        )
        if move is not None:
            assert move.device + move.host == self.device + self.host
            self.device, self.host = move.device, move.host
            self.moves.append((self.check, self.device, self.host))
            self.reasons.append(move.reason)

    def see_all(self, num_checks: int, see: Callable[[int], None]) -> Server:
        for number in range(num_checks):
            see(number)
        return self


@pytest.mark.parametrize(
    ("holds_more", "copied", "missed", "device"),
    [
        (True, COPIED, 0.0, 1250),
        (True, 1.0, NONE_MISSED, 1250),
        (True, 1.0, 2 * NONE_MISSED, 1000),  # neither many misses nor none
        (True, COPIED - 0.01, 0.0, 1000),
        (True, 0.0, MISSED, 750),
        (True, 1.0, MISSED, 750),  # a miss costs more than a copy
        (True, 0.0, MISSED - 0.001, 1000),
        (False, 0.0, 1.0, 1000),  # what host memory would gain the device would lose
        (False, COPIED, 1.0, 1250),
    ],
)
def test_after_some_checks_in_a_row_a_quarter_of_the_smaller_one_moves(
    holds_more: bool, copied: float, missed: float, device: int
) -> None:
    server = Server(holds_more)
    server.see_all(CHECKS + 1, lambda _: server.see(copied, missed))  # the first begins to count
    assert (server.device, server.host) == (device, 2000 - device)


def test_the_reason_says_what_was_measured() -> None:
    up, down = Server(), Server()
    up.see_all(CHECKS + 1, lambda _: up.see(0.5))
    down.see_all(CHECKS + 1, lambda _: down.see(0.5, 0.1))
    assert up.reasons == ["50% of the prompt tokens were copied up from host memory"]
    assert down.reasons == [
        "1.5 times the host memory would have made hits of 10% of the prompt tokens"
    ]


def test_noise_and_an_idle_server_move_nothing() -> None:
    noise, idle = Server(), Server()
    noise.see_all(500, lambda n: noise.see(0.0 if n % CHECKS == 0 else 1.0))
    idle.see_all(500, lambda n: idle.see(1.0, tokens=0 if n else 10_000))
    assert not noise.moves
    assert not idle.moves


def test_bounds_hold_in_both_directions() -> None:
    up, down = Server(holds_more=False), Server()
    up.see_all(100 * CHECKS, lambda _: up.see(1.0))
    down.see_all(100 * CHECKS, lambda _: down.see(0.0, 1.0))
    assert (up.device, up.host) == (2000 - LEAST, LEAST)
    assert (down.device, down.host) == (LEAST, 2000 - LEAST)


def test_what_has_to_come_back_is_tried_more_and_more_seldom() -> None:
    """A step to the device always costs hits, so it is undone each time."""
    server = Server()
    server.see_all(5000, lambda _: server.see(1.0, 0.0 if server.device <= START else 0.1))
    moves = pairwise([(0, START, START), *server.moves])
    tries = [check for (_, before, _), (check, device, _) in moves if device > before]
    gaps = [gap for one, other in pairwise(tries) if (gap := other - one) > CHECKS + 1]
    assert gaps == sorted(gaps)
    assert gaps[0] >= FIRST_HOLD
    assert gaps[-1] >= 720


def test_after_a_change_by_others_and_in_a_new_engine_counting_begins_again() -> None:
    server = Server()
    server.see_all(CHECKS, lambda _: server.see(1.0))
    server.device = 900
    server.see_all(CHECKS, lambda _: server.see(1.0))
    assert not server.moves
    server.prompt = server.copied = 0
    server.see_all(CHECKS, lambda _: server.see(1.0))
    assert not server.moves
    server.see(1.0)
    assert server.device == 1125


@given(
    st.lists(
        st.tuples(st.integers(1, 30), st.floats(0, 1), st.sampled_from([0.0, 0.001, 0.01, 0.5])),
        max_size=20,
    ),
    st.booleans(),
)
def test_the_sum_stays_and_moves_are_some_checks_apart(
    seen: list[tuple[int, float, float]], holds_more: bool
) -> None:
    server = Server(holds_more)
    for count, copied, missed in seen:
        for _ in range(count):
            server.see(copied, missed)
            assert server.device + server.host == 2 * START
            assert min(server.device, server.host) >= LEAST
    checks = [0, *(check for check, _, _ in server.moves)]
    assert all(after - before > CHECKS for before, after in pairwise(checks))


# Traffic. A unit of memory is the room of a prompt of 64 tokens on the device; in host memory a
# prompt takes a quarter of it, or the same.

PROMPT = 64
COPY = 0.04  # the cost of copying a token up, beside that of computing it
SUM = 48  # units


class Traffic:
    """Two real caches, of which the lower one gets what the upper one evicts, and the rule if
    memory may move between them.
    """

    def __init__(self, device: int, density: int, *, moves: bool) -> None:
        """`device` units of `SUM` are the device's."""
        self.density = density
        self.device = KVCache(SUM * PROMPT)
        self.host = KVCache(SUM * PROMPT * density, hindsight="misses")
        self.rule = ShareRule() if moves else None
        self.device.slots.on_evict = self._demote
        self.prompt = self.copied = self.computed = 0
        self.shares: list[int] = []  # tokens of the device after each check
        self._resize(device * PROMPT)

    def _resize(self, device: int) -> None:
        host = (SUM * PROMPT - device) * self.density
        self.host.slots.resize(max(host, self.host.slots.budget))
        self.device.slots.resize(device)
        self.host.slots.resize(host)

    def _demote(self, prefix: Prefix, slots: Slots) -> None:
        lease = self.host.receive(prefix)
        if lease is not None:
            with lease:
                lease.publish(prefix)

    def ask(self, number: int) -> None:
        prompt = Prefix.of("public", [number] * PROMPT)
        have = self.device.match(prompt)
        if have < PROMPT:
            assert self.host.slots.hindsight is not None
            with self.host.hold(prompt) as found:
                below = max(have, found.num_cached)
                self.host.slots.hindsight.missed(prompt, below)
            self.copied += below - have
            self.computed += PROMPT - below
        self.prompt += PROMPT
        lease = self.device.receive(prompt)
        assert lease is not None
        with lease:
            lease.publish(prompt)

    def check(self) -> None:
        device, host = self.device.slots.budget, self.host.slots.budget // self.density
        least, most = SUM * PROMPT // 8, SUM * PROMPT * 7 // 8
        if self.rule is not None:
            assert self.host.slots.hindsight is not None
            move = self.rule.decide(
                Shares(
                    Bounded(device, least, most),
                    Bounded(host, least, most),
                    self.density > 1,
                    self.prompt,
                    self.copied,
                    self.host.slots.hindsight.ghost_hits["1.5x"],
                )
            )
            if move is not None:
                self._resize(move.device)
        self.shares.append(self.device.slots.budget)

    def serve(self, num_checks: int, num_prompts: int, seed: int) -> float:
        """The cost of so many checks with random prompts of so many, in tokens computed."""
        chance, before = random.Random(seed), (self.copied, self.computed)
        for _ in range(num_checks):
            for _ in range(17):
                self.ask(chance.randrange(num_prompts))
            self.check()
        return COPY * (self.copied - before[0]) + self.computed - before[1]


def turns_of(shares: list[int]) -> int:
    """How often the device began to grow after it had shrunk, or the other way round."""
    moves = [after > before for before, after in pairwise(shares) if after != before]
    return sum(one != other for one, other in pairwise(moves))


PHASES = ((300, 40), (150, 150), (300, 40))  # checks, and prompts that are asked


@pytest.mark.slow
@pytest.mark.parametrize("density", [2, 4])
def test_where_host_memory_holds_more_it_beats_both_extremes(density: int) -> None:
    costs = {}
    for device, moves in ((SUM // 8, False), (SUM * 7 // 8, False), (SUM // 2, True)):
        traffic = Traffic(device, density, moves=moves)
        costs[device] = sum(traffic.serve(*phase, seed) for seed, phase in enumerate(PHASES))
        if moves:
            least, most = min(traffic.shares), max(traffic.shares)
            assert traffic.shares[299] > SUM * PROMPT * 2 // 3 < traffic.shares[-1]
            assert least < SUM * PROMPT // 3 < most
            assert turns_of(traffic.shares) <= 4
    assert costs[SUM // 2] < min(costs[SUM // 8], costs[SUM * 7 // 8])


def test_where_both_hold_the_same_nearly_all_goes_to_the_device_and_stays_there() -> None:
    traffic = Traffic(SUM // 2, 1, moves=True)
    traffic.serve(120, 44, 1)
    assert traffic.shares[-1] > SUM * PROMPT * 3 // 4
    assert turns_of(traffic.shares) == 0
    assert len(set(traffic.shares[60:])) == 1
