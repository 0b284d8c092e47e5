"""How fast prompts are computed, and how many of their tokens a step may have beside decodes."""

from __future__ import annotations

import pytest

from radixserve.engine.prefill_pace import MIN_TOKENS, PrefillPace
from radixserve.tiers.pace import TELLING_TOKENS


def test_the_few_tokens_behind_cached_prompts_say_nothing_about_the_speed_of_prefill() -> None:
    pace = PrefillPace(1.0)
    for _ in range(20):
        pace.observe(5, 0.025, is_full=False)
    assert pace.tokens_per_second == 0.0
    pace.observe(256, 0.25, is_full=True)
    assert pace.tokens_per_second == pytest.approx(1024)
    for _ in range(20):
        pace.observe(TELLING_TOKENS - 1, 1.0, is_full=False)
    assert pace.tokens_per_second == pytest.approx(1024)


def test_steps_whose_prompts_were_cut_are_the_speed_of_an_overload() -> None:
    pace = PrefillPace(1.0)
    for _ in range(50):
        pace.observe(10, 0.05, is_full=True)
    assert pace.tokens_per_second == pytest.approx(200)


def test_prompts_beside_decodes_take_as_long_as_their_share_says() -> None:
    pace = PrefillPace(0.5)
    assert pace.most_tokens() is None
    pace.observe(0, 0.04, is_full=False)
    pace.observe(100, 0.04 + 100 * 0.0005, is_full=True)
    assert pace.most_tokens() == pytest.approx(40, abs=1)
    for _ in range(50):
        pace.observe(100, 100.0, is_full=True)
    assert pace.most_tokens() == MIN_TOKENS


def test_a_step_may_last_a_little_in_any_case() -> None:
    pace = PrefillPace(1.0, 0.050)
    pace.observe(100, 0.1, is_full=True)
    assert pace.most_tokens() == pytest.approx(50, abs=1), "no decode was seen yet"
    pace.observe(0, 0.01, is_full=False)
    assert pace.most_tokens() == pytest.approx(40, abs=1)
    for _ in range(60):
        pace.observe(0, 0.04, is_full=False)
    assert pace.most_tokens() in (39, 40)


def test_without_a_share_there_is_no_limit() -> None:
    pace = PrefillPace(0.0, 0.025)
    pace.observe(0, 0.01, is_full=False)
    pace.observe(100, 0.1, is_full=True)
    assert pace.most_tokens() is None
