"""Guessed tokens: where they come from, what they save, and that no answer depends on them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from radixserve.engine.counters import DRAFT_TOKENS, FROM_TEXT, FROM_TREE, RIGHT, STEPS, WRONG
from radixserve.engine.drafts import Drafting, FromText, FromTree, Ids, Trust, last_occurrence
from radixserve.engine.speculation import MOST_ROWS
from radixserve.request import Request, Sampling
from tests.engine.content_model import expected
from tests.engine.harness import Harness, request

PROMPT = [1, 2, 3, 4, 5, 6]


def ids(*tokens: int) -> Ids:
    return np.array(tokens, np.int32)


def steps(harness: Harness) -> int:
    return int(harness.core.stats().value(STEPS))


def drafted(harness: Harness, source: str, outcome: str) -> int:
    return int(harness.core.stats().value(DRAFT_TOKENS, source, outcome))


def speculating(num_slots: int = 1000, max_running: int = 4, max_step_tokens: int = 16) -> Harness:
    return Harness(num_slots, max_running, max_step_tokens, ahead=False, speculates=True)


def test_an_answer_that_is_generated_again_takes_a_fraction_of_the_steps() -> None:
    harness = speculating()
    harness.submit(request("first", PROMPT, 100))
    harness.run()
    first = steps(harness)
    harness.submit(request("again", PROMPT, 100))
    harness.run()
    assert harness.tokens("again") == harness.tokens("first") == expected(PROMPT, 100)
    assert steps(harness) - first < 20
    assert drafted(harness, FROM_TREE, RIGHT) > 80
    assert drafted(harness, FROM_TREE, WRONG) == 0
    harness.assert_drained()


def test_another_tenants_answers_are_not_guessed_from() -> None:
    harness = speculating()
    for name in ("a", "b"):
        one = Request(
            id=name,
            prompt_ids=PROMPT,
            sampling=Sampling(max_tokens=50, seed=1, temperature=0.0),
            namespace=f"{name}/0",
        )
        harness.submit(one)
        harness.run()
    assert drafted(harness, FROM_TREE, RIGHT) == drafted(harness, FROM_TREE, WRONG) == 0


def test_a_request_that_does_not_read_the_cache_is_not_guessed_from_it() -> None:
    harness = speculating()
    for name, reads in (("first", True), ("again", False)):
        harness.submit(replace(request(name, PROMPT, 50), reads_cache=reads))
        harness.run()
    assert drafted(harness, FROM_TREE, RIGHT) == 0


def test_guesses_are_an_equal_share_of_few_rows() -> None:
    harness = speculating(num_slots=2000, max_running=8, max_step_tokens=64)
    for again in range(2):
        for number in range(5):
            harness.submit(request(f"{again}-{number}", [number, *PROMPT], 30))
        while harness.core.has_work:
            before = harness.model.computed_tokens
            harness.step()
            running = harness.core.scheduler.running
            decode = all(each.num_output > 1 for each in running)
            if decode and len(running) == 5:
                assert harness.model.computed_tokens - before <= MOST_ROWS
    assert drafted(harness, FROM_TREE, RIGHT) > 50


def test_a_stop_token_ends_an_answer_in_the_middle_of_right_guesses() -> None:
    harness = speculating()
    harness.submit(request("first", PROMPT, 60))
    harness.run()
    stop = harness.tokens("first")[20]
    harness.submit(request("again", PROMPT, 60, stop_token_ids=(stop,)))
    harness.run()
    assert harness.tokens("again") == expected(PROMPT, 60, (stop,))
    assert harness.finish("again") == "stop"
    harness.assert_drained()


@pytest.mark.parametrize("max_tokens", [1, 2, 3, 7, 40])
def test_no_answer_is_longer_than_asked_for(max_tokens: int) -> None:
    harness = speculating()
    harness.submit(request("first", PROMPT, 40))
    harness.run()
    harness.submit(request("again", PROMPT, max_tokens))
    harness.run()
    assert harness.tokens("again") == expected(PROMPT, max_tokens)
    assert harness.finish("again") == "length"


def test_guesses_take_no_slots_from_running_requests() -> None:
    harness = speculating(num_slots=90, max_running=2)
    for name in ("first", "second"):
        harness.submit(request(name, [*PROMPT, len(name)], 30))
    harness.run()
    for name in ("third", "fourth"):
        harness.submit(request(name, [*PROMPT, len(name)], 30))
    harness.run()
    assert harness.core.scheduler.totals.preemptions == 0
    harness.assert_drained()


# Sources.


def brute_force(tokens: list[int]) -> int:
    for length in range(8, 2, -1):
        tail = tokens[-length:]
        for end in range(len(tokens) - 1, length - 1, -1):
            if len(tail) == length and tokens[end - length : end] == tail:
                return end
    return len(tokens)


@given(st.lists(st.integers(0, 2), min_size=1, max_size=40))
def test_the_longest_tail_that_occurred_before_is_found_where_it_occurred_last(
    tokens: list[int],
) -> None:
    assert last_occurrence(ids(*tokens)) == brute_force(tokens)


def test_a_branch_is_read_once_and_followed_until_the_sequence_leaves_it() -> None:
    asked: list[int] = []
    branches = [ids(5, 6, 7, 8), ids(1, 2), ids()]

    def ask(most: int) -> Ids:
        asked.append(most)
        return branches[len(asked) - 1]

    source = FromTree(ask)
    assert source.guess(ids(0), 2).tolist() == [5, 6]
    assert source.guess(ids(0, 5, 6), 3).tolist() == [7, 8]
    assert len(asked) == 1
    assert source.guess(ids(0, 5, 6, 9), 3).tolist() == [1, 2]
    assert source.guess(ids(0, 5, 6, 9, 3), 3).tolist() == []
    assert source.guess(ids(0, 5, 6, 9, 3, 4), 3).tolist() == []
    assert len(asked) == 3


def test_the_text_is_guessed_from_where_the_tree_knows_nothing() -> None:
    drafting = Drafting((FromTree(lambda most: ids()), FromText()))
    assert drafting.propose(ids(1, 2, 3, 4, 9, 1, 2, 3), 2).tolist() == [4, 9]
    assert drafting.source == FROM_TEXT
    assert drafting.propose(ids(1, 2, 3, 4), 2).tolist() == []


def test_a_source_that_is_always_wrong_guesses_ever_more_rarely() -> None:
    trust, guessed = Trust(), 0
    for num_tokens in range(1000):
        if most := trust.most(num_tokens):
            guessed += most
            trust.judge(most, 0, num_tokens)
    assert guessed < 30
    while not trust.most(num_tokens := num_tokens + 1):
        pass
    for _ in range(5):
        trust.judge(trust.most(num_tokens), trust.most(num_tokens), num_tokens)
    assert trust.most(num_tokens) == 15
