"""The estimate of how long a request will wait."""

from __future__ import annotations

import pytest

from radixserve.engine.counters import BACKLOG_TOKENS, COMPUTED, PREFILL_RATE, PROMPT_TOKENS
from radixserve.front.backlog import Backlog, retry_after
from radixserve.step import EngineStats


def stats(backlog: float, rate: float, computed: float = 0, cached: float = 0) -> EngineStats:
    return EngineStats(
        numbers={
            BACKLOG_TOKENS.key(): backlog,
            PREFILL_RATE.key(): rate,
            PROMPT_TOKENS.key(COMPUTED): computed,
            PROMPT_TOKENS.key("device"): cached,
        }
    )


def test_nothing_is_estimated_before_anything_was_measured() -> None:
    backlog = Backlog()
    backlog.sent(10_000)
    assert backlog.seconds(10) == 0.0


def test_uncached_tokens_take_their_time_and_nobody_waits_alone() -> None:
    backlog = Backlog()
    backlog.report(stats(5000, 100))
    assert backlog.seconds(1) == pytest.approx(50)
    assert backlog.seconds(0) == 0.0
    backlog.sent(1000)
    assert backlog.seconds(1) == pytest.approx(60)
    backlog.report(stats(0, 0))
    assert backlog.seconds(1) == 0.0


def test_of_cached_traffic_little_is_expected_to_be_computed() -> None:
    backlog = Backlog()
    for i in range(1, 60):
        backlog.report(stats(0, 100, computed=i, cached=999 * i))
    backlog.sent(100_000)
    assert backlog.tokens < 1000


def test_seats_become_free_as_fast_as_lately() -> None:
    now = [0.0]
    backlog = Backlog(lambda: now[0])
    now[0] = 100.0
    backlog.ended(others_wait=False)
    for _ in range(5):
        now[0] += 2.0
        backlog.ended(others_wait=True)
    assert backlog.seconds(20) == pytest.approx(40)


def test_time_in_which_nobody_waited_says_nothing_about_seats() -> None:
    now = [0.0]
    backlog = Backlog(lambda: now[0])
    for _ in range(3):
        now[0] += 3600.0  # idle for an hour, then a few requests at once
        backlog.ended(others_wait=True)
        now[0] += 1.0
        backlog.ended(others_wait=True)
        backlog.ended(others_wait=False)
    assert backlog.seconds(6) <= 6.0


def test_retry_after_is_bounded_and_spread() -> None:
    assert {retry_after(0.0), retry_after(0.2)} == {1}
    assert retry_after(1e9) == 60
    drawn = {retry_after(30.0) for _ in range(300)}
    assert min(drawn) >= 24
    assert max(drawn) <= 36
    assert len(drawn) > 5
