"""The trees of all tiers as an operator sees them: every node says how much of it each tier has."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

import msgspec
import pytest

from radixserve.cache import survey
from radixserve.engine import showing
from radixserve.prefix import Prefix, pack
from radixserve.questions import (
    Drop,
    Dropped,
    Failed,
    ShowTree,
    Tree,
    TreeNode,
)
from radixserve.store.folder import listing
from radixserve.store.folder.disk_store import DiskStore
from tests.engine.harness import request
from tests.tiers.parts import Tiered

TIERS = ("device", "host", "disk")


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Tiered]:
    """An engine that served more than its device holds, so that each tier has something else."""
    engine = Tiered(96, host_slots=128, folder=tmp_path / "s")
    random = Random(3)
    for number in range(12):
        prompt = [1] * 8 + [random.randrange(3) for _ in range(random.randrange(4, 40))]
        plain = request(f"r{number}", prompt, 2)
        of_tenant = {"namespace": "a/0", "num_public": 8} if number % 3 == 2 else {}
        engine.ask(msgspec.structs.replace(plain, **of_tenant))
    yield engine
    engine.close()


def tree(engine: Tiered, question: ShowTree) -> Tree:
    answer = engine.answer_to(question)
    assert isinstance(answer, Tree)
    return answer


def ageless(shown: Tree) -> list[TreeNode]:
    """The nodes as they are whenever they are asked for."""
    return [msgspec.structs.replace(each, age_seconds=0.0) for each in shown.nodes]


def prefix_of(node: TreeNode, nodes: dict[int, TreeNode]) -> Prefix:
    """The tokens from the root to the end of `node`, all of whose tokens are told."""
    above = nodes.get(node.parent or 0)
    before = Prefix(node.namespace or "", b"") if above is None else prefix_of(above, nodes)
    if before.num_tokens > node.depth:
        before = before.first(node.depth)
    if node.namespace not in (None, before.namespace):
        before = Prefix(node.namespace or "", before.tokens, node.depth)
    return before._replace(tokens=before.tokens + pack(node.first_tokens))


def has(engine: Tiered, tier: str, prefix: Prefix) -> int:
    """How many of the tokens a tier says that it has."""
    if tier == "device":
        return engine.cache.match(prefix)
    assert engine.host
    assert engine.store
    return engine.host.cache.match(prefix) if tier == "host" else engine.store.match(prefix)


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("nodes_in_a_part", [1, 512])
def test_every_node_says_what_each_tier_has_of_it(
    engine: Tiered, tier: str, nodes_in_a_part: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(survey, "NODES", nodes_in_a_part)
    monkeypatch.setattr(listing, "NODES", nodes_in_a_part)
    monkeypatch.setattr(showing, "BATCH", nodes_in_a_part)
    shown = tree(engine, ShowTree(tier=tier, depth=64, most=2000, num_first_tokens=1000))
    by_id = {each.id: each for each in shown.nodes}
    assert len(shown.nodes) > 3
    assert shown.num_tokens == sum(each.tokens for each in shown.nodes)
    assert {each.namespace for each in shown.nodes if each.parent not in by_id} == {"public"}
    for node in shown.nodes:
        prefix = prefix_of(node, by_id)
        expected = {
            each: min(max(has(engine, each, prefix) - node.depth, 0), node.tokens) for each in TIERS
        }
        assert node.tiers == expected
        assert node.tiers[tier] == node.tokens
        below = [each for each in shown.nodes if is_below(each, node, by_id)]
        assert node.below_tokens == sum(each.tokens for each in below)
        assert node.below_nodes == len(below)
        assert node.children == sum(each.parent == node.id for each in shown.nodes)


def is_below(node: TreeNode, other: TreeNode, nodes: dict[int, TreeNode]) -> bool:
    above = nodes.get(node.parent or 0)
    return above is not None and (above is other or is_below(above, other, nodes))


@pytest.mark.parametrize("tier", TIERS)
def test_a_view_of_a_few_levels_has_the_sums_of_all(engine: Tiered, tier: str) -> None:
    whole = tree(engine, ShowTree(tier=tier, depth=64, most=2000, num_first_tokens=1000))
    top = tree(engine, ShowTree(tier=tier, depth=1, num_first_tokens=1000))
    assert 0 < len(top.nodes) < len(whole.nodes)
    assert (top.num_nodes, top.num_tokens) == (whole.num_nodes, whole.num_tokens)
    found = {each.id: each for each in whole.nodes}
    for node in top.nodes:
        told = found[node.id]
        assert (node.children, node.below_nodes, node.below_tokens, node.hits) == (
            (told.children, told.below_nodes, told.below_tokens, told.hits)
        )
    inner = max(top.nodes, key=lambda each: each.depth)
    inside = tree(engine, ShowTree(tier=tier, node=inner.id))
    assert (inside.nodes[0].id, inside.nodes[0].namespace) == (inner.id, "public")
    assert inside.nodes[0].tiers == inner.tiers
    assert inside.num_tokens == inner.tokens + inner.below_tokens


def test_a_branch_that_only_the_disk_has_is_dropped(engine: Tiered) -> None:
    shown = tree(engine, ShowTree(tier="disk", depth=64, num_first_tokens=1000))
    by_id = {each.id: each for each in shown.nodes}
    alone = next(each for each in shown.nodes if not each.tiers["device"] + each.tiers["host"])
    answer = engine.answer_to(Drop(node=alone.id, tier="disk"))
    assert isinstance(answer, Dropped)
    assert answer.tokens == 0
    assert answer.tiers["disk"] >= alone.tokens
    assert has(engine, "disk", prefix_of(alone, by_id)) <= alone.depth
    gone = engine.answer_to(ShowTree(tier="disk", node=alone.id))
    assert isinstance(gone, Failed)
    assert gone.not_found


def test_a_tier_that_is_not_there_has_no_tree() -> None:
    answer = Tiered(64).answer_to(ShowTree(tier="host"))
    assert answer == Failed(message="This server has no tier host.", not_found=True)


def test_a_disk_that_hangs_is_left_out(engine: Tiered, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(showing, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr("radixserve.engine.answering.TIER_SECONDS", 0.05)
    go_on = threading.Event()
    monkeypatch.setattr(DiskStore, "match", lambda *_: go_on.wait(10.0) and 0)
    try:
        shown = tree(engine, ShowTree())
        assert {tuple(each.tiers) for each in shown.nodes} == {("device", "host")}
        began = time.monotonic()
        answer = engine.answer_to(ShowTree(tier="disk"))
        assert answer == Failed(message="The disk tier does not answer.")
        assert time.monotonic() - began < 5
    finally:
        go_on.set()


def test_a_folder_that_cannot_be_read_has_an_empty_tree(
    engine: Tiered, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise OSError("the disk is gone")

    monkeypatch.setattr("radixserve.store.folder.index.Index.outlines", broken)
    answer = engine.answer_to(ShowTree(tier="disk"))
    assert isinstance(answer, Failed)
    assert not answer.not_found
    assert engine.store is not None
    assert engine.store.stats().read_errors_total == 1


@pytest.mark.parametrize("tier", TIERS)
def test_a_namespace_is_shown_without_the_public_tokens_before_it(
    engine: Tiered, tier: str
) -> None:
    whole = tree(engine, ShowTree(tier=tier, depth=64, most=2000))
    question = ShowTree(tier=tier, depth=64, most=2000, namespaces=["a/0"])
    theirs, public = (
        tree(engine, msgspec.structs.replace(question, namespaces=[each]))
        for each in ("a/0", "public")
    )
    assert {each.depth for each in theirs.nodes if each.namespace} == {8}
    assert {each.namespace for each in theirs.nodes} <= {"a/0", None}
    assert theirs.num_tokens + public.num_tokens == whole.num_tokens
    ids = {each.id for each in (*theirs.nodes, *public.nodes)}
    assert ids == {each.id for each in whole.nodes}
    node = theirs.nodes[-1]
    dropped = engine.answer_to(Drop(node=node.id, tier=tier))
    assert isinstance(dropped, Dropped)
    after = tree(engine, msgspec.structs.replace(question, namespaces=["public"]))
    assert ageless(after) == ageless(public)
