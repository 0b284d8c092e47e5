"""A trial ends in a verdict, whatever the check does, and leaves no process behind."""

from __future__ import annotations

import os
import resource
import signal
import time
from collections.abc import Callable

import pytest

from radixserve.errors import BadRequest
from radixserve.text.grammar_trial import try_grammar
from radixserve.text.messages import Checked, Failed

# Later versions of Python warn of forks of processes with threads, such as those of tests are.
pytestmark = pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")

LONG = 60.0  # seconds


def refuse() -> None:
    raise BadRequest("No.", code="invalid_value")


def compute() -> None:
    while True:
        pass


def crash() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def give_up() -> None:
    os._exit(3)


def only_when_idle() -> None:
    assert os.sched_getscheduler(0) == os.SCHED_IDLE


def as_usual() -> None:
    assert os.sched_getscheduler(0) == os.SCHED_OTHER


def without_core_files() -> None:
    assert resource.getrlimit(resource.RLIMIT_CORE) == (0, 0)


def refuse_at_length() -> None:
    raise BadRequest("No. " * 100_000)


@pytest.fixture
def forks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The ids of the processes that the test forks."""
    found: list[int] = []
    fork = os.fork

    def noted() -> int:
        found.append(fork())
        return found[-1]

    monkeypatch.setattr(os, "fork", noted)
    return found


@pytest.mark.parametrize("is_first", [True, False])
def test_verdicts_arrive(is_first: bool, forks: list[int]) -> None:
    assert try_grammar(lambda: None, LONG, is_first=is_first) == Checked(is_done=True)
    assert try_grammar(refuse, LONG, is_first=is_first) == Failed("No.", None, "invalid_value")
    verdict = try_grammar(refuse_at_length, LONG, is_first=is_first)
    assert isinstance(verdict, Failed)
    assert verdict.message.startswith("No. No. ")
    for check, how in ((crash, "SIGKILL"), (give_up, "said nothing")):
        verdict = try_grammar(check, LONG, is_first=is_first)
        assert isinstance(verdict, Failed)
        assert verdict.code == "grammar_too_complex"
        assert how in verdict.message
    assert len(forks) == 5
    for each in forks:
        with pytest.raises(ChildProcessError):
            os.waitpid(each, os.WNOHANG)


def test_what_takes_long_goes_on_in_a_second_trial_that_has_an_end() -> None:
    assert try_grammar(compute, LONG, is_first=True) == Checked(is_done=False)
    verdict: Checked | Failed = Checked(is_done=False)
    while verdict == Checked(is_done=False):  # until the machine is less busy
        verdict = try_grammar(compute, 0.2, is_first=False)
    assert isinstance(verdict, Failed)
    assert "longer than the limit of 0.2 s" in verdict.message


def test_waiting_costs_a_first_trial_no_processor_time_but_its_whole_limit() -> None:
    verdict = try_grammar(lambda: time.sleep(LONG), 0.2, is_first=True)
    assert verdict == Checked(is_done=False)


def test_a_second_trial_that_got_no_processor_time_says_nothing_about_the_grammar() -> None:
    """The fork of a test process with much memory itself uses up to 0.1 s, most of it to end. The
    share of this limit that a trial must have got is 0.25 s.
    """
    verdict = try_grammar(lambda: time.sleep(LONG), 1.0, is_first=False)
    assert verdict == Checked(is_done=False)


@pytest.mark.parametrize("is_first", [True, False])
def test_without_a_process_nothing_is_said_about_the_grammar(
    is_first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_process() -> int:
        raise BlockingIOError

    monkeypatch.setattr(os, "fork", no_process)
    before = os.listdir("/proc/self/fd")
    assert try_grammar(lambda: None, LONG, is_first=is_first) == Checked(is_done=False)
    assert os.listdir("/proc/self/fd") == before


def test_a_trial_that_crashes_leaves_no_image_of_its_memory_on_the_disk() -> None:
    assert try_grammar(without_core_files, LONG, is_first=False) == Checked(is_done=True)


@pytest.mark.parametrize(("check", "is_first"), [(as_usual, True), (only_when_idle, False)])
def test_only_the_second_trial_waits_for_idle_processors(
    check: Callable[[], None], is_first: bool
) -> None:
    assert try_grammar(check, LONG, is_first=is_first) == Checked(is_done=True)
    as_usual()
