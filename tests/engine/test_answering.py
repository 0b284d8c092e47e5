"""Questions about the cache while requests run: drops, the summary and the tree."""

from __future__ import annotations

import time

import pytest

from radixserve.engine import answering
from radixserve.engine.answering import Answering
from radixserve.prefix import Prefix
from radixserve.questions import (
    AnyQuestion,
    Asked,
    Drop,
    Dropped,
    Explain,
    Failed,
    ShowTree,
    Summarize,
    Summary,
    Tree,
)
from tests.engine.content_model import expected
from tests.engine.harness import Harness, request

LONG = list(range(1, 41))


def dropped(harness: Harness, question: Drop) -> Dropped:
    answer = harness.answer_to(question)
    assert isinstance(answer, Dropped)
    return answer


def cached(harness: Harness, tokens: list[int]) -> int:
    return harness.cache.match(Prefix.of("public", tokens))


@pytest.fixture(params=[False, True], ids=["in turn", "ahead"])
def harness(request: pytest.FixtureRequest) -> Harness:
    return Harness(ahead=request.param)


def test_a_flush_while_requests_run_hides_everything_and_changes_no_answer(
    harness: Harness,
) -> None:
    harness.submit(request("old", [90, 91, 92, 93], 2))
    harness.run()
    harness.submit(request("a", LONG, 8), request("b", [*LONG[:20], 70], 8))
    for _ in range(5):
        harness.step()
    answer = dropped(harness, Drop())
    assert answer.tokens > 0
    assert answer.leased_tokens > 0
    assert cached(harness, LONG) == cached(harness, [90, 91, 92, 93]) == 0
    harness.submit(request("c", LONG, 8))
    harness.run()
    assert harness.events["c"][0].num_cached == 0
    assert harness.tokens("a") == harness.tokens("c") == expected(LONG, 8)
    assert harness.tokens("b") == expected([*LONG[:20], 70], 8)
    while harness.core.answering.patience is not None:
        harness.core.answers()
    stats = harness.cache.stats()
    assert stats.cached == cached(harness, LONG + expected(LONG, 7)), "dropped K/V is still held"
    assert stats.private == stats.pinned == 0
    harness.assert_drained()


def test_a_flush_while_a_request_is_preempted(harness: Harness) -> None:
    small = Harness(num_slots=60, ahead=harness.core._ahead)
    prompts = {name: [*LONG[:length], 80] for name, length in (("a", 20), ("b", 24), ("c", 9))}
    small.submit(*(request(name, prompt, 14) for name, prompt in prompts.items()))
    for step in range(200):
        if not small.core.has_work:
            break
        small.step()
        if step % 3 == 0:
            dropped(small, Drop())
    for name, prompt in prompts.items():
        assert small.tokens(name) == expected(prompt, 14)
    while small.core.answering.patience is not None:
        small.core.answers()
    small.assert_drained()


def test_dropping_a_prefix_takes_what_follows_it_and_leaves_the_rest(harness: Harness) -> None:
    harness.submit(request("a", [*LONG[:20], 50, 51], 3))
    harness.run()
    harness.submit(request("b", [*LONG[:20], 60, 61], 3))
    harness.run()
    answer = dropped(harness, Drop(prefix=[*LONG[:20], 50]))
    assert answer == Dropped(tokens=4, nodes=1)
    assert cached(harness, [*LONG[:20], 50]) == 20
    assert cached(harness, [*LONG[:20], 60, 61]) == 22
    assert dropped(harness, Drop(prefix=[*LONG[:20], 50])) == Dropped()
    assert dropped(harness, Drop(namespaces=["other"])) == Dropped()


def test_dropping_a_tenant_leaves_the_others(harness: Harness) -> None:
    cache = harness.cache
    for name in ("acme/1", "acme/2", "acme2/1"):
        prefix = Prefix.of(name, LONG[:10])
        lease = cache.receive(prefix)
        assert lease is not None
        with lease:
            lease.publish(prefix)
    assert dropped(harness, Drop(tenant="acme")) == Dropped(tokens=20, nodes=2)
    assert list(cache.tree.roots) == ["acme2/1"]


