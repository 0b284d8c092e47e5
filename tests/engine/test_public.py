"""Public prefixes in the engine: computed once for all tenants, while what follows stays apart."""

from __future__ import annotations

import time
from typing import Any

import msgspec
import pytest

from radixserve.prefix import PUBLIC, pack
from radixserve.questions import (
    Drop,
    Explain,
    Explanation,
    ListPins,
    Pin,
    PinList,
    ShowTree,
    Summarize,
    Summary,
    Tree,
)
from radixserve.request import Request
from tests.engine.content_model import expected
from tests.engine.harness import Harness, request

SYSTEM = [1 + i % 9 for i in range(40)]
MORE = [2] * 30


@pytest.fixture(params=[False, True], ids=["in turn", "ahead"])
def harness(request: pytest.FixtureRequest) -> Harness:
    return Harness(num_slots=300, ahead=request.param)


def of(tenant: str, name: str, prompt: list[int], **fields: Any) -> Request:
    plain = request(name, prompt)
    usual = {"namespace": f"{tenant}/0", "num_public": len(SYSTEM)}
    return msgspec.structs.replace(plain, tenant=tenant, **(usual | fields))


def run(harness: Harness, *requests: Request) -> None:
    harness.submit(*requests)
    harness.run()
    for each in requests:
        assert harness.tokens(each.id) == expected(each.prompt_ids, 4)


def cached(harness: Harness, name: str) -> int | None:
    return harness.events[name][0].num_cached


def test_one_tenant_finds_the_public_part_that_another_computed_and_no_more(
    harness: Harness,
) -> None:
    run(harness, of("a", "first", [*SYSTEM, *MORE]))
    run(harness, of("b", "second", [*SYSTEM, *MORE]), of("a", "third", [*SYSTEM, *MORE]))
    assert [cached(harness, each) for each in ("first", "second", "third")] == [0, 40, 69]
    run(harness, of("b", "salted", [*SYSTEM, *MORE], num_public=0, namespace="b/1"))
    assert cached(harness, "salted") == 0


def test_a_public_part_that_is_being_computed_is_waited_for(harness: Harness) -> None:
    harness.submit(*(of(each, each, [*SYSTEM, *MORE]) for each in "abc"))
    harness.run()
    assert harness.model.computed_tokens == 40 + 3 * (30 + 3)


def test_public_tokens_count_for_no_tenant_and_stay_within_quotas_of_none(
    harness: Harness,
) -> None:
    run(harness, *(of(each, each, [*SYSTEM, *MORE], kv_quota=0.1, kv_floor=0.05) for each in "ab"))
    assert harness.cache.tree.tokens_of == {"": 40, "a": 33, "b": 33}
    harness.cache.slots.evict(60)
    assert harness.cache.tree.tokens_of[""] == 40  # what hangs below them goes first
    harness.cache.check()


def test_the_tree_and_the_summary_name_the_namespaces(harness: Harness) -> None:
    run(harness, of("a", "a", [*SYSTEM, *MORE]), of("b", "b", [*SYSTEM, 5]))
    summary: Summary = harness.answer_to(Summarize())
    told = {each.namespace: (each.tokens, each.nodes) for each in summary.namespaces}
    assert told == {PUBLIC: (40, 1), "a/0": (33, 1), "b/0": (4, 1)}
    assert (summary.nodes, summary.num_namespaces) == (3, 3)
    assert [each.hits for each in summary.namespaces] == [1, 0, 0]
    tree: Tree = harness.answer_to(ShowTree())
    system = next(each for each in tree.nodes if each.tokens == 40)
    roots = {each.namespace: each for each in tree.nodes if each.namespace is not None}
    assert roots.keys() == {PUBLIC, "a/0", "b/0"}
    assert roots["a/0"].parent == roots["b/0"].parent == system.id
    alone: Tree = harness.answer_to(ShowTree(namespaces=["a/0"]))
    assert (alone.num_tokens, [each.namespace for each in alone.nodes]) == (33, ["a/0", None])
    public: Tree = harness.answer_to(ShowTree(namespaces=[PUBLIC]))
    assert public.num_tokens == 40
    assert [each.hits for each in public.nodes] == [1, 1]


