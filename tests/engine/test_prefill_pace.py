"""How fast prompts are computed, and how many of their tokens a step may have beside decodes."""

from __future__ import annotations

import pytest

from radixserve.engine.prefill_pace import MIN_TOKENS, PrefillPace
from radixserve.tiers.pace import TELLING_TOKENS


def test_the_few_tokens_behind_cached_prompts_say_nothing_about_the_speed_of_prefill() -> None:
    pace = PrefillPace(1.0)
    for _ in range(20):
        pace.observe(8, 5, 0.025, is_full=False)
    assert pace.tokens_per_second == 0.0
    pace.observe(0, 256, 0.25, is_full=True)
    assert pace.tokens_per_second == pytest.approx(1024)
    for _ in range(20):
        pace.observe(8, TELLING_TOKENS - 1, 1.0, is_full=False)
    assert pace.tokens_per_second == pytest.approx(1024)


def test_steps_whose_prompts_were_cut_are_the_speed_of_an_overload() -> None:
    pace = PrefillPace(1.0)
    for _ in range(50):
        pace.observe(8, 10, 0.05, is_full=True)
    assert pace.tokens_per_second == pytest.approx(200)


def test_prompts_beside_decodes_take_as_long_as_their_share_says() -> None:
    pace = PrefillPace(0.5)
    assert pace.most_tokens() is None
    pace.observe(8, 0, 0.02, is_full=False)
    pace.observe(0, 100, 0.1, is_full=True)
    assert pace.most_tokens() == 10
    for _ in range(50):
        pace.observe(0, 100, 100.0, is_full=True)
    assert pace.most_tokens() == MIN_TOKENS
    assert PrefillPace(0.0).most_tokens() is None