def test_what_a_running_request_computes_of_a_dropped_prefix_is_never_found(
    harness: Harness,
) -> None:
    harness.submit(request("a", LONG, 4))
    harness.step()  # the first chunk of 16
    dropped(harness, Drop(prefix=LONG[:8]))
    harness.run()
    assert harness.tokens("a") == expected(LONG, 4)
    assert cached(harness, LONG) < 8
    harness.assert_drained()


def test_what_was_not_used_for_long_goes(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    core = harness.core
    core.answering = Answering(harness.cache, core.scheduler, core.tiers)
    harness.submit(request("old", [*LONG[:20], 50], 2))
    harness.run()
    core.stats()
    now[0] += 100
    harness.submit(request("new", [*LONG[:20], 60], 2))
    harness.run()
    core.stats()
    now[0] += 10
    core.answering.note_time()
    monkeypatch.setattr(answering, "SLICE_SECONDS", 1e9)
    summary = harness.answer_to(Summarize())
    assert isinstance(summary, Summary)
    assert summary.oldest_seconds == 110
    assert dropped(harness, Drop(older_than=50)) == Dropped(tokens=2, nodes=1)
    assert cached(harness, [*LONG[:20], 60]) == 21
    assert dropped(harness, Drop(older_than=5)).tokens == 22


def test_the_tree_is_told_in_bounded_pieces(harness: Harness) -> None:
    for name, tail in (("a", [50, 51, 52]), ("b", [60]), ("c", [60, 61])):
        harness.submit(request(name, [*LONG[:20], *tail], 1))
        harness.run()
    whole = harness.answer_to(ShowTree(num_first_tokens=2))
    assert isinstance(whole, Tree)
    root, top, *rest = whole.nodes
    assert (root.namespace, root.tokens, root.below_tokens) == ("public", 0, 25)
    assert (top.parent, top.depth, top.tokens, top.first_tokens) == (root.id, 0, 20, [1, 2])
    assert (top.hits, top.children) == (2, 2)
    assert [(each.parent, each.tokens, each.first_tokens) for each in rest] == [
        (top.id, 3, [50, 51]),
        (top.id, 2, [60, 61]),
    ]
    below = harness.answer_to(ShowTree(node=top.id, depth=0))
    assert isinstance(below, Tree)
    assert [each.id for each in below.nodes] == [top.id]
    assert (below.nodes[0].below_tokens, below.num_nodes) == (5, 3)
    few = harness.answer_to(ShowTree(most=2))
    assert isinstance(few, Tree)
    assert [each.id for each in few.nodes] == [root.id, top.id]
    assert (few.num_nodes, few.num_tokens) == (4, 25)
    assert dropped(harness, Drop(node=rest[1].id)) == Dropped(tokens=2, nodes=1)
    assert harness.answer_to(ShowTree(node=rest[1].id)) == Failed(
        message="There is no such node any more.", not_found=True
    )
    harness.cache.slots.evict(5)
    alone = harness.answer_to(ShowTree())
    assert isinstance(alone, Tree)
    assert [each.hits for each in alone.nodes] == [2, 2], "those of what is gone count"


def test_a_flush_waits_for_one_question_of_tenants_only() -> None:
    core = Harness(ahead=False).core
    explain = Explain(namespace="public", tokens=LONG)
    questions: list[AnyQuestion] = [explain, explain, explain, Drop(), Summarize()]
    for number, question in enumerate(questions):
        core.ask(Asked(number, question))
    answered: list[int] = []
    while core.answering.patience is not None:
        answered += [each.id for each in core.answers()]
    assert answered == [0, 3, 4, 1, 2]


def test_a_question_that_breaks_is_told_and_the_next_one_answered(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("boom")

    monkeypatch.setattr(answering, "survey", broken)
    answer = harness.answer_to(Summarize())
    assert isinstance(answer, Failed)
    assert "boom" in answer.message
    assert dropped(harness, Drop()) == Dropped()
