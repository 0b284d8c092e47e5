"""A step that raises: its sequences are computed again, each alone, and only one that raises there
too ends.

A step that failed leaves nonsense in its slots. Late faults are those of the device: the launch
goes well, the step raises when it lands, and the step behind it has computed from nonsense.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from radixserve.engine import core, flight
from radixserve.engine.faults import FAILED, OUT_OF_MEMORY, Fault, fault_of
from radixserve.errors import DeviceLost
from radixserve.prefix import Prefix as CachePrefix
from tests.engine.content_model import ON_FIRE, ContentModel, Prefix, expected
from tests.engine.harness import Harness, request

FULL = torch.OutOfMemoryError("no room on the device")
PROMPTS = [[1, 2, 3], [4, 4], [5] * 5]


@pytest.fixture(params=[False, True], ids=["in turn", "ahead"])
def ahead(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@contextlib.contextmanager
def late_faults(model: ContentModel) -> Iterator[None]:
    """Steps land in the order of their launch, which is one call of the model, and raise what that
    call kept.
    """
    wait, landing = flight.Flight._wait, itertools.count()

    def failing(self: flight.Flight) -> Any:
        error = model.failed_late.get(next(landing))
        if error is not None:
            raise error
        return wait(self)

    model.late = True
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flight.Flight, "_wait", failing)
        yield


def three(harness: Harness, max_tokens: int = 5) -> None:
    harness.submit(*[request(f"r{i}", prompt, max_tokens) for i, prompt in enumerate(PROMPTS)])


def assert_whole(harness: Harness, *names: int, max_tokens: int = 5) -> None:
    for i in names:
        assert harness.tokens(f"r{i}") == expected(PROMPTS[i], max_tokens)
        assert harness.finish(f"r{i}") == "length"


def noted_steps(harness: Harness) -> list[list[int]]:
    """Filled with the number of tokens of each chunk, step by step."""
    steps: list[list[int]] = []
    fault = harness.model.fault_of

    def noting(step: list[list[Prefix]]) -> Exception | None:
        steps.append([len(chunk) for chunk in step])
        return fault(step)

    harness.model.fault_of = noting
    return steps


# Two tries.


def test_the_sequences_of_a_failed_step_are_computed_alone_before_they_join_again() -> None:
    harness = Harness(ahead=False)
    harness.model.fail_calls(1)
    steps = noted_steps(harness)
    three(harness)
    harness.run()
    assert steps == [[2, 3, 5], [1, 1, 1], [1], [1], [1], [1, 1, 1], [1, 1, 1], [1, 1, 1]]
    assert_whole(harness, 0, 1, 2)
    harness.assert_drained()


def test_the_second_try_is_of_the_same_chunk_and_no_more() -> None:
    harness = Harness(max_step_tokens=8, ahead=False)
    harness.model.fail_calls(1)
    steps = noted_steps(harness)
    harness.submit(request("short", [1, 1], max_tokens=4), request("long", [2] * 20, max_tokens=1))
    harness.run()
    assert steps == [[2, 6], [1, 7], [1], [7], [1, 7], [1]]
    assert harness.tokens("long") == expected([2] * 20, 1)


def test_newcomers_wait_until_the_second_tries_are_through(ahead: bool) -> None:
    harness = Harness(ahead=ahead)
    harness.model.fail_calls(0)
    steps = noted_steps(harness)
    harness.submit(request("old", [1, 2, 3]))
    harness.step()
    harness.submit(request("new", [4, 4]))
    harness.run()
    assert steps[:3] == [[3], [3], [1, 2]]
    assert harness.tokens("old") == expected([1, 2, 3], 4)
    assert harness.tokens("new") == expected([4, 4], 4)


def test_one_that_raises_alone_ends_and_nothing_of_the_step_can_be_found(ahead: bool) -> None:
    harness = Harness(ahead=ahead)
    cursed = tuple(PROMPTS[1] + expected(PROMPTS[1], 2))
    harness.model.fault_of = lambda step: (
        ON_FIRE if any(cursed in chunk for chunk in step) else None
    )
    three(harness)
    harness.run()
    assert harness.tokens("r1") == expected(PROMPTS[1], 2)
    last = harness.events["r1"][-1]
    assert (last.finish, last.error) == ("error", FAILED.error)
    assert harness.cache.match(CachePrefix.of("public", cursed)) == 2
    assert_whole(harness, 0, 2)
    harness.assert_drained()


def test_a_success_clears_the_record_so_that_a_later_fault_gets_its_own_second_try(
    ahead: bool,
) -> None:
    harness = Harness(ahead=ahead)
    harness.model.fail_calls(*range(0, 100, 2))
    harness.submit(request("r0", PROMPTS[0], max_tokens=5))
    harness.run()
    assert_whole(harness, 0)
    assert harness.model.num_calls == 2 * 5


def test_a_device_that_always_fails_ends_every_request_after_two_tries(ahead: bool) -> None:
    harness = Harness(max_running=3, ahead=ahead)
    harness.model.fault_of = lambda step: ON_FIRE
    names = [f"r{i}" for i in range(7)]
    harness.submit(*[request(name, [i, i, i]) for i, name in enumerate(names)])
    harness.run()
    assert [harness.finish(name) for name in names] == ["error"] * 7
    assert [len(harness.events[name]) for name in names] == [1] * 7
    assert harness.model.num_calls == 3 + 7  # three batches, and each one alone
    harness.assert_drained()


@pytest.mark.parametrize("leaves", ["r0", "r1"])
def test_one_may_leave_between_its_tries(leaves: str, ahead: bool) -> None:
    harness = Harness(ahead=ahead)
    harness.model.fail_calls(1)
    three(harness)
    while harness.model.num_calls < 2:
        harness.step()
    harness.take(harness.core.abort(leaves))
    harness.run()
    assert harness.finish(leaves) == "abort"
    assert_whole(harness, *({0, 1, 2} - {int(leaves[1:])}))
    harness.assert_drained()


def test_faults_are_counted_by_kind_second_tries_included(ahead: bool) -> None:
    harness = Harness(ahead=ahead)
    cursed = tuple(PROMPTS[1] + expected(PROMPTS[1], 2))
    harness.model.fault_of = lambda step: (
        ON_FIRE if any(cursed in chunk for chunk in step) else None
    )
    harness.model.poisoned.add(tuple(PROMPTS[2] + expected(PROMPTS[2], 1)))
    three(harness)
    harness.run()
    assert harness.core.scheduler.totals.faults == {"exception": 2, "not_finite": 1}
    harness.model.fault_of = lambda step: FULL
    harness.submit(request("full", [9]))
    harness.run()
    assert harness.core.scheduler.totals.faults == {
        "exception": 2,
        "not_finite": 1,
        "out_of_memory": 2,
    }


# Memory.


@pytest.mark.slow
def test_a_step_too_large_for_the_memory_succeeds_in_parts(ahead: bool) -> None:
    harness = Harness(ahead=ahead)
    harness.model.fault_of = lambda step: FULL if len(step) > 1 else None
    three(harness)
    harness.run()
    assert_whole(harness, 0, 1, 2)
    harness.assert_drained()


def test_one_without_memory_alone_may_come_again(ahead: bool) -> None:
    harness = Harness(ahead=ahead)
    harness.model.fault_of = lambda step: FULL if any(len(chunk) > 4 for chunk in step) else None
    three(harness)
    harness.run()
    last = harness.events["r2"][-1]
    assert (last.finish, last.error) == ("abort", OUT_OF_MEMORY.error)
    assert_whole(harness, 0, 1)
    harness.assert_drained()


@pytest.mark.parametrize("error", [FULL, MemoryError(), ON_FIRE], ids=repr)
def test_memory_is_freed_before_the_second_try_if_it_lacked(
    error: Exception, ahead: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    freed_at: list[int] = []
    harness = Harness(ahead=ahead)
    monkeypatch.setattr(core, "free_memory", lambda: freed_at.append(harness.model.num_calls))
    harness.model.fault_of = lambda step: error if harness.model.num_calls == 2 else None
    three(harness)
    harness.run()
    assert freed_at == ([] if error is ON_FIRE else [2])
    assert_whole(harness, 0, 1, 2)


def test_a_failed_step_holds_none_of_its_tensors_when_it_is_tried_again(
    ahead: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        flight.log, "disabled", True
    )  # the log that pytest keeps holds the exception
    harness = Harness(ahead=ahead)
    activations: list[weakref.ref[torch.Tensor]] = []

    def fault(step: list[list[Prefix]]) -> Exception | None:
        if activations:
            assert activations[0]() is None, "the frames of the exception are alive"
            return None
        large = torch.zeros(1000)
        activations.append(weakref.ref(large))
        raise torch.OutOfMemoryError("no room on the device")

    harness.model.fault_of = fault
    three(harness)
    harness.run()
    assert_whole(harness, 0, 1, 2)


def test_torch_says_in_words_that_the_host_has_no_memory() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(1 << 55, dtype=torch.uint8)
    assert type(raised.value) is RuntimeError
    assert fault_of(raised.value) is OUT_OF_MEMORY
    assert fault_of(RuntimeError("shapes differ")) is FAILED


# A device that is lost: every later call fails, so the process has to go.

LOST = [
    torch.AcceleratorError(
        "CUDA error: device-side assert triggered\nCUDA kernel errors might be reported elsewhere."
    ),
    torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
    RuntimeError("CUDA error: unspecified launch failure"),
    RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"),
    torch.AcceleratorError("CUDA error: an error nobody has heard of"),
]
KEPT = [
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), OUT_OF_MEMORY),
    (torch.AcceleratorError("CUDA error: out of memory"), OUT_OF_MEMORY),
    (
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        OUT_OF_MEMORY,
    ),
    (
        RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm(...)`"),
        FAILED,
    ),
    (torch.AcceleratorError("CUDA error: invalid configuration argument"), FAILED),
    (RuntimeError("shapes differ"), FAILED),
    (ValueError("CUDA error: says a user's exception"), FAILED),
]


@pytest.mark.parametrize("error", LOST, ids=str)
def test_after_an_error_that_loses_the_device_nothing_is_tried_again(
    error: Exception, ahead: bool
) -> None:
    harness = Harness(ahead=ahead)
    harness.model.fault_of = lambda step: error
    three(harness)
    with pytest.raises(DeviceLost, match=re.escape(str(error).partition("\n")[0])):
        harness.run()
    assert harness.model.num_calls == 1
    assert not any(event.error for events in harness.events.values() for event in events)


def test_a_device_that_is_lost_while_it_computes_is_seen_at_the_landing(ahead: bool) -> None:
    harness = Harness(ahead=ahead)
    harness.model.fault_of = lambda step: LOST[0] if harness.model.num_calls == 2 else None
    three(harness)
    with late_faults(harness.model), pytest.raises(DeviceLost):
        harness.run()


@pytest.mark.parametrize(("error", "fault"), KEPT, ids=str)
def test_other_errors_leave_the_device(error: Exception, fault: Fault) -> None:
    assert fault_of(error) is fault


# Numbers that are not finite are an answer of the device, not a fault: there is no second try.


def test_logits_that_are_not_finite_are_not_tried_again(ahead: bool) -> None:
    harness = Harness(ahead=ahead)
    harness.model.poisoned.add(tuple(PROMPTS[1] + expected(PROMPTS[1], 1)))
    steps = noted_steps(harness)
    three(harness)
    harness.run()
    assert steps[:4] == [[2, 3, 5], [1, 1, 1], [1, 1, 1] if ahead else [1, 1], [1, 1]]
    assert harness.tokens("r1") == expected(PROMPTS[1], 1)
    assert harness.finish("r1") == "error"
    assert_whole(harness, 0, 2)
    harness.assert_drained()


# Whatever fails.

arrivals = st.lists(
    st.tuples(
        st.lists(st.integers(0, 2), min_size=1, max_size=24),
        st.integers(1, 12),
        st.integers(0, 4),  # steps until the next arrives
        st.none() | st.integers(0, 9),  # arrivals until it leaves
    ),
    min_size=1,
    max_size=10,
)
engines = st.fixed_dictionaries(
    {
        "num_slots": st.integers(40, 120),
        "max_running": st.integers(1, 6),
        "max_step_tokens": st.integers(6, 40),
        "cache": st.booleans(),
        "ahead": st.booleans(),
    }
)
Arrivals = list[tuple[list[int], int, int, int | None]]


@contextlib.contextmanager
def quickly() -> Iterator[None]:
    """Without what takes long when faults come by the thousand."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flight.log, "disabled", True)
        patch.setattr(core, "free_memory", lambda: None)
        yield