def test_the_age_of_public_tokens_is_that_of_their_last_use(harness: Harness) -> None:
    ages = harness.core.answering._ages
    began = time.monotonic()
    for number, name in enumerate("abab"):
        harness.submit(of(name, f"{name}{number}", [*SYSTEM, *MORE, number]))
        harness.run()
        ages.note(harness.cache.evictor.clock, began - 100 + 10 * number)
    public: Tree = harness.answer_to(ShowTree(namespaces=[PUBLIC]))
    everything: Tree = harness.answer_to(ShowTree())
    system = next(each for each in everything.nodes if each.tokens == 40)
    assert 69 < system.age_seconds < 80
    told = (3, system.age_seconds)
    assert [(each.hits, each.age_seconds) for each in public.nodes] == [told, told]


@pytest.mark.parametrize(
    ("drop", "left"),
    [
        (Drop(tenant="a"), {"": 40, "b": 33}),
        (Drop(namespaces=["b/0"]), {"": 40, "a": 33}),
        (Drop(namespaces=[PUBLIC]), {}),
        (Drop(prefix=SYSTEM), {}),
        (Drop(prefix=[*SYSTEM, *MORE]), {"": 40}),
        (Drop(tenant="b", prefix=SYSTEM[:5]), {"": 40, "a": 33}),
    ],
)
def test_drops(harness: Harness, drop: Drop, left: dict[str, int]) -> None:
    run(harness, *(of(each, each, [*SYSTEM, *MORE]) for each in "ab"))
    harness.answer_to(drop)
    assert harness.cache.tree.tokens_of == left


def test_explain_shows_nobody_what_others_added(harness: Harness) -> None:
    run(harness, of("a", "a", [*SYSTEM, *MORE]))
    question = Explain(tokens=[*SYSTEM, 5, 6], namespace="b/0", num_public=40)
    told: Explanation = harness.answer_to(question)
    assert told.matched == {"device": 40}
    assert (told.compared, told.theirs) == (None, [])
    public = Explain(tokens=[*SYSTEM[:30], 99], namespace=PUBLIC, num_public=30)
    of_all: Explanation = harness.answer_to(public)
    assert (of_all.theirs_from, of_all.theirs) == (22, SYSTEM[22:])
    own: Explanation = harness.answer_to(msgspec.structs.replace(question, namespace="a/0"))
    assert own.compared is not None
    assert own.theirs[own.differs_at or 0 :][0] == 2


def test_explain_knows_that_public_tokens_were_evicted(harness: Harness) -> None:
    long = [*SYSTEM, *MORE, *MORE]
    run(harness, of("a", "a", long))
    harness.cache.slots.evict(300)
    told: Explanation = harness.answer_to(Explain(tokens=long, namespace="a/0", num_public=40))
    assert told.lost == {"evicted": len(long) - 1}


def test_a_pin_on_public_tokens_is_renewed_by_every_tenant() -> None:
    harness = Harness(num_slots=300, ahead=False)
    harness.core.scheduler.pins._most = 100
    run(harness, of("a", "a", [*SYSTEM, *MORE]))
    pin = Pin(id="p", seconds=60, renews=True, namespace="a/0", packed=pack(SYSTEM), num_public=40)
    harness.answer_to(pin)
    run(harness, of("b", "b", [*SYSTEM, 5]))
    pins: PinList = harness.answer_to(ListPins())
    assert [(each.namespace, each.tokens, each.hits) for each in pins.pins] == [(PUBLIC, 40, 1)]
    harness.cache.slots.evict(300)
    assert harness.cache.tree.tokens_of == {"": 40}


def test_evicted_public_tokens_that_come_back_are_seen_in_hindsight() -> None:
    harness = Harness(num_slots=200, ahead=False)
    prompt = [*SYSTEM, *SYSTEM, *MORE]
    run(harness, of("a", "a", prompt, num_public=80))
    harness.cache.slots.evict(200)
    run(harness, of("b", "b", prompt, num_public=80))
    hindsight = harness.cache.slots.hindsight
    assert hindsight is not None
    assert hindsight.recomputed_tokens == 64
