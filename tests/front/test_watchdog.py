"""When the watchdog gives an engine up; with clocks of the test's own."""

from __future__ import annotations

import os
import sys

import pytest

from radixserve.engine.counters import STEP_SECONDS
from radixserve.front.watchdog import TICK_SECONDS, Watchdog, processor_seconds
from radixserve.messages import Loading, Report
from radixserve.step import EngineStats


class Watched:
    """An engine by its signs of life, and its watchdog with a limit of a minute."""

    def __init__(self) -> None:
        self.has_work = True
        self.used: float | None = 0.0
        self.dog = Watchdog(60.0, lambda: self.has_work)

    def hung_after(self, limit: int = 2000, *, busy: bool = False) -> int | None:
        """Seconds of silence until it is given up; None if that does not happen in `limit`."""
        for second in range(1, limit + 1):
            if busy and self.used is not None:
                self.used += 0.01
            if self.dog.is_hung(TICK_SECONDS, self.used):
                return second
        return None

    def step(self, seconds: float) -> None:
        self.dog.heard(Report([], EngineStats(observed={STEP_SECONDS.key(): [0.0, seconds]})))


@pytest.fixture
def engine() -> Watched:
    return Watched()


@pytest.fixture
def ready(engine: Watched) -> Watched:
    engine.dog.loaded()
    return engine


def test_an_engine_that_works_and_uses_no_processor_is_given_up(ready: Watched) -> None:
    assert ready.hung_after() == 60
    ready.dog.watch_anew()
    ready.dog.loaded()
    ready.step(30.0)
    assert ready.hung_after() == 60, "however long its steps take"


def test_a_step_that_uses_the_processor_may_take_ten_times_as_long_as_the_slowest(
    ready: Watched,
) -> None:
    ready.step(0.1)
    assert ready.hung_after(busy=True) == 60
    ready.step(30.0)
    ready.step(0.1)
    assert ready.hung_after(busy=True) == 300


def test_the_first_step_on_this_machine_gets_more_time(ready: Watched) -> None:
    assert ready.hung_after(busy=True) == 600


def test_what_is_known_of_steps_survives_the_engine(ready: Watched) -> None:
    ready.step(1.0)
    ready.dog.watch_anew()
    ready.dog.loaded()
    assert ready.hung_after(busy=True) == 60


def test_where_the_system_does_not_tell_the_processor_time_only_steps_count(ready: Watched) -> None:
    ready.used = None
    ready.step(0.1)
    assert ready.hung_after() == 60
    ready.step(10.0)
    assert ready.hung_after() == 100


def test_loading_may_take_as_long_as_it_uses_the_processor(engine: Watched) -> None:
    assert engine.hung_after(busy=True) is None
    engine.dog.heard(Loading("loading the model"))
    assert engine.hung_after() == 60


def test_an_engine_without_work_is_never_given_up(ready: Watched) -> None:
    ready.step(0.1)
    assert ready.hung_after(59) is None
    ready.has_work = False
    assert ready.hung_after() is None
    ready.has_work = True
    assert ready.hung_after() == 60, "work that comes later begins a new silence"


def test_each_message_begins_a_new_silence(ready: Watched) -> None:
    for _ in range(3):
        assert ready.hung_after(59) is None
        assert ready.dog.silent_seconds == 59
        ready.dog.heard(Report([]))
        assert ready.dog.silent_seconds == 0


def test_time_in_which_the_server_itself_was_stopped_does_not_count(ready: Watched) -> None:
    ready.step(0.1)
    assert not ready.dog.is_hung(3600.0, 0.0)
    assert ready.hung_after(57) is None


@pytest.mark.skipif(sys.platform != "linux", reason="read from /proc")
def test_the_processor_time_of_a_process_is_read() -> None:
    before = processor_seconds(os.getpid())
    assert before is not None
    while sum(os.times()[:2]) < before + 0.05:
        pass
    assert before < (processor_seconds(os.getpid()) or 0.0) < before + 60
    assert processor_seconds(2**22 + 1) is None, "there is no such process"
