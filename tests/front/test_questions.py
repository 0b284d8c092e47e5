"""Questions to the engine: how many may wait."""

from __future__ import annotations

import asyncio

import pytest

from radixserve.errors import Unavailable
from radixserve.front.questions import MAX_OF_TENANTS, MAX_WAITING, Questions
from radixserve.questions import Answered, AnyQuestion, Asked, Drop, Dropped, Explain


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


async def test_drops_are_kept_until_an_engine_has_made_them() -> None:
    sent: list[Asked] = []
    questions = Questions(sent.append)

    def sent_now() -> list[AnyQuestion]:
        asked = [each.question for each in sent]
        sent.clear()
        return asked

    questions.close("the engine does not start")
    part, other = Drop(tenant="a"), Drop(namespaces=["b"])
    assert [questions.keep(each) for each in (part, part, other)] == [True] * 3
    assert not questions.keep(Drop(node=1)), "the next engine has other nodes"
    questions.engine_is_ready()
    first = sent[0].id
    assert sent_now() == [part, other]
    questions.take(Answered(first, Dropped()))
    questions.engine_died()
    questions.engine_is_ready()
    assert sent_now() == [other]
    questions.close("the engine does not start")
    assert questions.keep(Drop())
    questions.engine_is_ready()
    assert sent_now() == [Drop()], "which is all of them"


async def test_no_more_drops_are_kept_than_may_wait() -> None:
    questions = Questions(lambda asked: None)
    kept = [questions.keep(Drop(prefix=[number])) for number in range(MAX_WAITING + 1)]
    assert kept == [True] * MAX_WAITING + [False]
    assert questions.keep(Drop())
