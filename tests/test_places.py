"""Places for what waits, shared among tenants."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack

import pytest

from radixserve.errors import Unavailable
from radixserve.places import Places
from radixserve.tenants import ASKING, num_before


def test_who_has_little_in_the_queue_waits_for_little_of_it() -> None:
    waiting = Counter(flood=19, calm=1)
    assert num_before("flood", waiting) == 20
    assert num_before("calm", waiting) == 2
    assert num_before("new", waiting) == 0
    assert num_before("flood", Counter()) == 0


def test_a_tenant_that_has_all_places_leaves_some_to_others() -> None:
    places = Places(4, "Full.")
    with ExitStack() as taken:
        for tenant, number in (("flood", 4), ("calm", 1)):
            ASKING.set(tenant)
            for _ in range(number):
                taken.enter_context(places.one())
        ASKING.set("flood")
        with pytest.raises(Unavailable, match="Full"), places.one():
            pass
    with places.one():
        pass
