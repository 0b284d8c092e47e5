"""Walks over large trees do a bounded amount of work between two steps."""

from __future__ import annotations

import gc
import sys
from types import FrameType
from typing import Any

import pytest

from radixserve.cache import survey
from radixserve.cache.ages import Ages
from radixserve.cache.kvcache import KVCache
from radixserve.cache.listing import list_tree
from radixserve.cache.survey import Surveyed
from radixserve.prefix import Prefix
from radixserve.questions import NamespaceTokens, ShowTree
from radixserve.store.format.rows import Outline

NODES = 3000
PART, LIST = 100, 50


def tree(shape: str) -> KVCache:
    cache = KVCache(NODES * 13, hindsight=None)
    for number in range(NODES):
        namespace, tokens = "public", [1, number]
        if shape == "many roots":
            namespace = f"n/{number}"
        if shape == "branches":
            tokens = [int(digit) for digit in f"{number:012b}"]
        prefix = Prefix.of(namespace, tokens)
        lease = cache.lease(prefix, len(tokens))
        assert lease is not None
        lease.publish(prefix)
        lease.release()
    return cache


class Lines:
    """Counts the lines of Python that run, each turn of a comprehension included."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, _frame: FrameType, event: str, _arg: Any) -> Lines:
        self.count += event == "line"
        return self


@pytest.mark.parametrize("shape", ["one level", "many roots", "branches"])
def test_no_part_of_a_walk_grows_with_the_tree(shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey, "NODES", PART)
    cache = tree(shape)
    walk = list_tree(cache, Ages(0.0), ShowTree(depth=64, most=LIST))
    lines, parts, before = Lines(), [], sys.gettrace()
    alive = 0
    while True:
        lines.count = 0
        sys.settrace(lines)
        try:
            next(walk)
        except StopIteration as end:
            listing = end.value
            break
        finally:
            sys.settrace(before)
            parts.append(lines.count)
        if len(parts) % 10 == 0:
            found = sum(type(each) is survey.Surveyed for each in gc.get_objects())
            alive = max(alive, found)
    assert listing.num_nodes > NODES
    assert len(listing.nodes) == LIST
    assert len(parts) > NODES / PART
    assert max(parts) < 60 * PART
    assert alive <= LIST + 64, "the collector would examine the whole tree for so many objects"


def test_what_a_walk_keeps_of_each_node_is_not_examined_by_the_garbage_collector() -> None:
    run = Outline(id=1, parent=0, start=0, length=3, namespace="public", used=0.0, hits=0)
    entry = Surveyed(run, 1, None, 0, 0, 0)
    assert not gc.is_tracked(run)
    assert not gc.is_tracked(entry)
    assert not gc.is_tracked(NamespaceTokens("public", 3, 1, 0, 0.5))
