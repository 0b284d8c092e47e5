"""Fixtures of the tests of tiers."""

from __future__ import annotations

import pytest

from radixserve.engine import tiers


@pytest.fixture
def few_are_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prefixes of two tokens are fetched from tiers."""
    monkeypatch.setattr(tiers, "MIN_FETCH", 2)
