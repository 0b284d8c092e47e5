"""Whose fault a death was: the rule by itself, without processes."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from radixserve.front.gate import Gate


def gate_with(*request_ids: str) -> Gate:
    """A gate with these inside."""
    gate = Gate()
    for request_id in request_ids:
        gate.arrive(request_id)
    assert gate.admit() == list(request_ids)
    return gate


def test_without_a_death_everybody_enters_at_once() -> None:
    gate = gate_with("a", "b")
    gate.arrive("c")
    assert gate.admit() == ["c"]
    assert gate.admit() == []
    assert gate.num_outside == 0


def test_nobody_is_blamed_if_all_had_progressed() -> None:
    gate = gate_with("a", "b")
    gate.progress("a")
    gate.progress("b")
    assert gate.died() is None
    assert gate.num_outside == 2
    assert gate.admit() == ["a", "b"]


def test_those_without_a_strike_enter_at_once_and_suspects_one_at_a_time_behind_them() -> None:
    gate = gate_with("slow", "also slow", "fast")
    gate.progress("fast")
    assert gate.died() is None
    assert gate.admit() == ["fast"]
    gate.progress("fast")
    assert gate.admit() == ["slow"]
    gate.progress("fast")
    assert gate.admit() == []
    gate.progress("slow")
    assert gate.admit() == ["also slow"]


def test_a_suspect_that_ends_makes_room_for_the_next() -> None:
    gate = gate_with("a", "b")
    gate.died()
    assert gate.admit() == ["a"]
    gate.end("a")
    assert gate.admit() == ["b"]


def test_who_kills_twice_alone_without_a_token_in_between_does_not_enter_again() -> None:
    gate = gate_with("a", "poison")
    gate.progress("a")
    assert gate.died() is None
    assert gate.admit() == ["a"]
    gate.progress("a")
    assert gate.admit() == ["poison"]
    assert gate.died() == "poison"
    assert gate.admit() == ["a"]


def test_a_death_among_others_that_may_have_caused_it_does_not_count() -> None:
    gate = gate_with("poison", "a", "b")
    gate.progress("a")
    assert gate.died() is None
    for _ in range(2):
        assert gate.admit() == ["a"]
        gate.progress("a")
        assert gate.admit() == ["poison"]
        culprit = gate.died()
    assert culprit == "poison"
    assert gate.admit() == ["a"]
    gate.progress("a")
    assert gate.admit() == ["b"]


def test_deaths_from_outside_end_nobody_whom_they_do_not_hit_alone_twice_before_a_token() -> None:
    """Each of them is hit among the others and once more alone, beside those that go on."""
    names = [f"r{i}" for i in range(6)]
    gate, going = gate_with(*names), list[str]()
    assert gate.died() is None
    for name in names:
        assert gate.admit() == [name]
        assert gate.died() is None
        if going:
            assert gate.admit() == going
        for each in going:
            gate.progress(each)
        assert gate.admit() == [name]
        gate.progress(name)
        going.append(name)


def test_who_leaves_and_comes_again_under_the_same_name_begins_anew() -> None:
    gate = gate_with("a")
    assert gate.died() is None
    assert not gate.withdraw("a")
    gate.arrive("a")
    assert gate.admit() == ["a"]
    assert gate.died() is None


def test_a_token_clears_a_suspect_whatever_happens_later() -> None:
    gate = gate_with("a")
    for _ in range(5):
        assert gate.died() is None
        assert gate.admit() == ["a"]
        gate.progress("a")
        assert gate.died() is None
        assert gate.admit() == ["a"]


def test_a_request_that_had_progressed_and_kills_when_it_is_resumed_is_found() -> None:
    gate = gate_with("poison", "a")
    gate.progress("poison")
    assert gate.died() is None
    assert gate.admit() == ["poison"]  # "a" is the suspect, but it is not inside
    assert gate.died() is None
    assert gate.admit() == ["poison"]
    assert gate.died() == "poison"
    assert gate.admit() == ["a"]


def test_who_was_outside_gets_no_strike() -> None:
    gate = gate_with("a", "b")
    gate.died()
    gate.arrive("new")
    assert gate.admit() == ["a"]
    assert gate.died() is None
    assert gate.admit() == ["new"]
    gate.progress("new")
    assert gate.admit() == ["a"]
    assert gate.died() == "a"
    assert gate.admit() == ["new"]
    gate.progress("new")
    assert gate.admit() == ["b"]
    assert gate.died() is None


def test_who_comes_during_a_trial_waits_until_it_is_over() -> None:
    gate = gate_with("a")
    gate.died()
    assert gate.admit() == ["a"]
    gate.arrive("new")
    assert gate.admit() == []
    gate.progress("a")
    assert gate.admit() == ["new"]


def test_an_aborted_suspect_counts_as_inside_until_the_engine_says_that_it_ended() -> None:
    gate = gate_with("a", "b")
    gate.died()
    assert gate.admit() == ["a"]
    assert gate.withdraw("a")
    assert gate.admit() == []
    gate.end("a")
    assert gate.admit() == ["b"]


def test_whoever_is_not_wanted_any_more_does_not_enter_again() -> None:
    gate = gate_with("a", "b", "c")
    assert gate.withdraw("a")
    gate.died()
    assert not gate.withdraw("b")
    assert gate.admit() == ["c"]
    assert gate.num_outside == 0


class World:
    """An engine in which requests make tokens one by one, or kill it at the token where they are
    poisonous.
    """

    def __init__(self, rng: random.Random, poison_at: dict[str, int | None]) -> None:
        self.rng = rng
        self.gate = Gate()
        self.poison_at = poison_at
        self.to_come = list(self.poison_at)
        self.inside: list[str] = []
        self.tokens = dict.fromkeys(self.poison_at, 0)
        self.ended: set[str] = set()
        self.kills = dict.fromkeys(self.poison_at, 0)
        self.withdrawn: set[str] = set()
        self.wrongly_accused: set[str] = set()

    def step(self) -> None:
        if self.to_come and self.rng.random() < 0.4:
            self.gate.arrive(self.to_come.pop())
        if self.rng.random() < 0.03:
            self.withdraw(self.rng.choice(list(self.poison_at)))
        if self.inside:
            self.compute(self.rng.choice(self.inside))
        self.inside += self.gate.admit()

    def withdraw(self, name: str) -> None:
        if name in self.ended or name in self.to_come:
            return
        self.withdrawn.add(name)
        if not self.gate.withdraw(name):
            self.ended.add(name)

    def compute(self, name: str) -> None:
        if name in self.withdrawn and self.rng.random() < 0.5:
            self.end(name)
        elif self.tokens[name] == self.poison_at[name]:
            self.die(name)
        else:
            self.tokens[name] += 1
            self.gate.progress(name)
            if self.tokens[name] == 5:
                self.end(name)

    def end(self, name: str) -> None:
        self.inside.remove(name)
        self.ended.add(name)
        self.gate.end(name)

    def die(self, killer: str) -> None:
        self.kills[killer] += 1
        culprit = self.gate.died()
        self.ended |= self.withdrawn
        if culprit is not None:
            self.ended.add(culprit)
            if self.poison_at[culprit] is None:
                self.wrongly_accused.add(culprit)
        self.inside = []


def many_kill_at_their_first_token(rng: random.Random) -> dict[str, int | None]:
    return {f"r{i}": 0 if rng.random() < 0.2 else None for i in range(12)}


def one_kills_at_any_token(rng: random.Random) -> dict[str, int | None]:
    killer = rng.randrange(12)
    return {f"r{i}": rng.randrange(5) if i == killer else None for i in range(12)}


@pytest.mark.parametrize("poison", [many_kill_at_their_first_token, one_kills_at_any_token])
def test_in_random_worlds_all_end_and_only_who_kills_is_ended_by_force(
    poison: Callable[[random.Random], dict[str, int | None]],
) -> None:
    most_kills = 0
    for seed in range(1000):
        rng = random.Random(seed)
        world = World(rng, poison(rng))
        for _ in range(2000):
            if len(world.ended) == len(world.poison_at):
                break
            world.step()
        assert len(world.ended) == len(world.poison_at), f"seed {seed}: somebody waits for ever"
        assert not world.wrongly_accused, f"seed {seed}"
        most_kills = max(most_kills, *world.kills.values())
    assert most_kills == (
        3 if poison is many_kill_at_their_first_token else 4
    )  # the first of four: it had progressed
