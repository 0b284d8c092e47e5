"""Every policy over single tokens, against its definition over lists (references.py)."""

from __future__ import annotations

import random
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from radixserve.cache.policies.policy import Scale
from radixserve.cache.policies.table import POLICIES
from radixserve.config import EvictionPolicy
from tests.cache.policies.flat import Flat
from tests.cache.policies.references import REFERENCES


def compare(name: str, size: int, keys: list[int]) -> None:
    cache, reference = Flat(size, POLICIES[name](Scale(size, chunk=1))), REFERENCES[name](size)
    for key in keys:
        assert cache.access(key) == reference.access(key), "a hit where none belongs, or none"
        assert cache.cached() == reference.cached(), "another leaf went"
        cache.cache.check()


@pytest.mark.parametrize("name", REFERENCES)
@settings(deadline=None)
@given(size=st.integers(1, 12), keys=st.lists(st.integers(0, 20), max_size=120))
def test_a_policy_is_what_its_authors_wrote(name: str, size: int, keys: list[int]) -> None:
    compare(name, size, keys)


@pytest.mark.parametrize("name", REFERENCES)
def test_it_stays_so_in_long_walks_with_a_few_keys_that_are_frequent(name: str) -> None:
    rng = random.Random(7)
    keys = [min(int(rng.paretovariate(0.7)), 90) for _ in range(3000)]
    compare(name, 25, keys)


def test_the_setting_knows_every_policy() -> None:
    assert get_args(EvictionPolicy) == tuple(POLICIES)


def test_every_policy_but_our_own_has_a_reference() -> None:
    assert POLICIES.keys() - REFERENCES.keys() == {"worth"}
