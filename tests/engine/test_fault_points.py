"""Wherever a step can raise it raises: the first time, the second time, ... until none is left;
once and for good.

The places: before the forward pass, after it, in each part of sampling, and in each wait of the
landing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from radixserve.engine import core, flight, planning
from radixserve.sampling import PromptLogprobs, Samples
from tests.engine.harness import Harness, request

pytestmark = pytest.mark.slow  # a fault at every step

REQUESTS = [
    request("plain", [1, 2, 3], max_tokens=16),
    request("long", [2, 1] * 12, max_tokens=10, logprobs=1),
    request("same", [2, 1] * 12, max_tokens=3, temperature=6.0, logprobs=0),
    request("echo", [4] * 12, max_tokens=3, prompt_logprobs=2, logprobs=1),
    request("penalty", [5, 6], max_tokens=9, temperature=4.0, presence_penalty=0.5, logprobs=1),
    request("stopped", [0, 1, 5], max_tokens=20, stop_token_ids=(0, 5, 9)),
]


@dataclass
class Points:
    """Counts the places that were passed, and raises in that of number `at`; `for_good` in all from
    there on.
    """

    at: int
    for_good: bool = False
    passed: int = 0

    def reach(self) -> None:
        self.passed += 1
        if self.passed == self.at or (self.for_good and self.passed > self.at):
            raise MemoryError if self.passed % 2 else RuntimeError("the device is on fire")

    @property
    def raised(self) -> bool:
        return self.passed >= self.at

    def around(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def reached(*args: Any, **rest: Any) -> Any:
            self.reach()
            result = call(*args, **rest)
            self.reach()
            return result

        return reached


@contextmanager
def installed(points: Points, harness: Harness) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(harness.model, "forward", points.around(harness.model.forward))
        patch.setattr(flight, "sample", points.around(flight.sample))  # type: ignore[attr-defined]
        patch.setattr(Samples, "wait", points.around(Samples.wait))
        patch.setattr(PromptLogprobs, "__init__", points.around(PromptLogprobs.__init__))
        patch.setattr(PromptLogprobs, "wait", points.around(PromptLogprobs.wait))
        patch.setattr(planning, "GROWTH", 4)  # so that few tokens are enough for a preemption
        patch.setattr(flight.log, "disabled", True)
        patch.setattr(core, "free_memory", lambda: None)
        yield


def served(points: Points, ahead: bool) -> Harness:
    """All requests, arriving two steps apart, with room for about half of them."""
    harness = Harness(num_slots=44, max_step_tokens=10, ahead=ahead)
    with installed(points, harness):
        for each in REQUESTS:
            harness.submit(each)
            harness.step()
            harness.step()
        harness.run()
    harness.assert_drained()
    return harness


@pytest.fixture(scope="module", params=[False, True], ids=["in turn", "ahead"])
def ahead(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture(scope="module")
def whole(ahead: bool) -> Harness:
    """Nothing fails."""
    harness = served(Points(at=1_000_000), ahead)
    assert harness.core.scheduler.totals.preemptions > 0
    return harness


@pytest.mark.slow
def test_one_fault_anywhere_changes_no_answer(ahead: bool, whole: Harness) -> None:
    for at in range(1, 1000):
        points = Points(at)
        harness = served(points, ahead)
        if not points.raised:
            break
        assert [harness.answer(each.id) for each in REQUESTS] == [
            whole.answer(each.id) for each in REQUESTS
        ], at
    assert 100 < at < 999


def test_faults_for_good_from_anywhere_on_end_everybody_once_with_a_right_beginning(
    ahead: bool, whole: Harness
) -> None:
    for at in range(1, 1000):
        points = Points(at, for_good=True)
        harness = served(points, ahead)
        if not points.raised:
            break
        for name in (each.id for each in REQUESTS):
            count = len(harness.tokens(name))
            assert harness.tokens(name) == whole.tokens(name)[:count], at
            assert harness.logprobs(name) == whole.logprobs(name)[: len(harness.logprobs(name))]
            assert harness.finish(name) == whole.finish(name) or harness.events[name][-1].error
        assert points.passed <= at + 4 * 2 * len(REQUESTS)
    assert 100 < at < 999