def serve(harness: Harness, arriving: Arrivals, *, late: bool) -> None:
    """Requests r0, r1, ... come and go, and the rest is run to its end."""
    with quickly(), late_faults(harness.model) if late else contextlib.nullcontext():
        _serve(harness, arriving)
    harness.assert_drained()


def _serve(harness: Harness, arriving: Arrivals) -> None:
    for i, (prompt, max_tokens, gap, _) in enumerate(arriving):
        harness.submit(request(f"r{i}", prompt, max_tokens))
        for _ in range(gap):
            if harness.core.has_work:
                harness.step()
        for j, (_, _, _, patience) in enumerate(arriving[: i + 1]):
            if patience is not None and i - j == patience:
                harness.take(harness.core.abort(f"r{j}"))
                harness.cache.check()
    harness.run()


def assert_answered(harness: Harness, arriving: Arrivals) -> list[str]:
    """Everybody has one end and a right beginning, whole where nothing else ended it;
    who failed.
    """
    failed = []
    for i, (prompt, max_tokens, _, patience) in enumerate(arriving):
        whole, got, last = (
            expected(prompt, max_tokens),
            harness.tokens(f"r{i}"),
            harness.events[f"r{i}"][-1],
        )
        assert got == (whole if last.finish == "length" else whole[: len(got)])
        assert last.finish == "length" or last.error or patience is not None
        if last.error:
            failed.append(f"r{i}")
    return failed


