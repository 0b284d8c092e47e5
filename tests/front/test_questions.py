"""Questions to the engine: how many may wait."""

from __future__ import annotations

import asyncio

import pytest

from radixserve.errors import Unavailable
from radixserve.front.questions import MAX_OF_TENANTS, MAX_WAITING, Questions
from radixserve.questions import Answered, Asked, Drop, Dropped, Explain


async def test_tenants_who_ask_much_leave_places_to_administrators() -> None:
    sent: list[Asked] = []
    questions = Questions(sent.append)
    questions.engine_is_ready()
    explain = Explain(namespace="a", tokens=[1])
    waiting = [asyncio.create_task(questions.ask(explain)) for _ in range(MAX_OF_TENANTS)]
    await asyncio.sleep(0)
    with pytest.raises(Unavailable, match="Too many"):
        await questions.ask(explain)
    more = MAX_WAITING - MAX_OF_TENANTS
    drops = [asyncio.create_task(questions.ask(Drop())) for _ in range(more)]
    await asyncio.sleep(0)
    with pytest.raises(Unavailable, match="Too many"):
        await questions.ask(Drop())
    for asked in sent[MAX_OF_TENANTS:]:
        questions.take(Answered(asked.id, Dropped(tokens=3)))
    assert {each.tokens for each in await asyncio.gather(*drops)} == {3}
    questions.close("over")
    assert all(
        isinstance(e, Unavailable) for e in await asyncio.gather(*waiting, return_exceptions=True)
    )
