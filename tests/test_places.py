"""Places for what waits, shared among tenants."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import ExitStack

import pytest

from radixserve.errors import Unavailable
from radixserve.places import Places, Turns
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


async def test_tenants_take_turns_and_who_leaves_takes_none() -> None:
    turns = Turns(1)
    served: list[str] = []

    async def work(tenant: str) -> None:
        ASKING.set(tenant)
        async with turns.one():
            await asyncio.sleep(0)
            served.append(tenant)

    tasks = [asyncio.create_task(work(each)) for each in ("a", "a", "a", "a", "b", "c")]
    await asyncio.sleep(0)
    tasks[1].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert served == ["a", "b", "c", "a", "a"]
    async with asyncio.timeout(1):
        await work("d")


async def test_a_turn_that_comes_to_who_is_just_leaving_goes_on_to_the_next() -> None:
    turns = Turns(1)
    served: list[str] = []

    async def work(name: str) -> None:
        async with turns.one():
            served.append(name)

    async with turns.one():
        leaving, next_one = asyncio.create_task(work("leaving")), asyncio.create_task(work("next"))
        await asyncio.sleep(0)
    leaving.cancel()  # its turn has come
    async with asyncio.timeout(1):
        await next_one
    assert served == ["next"]