@given(
    arriving=arrivals,
    engine=engines,
    late=st.booleans(),
    calls=st.sets(st.integers(0, 60), max_size=20),
)
@settings(max_examples=150, deadline=None)
def test_any_steps_may_fail_and_only_two_in_a_row_end_anybody(
    arriving: Arrivals, engine: dict[str, Any], late: bool, calls: set[int]
) -> None:
    harness = Harness(**engine)
    harness.model.fail_calls(*calls)
    serve(harness, arriving, late=late)
    failed = assert_answered(harness, arriving)
    assert len(failed) < max(
        len(calls), 1
    )  # each by a call of its own, after one that they may share
    apart = min((b - a for a, b in itertools.pairwise(sorted(calls))), default=100)
    assert not failed or apart <= 2 * engine["max_running"]


@given(
    arriving=arrivals,
    engine=engines,
    late=st.booleans(),
    curses=st.lists(
        st.tuples(st.integers(0, 9), st.integers(1, 36), st.sampled_from([1, 1000])),
        min_size=1,
        max_size=4,
    ),
)
@settings(max_examples=200, deadline=None)
def test_who_computes_a_cursed_token_fails_if_it_is_cursed_for_good_and_nobody_else_does(
    arriving: Arrivals, engine: dict[str, Any], late: bool, curses: list[tuple[int, int, int]]
) -> None:
    """A curse lies on a position of one request, so on all that share the prefix; once or
    for good.
    """
    left: dict[Prefix, int] = {}
    for who, length, times in curses:
        prompt, max_tokens, _, _ = arriving[who % len(arriving)]
        tokens = (*prompt, *expected(prompt, max_tokens))[:-1]
        left[tokens[:length]] = times
    for_good = [prefix for prefix, times in left.items() if times > 1]

    def strike(step: list[list[Prefix]]) -> Exception | None:
        struck = [prefix for chunk in step for prefix in chunk if left.get(prefix, 0)]
        left.update({prefix: left[prefix] - 1 for prefix in struck})
        return ON_FIRE if struck else None

    harness = Harness(**engine)
    harness.model.fault_of = strike
    serve(harness, arriving, late=late)
    failed = assert_answered(harness, arriving)
    for i, (prompt, max_tokens, _, patience) in enumerate(arriving):
        computed = (*prompt, *expected(prompt, max_tokens))[:-1]
        dooms = [len(prefix) for prefix in for_good if computed[: len(prefix)] == prefix]
        if patience is None:
            assert (f"r{i}" in failed) >= bool(dooms)
        if f"r{i}" in failed and len(left) == len(for_good):
            assert len(harness.tokens(f"r{i}")) == max(0, min(dooms) - len(prompt))


@given(arriving=arrivals, engine=engines, late=st.booleans(), room=st.integers(0, 4))
@settings(max_examples=100, deadline=None)
def test_with_memory_for_a_few_sequences_at_a_time_all_are_served_and_with_none_nobody_is(
    arriving: Arrivals, engine: dict[str, Any], late: bool, room: int
) -> None:
    harness = Harness(**engine)
    harness.model.fault_of = lambda step: FULL if len(step) > room else None
    serve(harness, arriving, late=late)
    failed = assert_answered(harness, arriving)
    stayed = [f"r{i}" for i, (_, _, _, patience) in enumerate(arriving) if patience is None]
    assert {harness.events[name][-1].error for name in failed} <= {OUT_OF_MEMORY.error}
    assert not failed if room else set(stayed) <= set(failed)
