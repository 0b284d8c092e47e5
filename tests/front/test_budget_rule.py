"""When the budget moves by itself: made-up series of readings, and what holds for all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from radixserve.front.budget_rule import (
    CHECKS,
    FIRST_HOLD,
    LONGEST_HOLD,
    SETTLE,
    BudgetRule,
    Reading,
)

LEAST, START, MOST, RESERVE = 250, 1000, 4000, 1000
PLENTY = 1_000_000
WORTH = {1.5: 0.1, 2.0: 0.2, 4.0: 0.3}
NOTHING = dict.fromkeys(WORTH, 0.0)


@dataclass
class Server:
    """A server whose budget does what the rule says."""

    budget: int = START
    rule: BudgetRule = field(default_factory=BudgetRule)
    check: int = 0
    prompt_tokens: int = 0
    ghosts: dict[float, int] = field(default_factory=lambda: dict.fromkeys(WORTH, 0))
    changes: list[tuple[int, int]] = field(default_factory=list)  # check, new budget
    reasons: list[str] = field(default_factory=list)

    def see(
        self,
        free: int = PLENTY,
        shares: dict[float, float] = NOTHING,
        tokens: int = 10_000,
        unused: int = 0,
        most: int = MOST,
    ) -> None:
        """One check, since which `tokens` prompt tokens came, with these ghost hits."""
        self.check += 1
        self.prompt_tokens += tokens
        for times, share in shares.items():
            self.ghosts[times] += int(share * tokens)
        change = self.rule.decide(
            Reading(
                budget=self.budget,
                least=LEAST,
                most=most,
                unused=unused,
                promised=0,
                free=free,
                reserve=RESERVE,
                prompt_tokens=self.prompt_tokens,
                ghost_hits=dict(self.ghosts),
            )
        )
        if change is not None:
            self.budget = change.budget
            self.changes.append((self.check, change.budget))
            self.reasons.append(change.reason)

    def see_all(self, num_checks: int, see: Callable[[int], None]) -> Server:
        for number in range(num_checks):
            see(number)
        return self


def test_it_grows_by_a_quarter_after_some_checks_in_a_row_up_to_its_bound() -> None:
    server = Server()
    server.see_all(CHECKS + 1, lambda _: server.see(shares=WORTH))
    assert server.changes == [(CHECKS + 1, 1250)]  # the first check only begins to count
    assert server.reasons == [
        "1.5 times the memory would have made hits of 10% of the prompt tokens"
    ]
    server.see_all(20 * CHECKS, lambda _: server.see(shares=WORTH))
    assert server.budget == MOST
    assert len(server.changes) == 7


def test_much_more_memory_may_be_worth_it_where_a_little_more_is_not() -> None:
    server = Server(budget=900)
    shares = {1.5: 0.0, 2.0: 0.0, 4.0: 0.9}
    server.see_all(CHECKS + 1, lambda _: server.see(shares=shares))
    assert server.budget == 1125
    assert server.reasons == ["4 times the memory would have made hits of 90% of the prompt tokens"]
    out_of_bounds = Server(budget=900)
    out_of_bounds.see_all(5 * CHECKS, lambda _: out_of_bounds.see(shares=shares, most=3599))
    assert not out_of_bounds.changes


def test_noise_an_idle_server_and_small_gains_change_nothing() -> None:
    noise, idle, small, empty = Server(), Server(), Server(), Server()
    noise.see_all(500, lambda n: noise.see(shares=NOTHING if n % CHECKS == 0 else WORTH))
    idle.see_all(500, lambda n: idle.see(shares=WORTH, tokens=0 if n else 10_000))
    small.see_all(500, lambda _: small.see(shares={1.5: 0.01, 2.0: 0.02, 4.0: 0.05}))
    empty.see_all(500, lambda _: empty.see(shares=WORTH, unused=300))
    assert not [each.changes for each in (noise, idle, small, empty) if each.changes]


def test_few_tokens_are_added_up_until_they_say_something() -> None:
    server = Server()
    server.see_all(12 * CHECKS, lambda _: server.see(shares=WORTH, tokens=300))
    assert [check for check, _ in server.changes] == [4 * CHECKS + 1, 8 * CHECKS + 2]


def test_without_room_for_twice_the_reserve_it_does_not_grow() -> None:
    server = Server()
    room = 250 + 2 * RESERVE
    server.see_all(50, lambda _: server.see(shares=WORTH, free=room - 1))
    server.see_all(50, lambda _: server.see(shares=WORTH, free=room + 99, unused=100))
    assert not server.changes
    server.see_all(CHECKS, lambda _: server.see(shares=WORTH, free=room))
    assert server.budget == 1250


def test_it_shrinks_at_once_by_what_lacks_and_then_stays() -> None:
    server = Server()
    server.see()
    server.see(free=999)
    assert server.changes == [(2, 750)]
    server.see(free=0)  # the memory may not have gone back yet
    assert server.budget == 750
    server.see(free=600)
    assert server.budget == 350
    assert server.reasons[-1].startswith("0 MiB of memory are free, less than the reserve of")
    server.see_all(FIRST_HOLD - 1, lambda _: server.see(shares=WORTH))
    assert len(server.changes) == 2
    server.see_all(CHECKS, lambda _: server.see(shares=WORTH))
    assert server.budget > 350


def test_a_leak_elsewhere_takes_the_budget_down_to_its_bound_and_no_further() -> None:
    server = Server()
    server.see_all(300, lambda n: server.see(free=max(0, 3000 - 20 * n), shares=WORTH))
    assert server.budget == LEAST
    assert server.changes[0][1] == 1250  # while there was room
    assert len(turns_of(server.changes)) == 1


def test_memory_that_comes_and_goes_is_followed_more_and_more_seldom() -> None:
    server = Server()
    server.see_all(6000, lambda n: server.see(free=0 if n % 100 == 99 else PLENTY, shares=WORTH))
    turns = turns_of(server.changes)
    early = [check for check in turns if check <= 1000]
    late = [check for check in turns if check > 5000]
    assert early
    assert not late


def test_after_a_long_calm_it_is_as_quick_as_at_first() -> None:
    server = Server()
    sawtooth: Callable[[int], None] = lambda n: server.see(  # noqa: E731
        free=0 if n % 100 == 99 else PLENTY, shares=WORTH
    )
    server.see_all(1000, sawtooth)
    server.see_all(2 * LONGEST_HOLD, lambda _: server.see())
    server.see(free=0)
    at = server.check
    server.see_all(FIRST_HOLD + CHECKS, lambda _: server.see(shares=WORTH))
    assert [check for check, _ in server.changes if check > at]


def test_a_change_by_somebody_else_is_where_it_goes_on_from() -> None:
    server = Server()
    server.see_all(CHECKS, lambda _: server.see(shares=WORTH))
    server.budget = 2000
    server.see_all(CHECKS, lambda _: server.see(shares=WORTH))
    assert not server.changes
    server.see(shares=WORTH)
    assert server.budget == 2500
    server.budget = 100  # below the bound: it grows from there, and does not shrink
    server.see(free=0)
    assert server.budget == 100


def test_a_new_engine_counts_from_zero() -> None:
    server = Server()
    server.see_all(CHECKS, lambda _: server.see(shares=WORTH))
    server.prompt_tokens, server.ghosts = 0, dict.fromkeys(WORTH, 0)
    server.see()
    assert not server.changes


def turns_of(changes: Iterable[tuple[int, int]]) -> list[int]:
    """The checks at which the budget began to move in the other direction."""
    turns, before, direction = [], START, 0
    for check, budget in changes:
        now = 1 if budget > before else -1
        if direction and now != direction:
            turns.append(check)
        before, direction = budget, now
    return turns


SEEN = st.tuples(
    st.integers(1, 40),  # checks with this reading
    st.sampled_from([0, 500, 999, 2000, 2300, 3000, PLENTY]),
    st.sampled_from([NOTHING, WORTH, {1.5: 0.0, 2.0: 0.0, 4.0: 0.9}]),
    st.sampled_from([0, 100, 10_000]),
    st.sampled_from([0, 100, 600]),
)


@given(st.lists(SEEN, max_size=30))
def test_it_stays_within_bounds_and_changes_so_often_at_most(
    seen: list[tuple[int, int, dict[float, float], int, int]],
) -> None:
    server = Server()
    for count, free, shares, tokens, unused in seen:
        for _ in range(count):
            server.see(free, shares, tokens, unused)
            assert LEAST <= server.budget <= MOST
    before, last = START, 0
    grew = False
    for check, budget in server.changes:
        grows = budget > before
        assert budget != before
        if grows:
            assert budget <= before * 1.25
            assert check - last >= (CHECKS if grew or not last else FIRST_HOLD)
        elif not grew and last:
            assert check - last >= SETTLE
        before, last, grew = budget, check, grows
