"""A long step of the start is told, again and again until it ends."""

from __future__ import annotations

import logging
import time

import pytest

from radixserve.progress import long_stage


def test_a_long_stage_is_told_at_its_begin_and_every_few_seconds(
    caplog: pytest.LogCaptureFixture,
) -> None:
    done = 0
    with caplog.at_level(logging.INFO), long_stage("packing", 1000, lambda: done, every=0.05):
        while len(caplog.messages) < 2:
            time.sleep(0.01)
        done = 1000
        while len(caplog.messages) < 4:
            time.sleep(0.01)
    count = len(caplog.messages)
    assert caplog.messages[:2] == ["packing", "packing: 0 of 1,000, 0 s"]
    assert caplog.messages[3] == "packing: 1,000 of 1,000, 0 s"
    time.sleep(0.15)
    assert len(caplog.messages) == count


def test_a_stage_that_fails_is_not_told_any_more(caplog: pytest.LogCaptureFixture) -> None:
    with (
        caplog.at_level(logging.INFO),
        pytest.raises(ValueError, match="broken"),
        long_stage("comparing", every=0.05),
    ):
        raise ValueError("broken")
    time.sleep(0.15)
    assert caplog.messages == ["comparing"]


def test_only_the_innermost_stage_is_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), long_stage("packing", 9, every=0.01):
        with long_stage("compiling", every=0.02):
            inside = len(caplog.messages)
            while len(caplog.messages) < inside + 3:
                time.sleep(0.01)
            told = caplog.messages[inside:]
        while not caplog.messages[-1].startswith("packing: 0 of 9"):
            time.sleep(0.01)
    assert {line.partition(":")[0] for line in told} == {"compiling"}
