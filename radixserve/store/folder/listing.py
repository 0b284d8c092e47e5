"""A part of the tree of stored runs as a list of plain values, for those who want to see it."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

from radixserve.cache.listing import Listed, Listing
from radixserve.cache.survey import NODES, Largest, Parts, Surveyed
from radixserve.prefix import Prefix, unpack
from radixserve.questions import ShowTree, TreeNode
from radixserve.store.folder.index import ROOT, Index
from radixserve.store.format.rows import Outline

_PER_SECOND = 1000  # the last use is counted in milliseconds


def list_runs(
    index: Callable[[], Index], fingerprint: str, question: ShowTree
) -> Parts[Listing | None]:
    """The runs that `question` asks for; None if its run is gone. `index` is called in each part,
    because a damaged index is replaced by another one. O(runs with ids from the run on).

    Raises:
        sqlite3.Error: the index cannot be read.
    """
    largest: Largest[Outline] = Largest(question.most)
    yield from _survey(index, fingerprint, question, largest.add)
    chosen = largest.kept()
    tokens = index().tokens_of([each.serial for each in chosen])
    prefixes: dict[int, Callable[[], Prefix]] = {}
    nodes: list[Listed] = []
    for each in (each for each in chosen if each.serial in tokens):
        before = _before(each, index, prefixes)
        prefixes[each.serial] = partial(_behind, before, each.node, tokens[each.serial])
        told = _told(each, unpack(tokens[each.serial], question.num_first_tokens))
        nodes.append(Listed(told, prefixes[each.serial]))
    if question.node is not None and not nodes:
        return None
    return Listing(nodes, num_nodes=largest.nodes, num_tokens=largest.tokens)


def _survey(
    index: Callable[[], Index],
    fingerprint: str,
    question: ShowTree,
    see: Callable[[Surveyed[Outline]], None],
) -> Parts[None]:
    """Like `cache.survey.survey`. A run that was stored while this walks may be missing."""
    found: list[Surveyed[Outline]] = []
    entries: dict[int, Surveyed[Outline]] = {}  # by run; of a deeper run, the one it is counted to
    last = 0 if question.node is None else question.node - 1
    while runs := index().outlines(fingerprint, last, NODES):
        for run in runs:
            above = entries.get(run.parent)
            is_listed = question.namespaces is None or run.namespace in question.namespaces
            if not is_listed or (above is None and not _is_top(run, question)):
                continue
            if above is not None and run.parent == above.serial:
                above.num_children += 1
            level = 0 if above is None else above.level + 1
            if above is None or level <= question.depth:
                entry = Surveyed(run, run.id, above, level, run.start, 0)
                found.append(entry)
            else:
                entry = above
            entries[run.id] = entry
            entry.last_use = max(entry.last_use, int(run.used * _PER_SECOND))
            entry.tokens += run.length
            entry.nodes += 1
        last = runs[-1].id
        yield
    for count, entry in enumerate(reversed(found)):
        entry.add_to_parent()
        see(entry)
        if count % NODES == 0:
            yield


def _is_top(run: Outline, question: ShowTree) -> bool:
    """Whether a run whose parent is not listed is listed itself. If namespaces are named, those
    before it are public tokens, which are not asked for.
    """
    if question.node is not None:
        return run.id == question.node
    return run.parent == ROOT or question.namespaces is not None


def _before(
    each: Surveyed[Outline], index: Callable[[], Index], prefixes: dict[int, Callable[[], Prefix]]
) -> Callable[[], Prefix]:
    """A function for the tokens before a run or more of them: those up to its parent's end."""
    if each.parent is not None and each.parent.serial in prefixes:
        return prefixes[each.parent.serial]
    above = None if each.node.parent == ROOT else index().before(each.serial)
    return lambda: above or Prefix(each.node.namespace, b"")


def _behind(before: Callable[[], Prefix], run: Outline, tokens: bytes) -> Prefix:
    above = before().first(run.start)
    num_public = above.num_public if above.namespace == run.namespace else run.start
    return Prefix(run.namespace, above.tokens + tokens, num_public)


def _told(each: Surveyed[Outline], first_tokens: list[int]) -> TreeNode:
    run = each.node
    age = max(0.0, time.time() - each.last_use / _PER_SECOND)
    is_inside = each.parent is not None and each.parent.node.namespace == run.namespace
    return TreeNode(
        id=run.id,
        parent=None if run.parent == ROOT else run.parent,
        depth=run.start,
        tokens=run.length,
        hits=run.hits,
        age_seconds=round(age, 1),
        namespace=None if is_inside else run.namespace,
        children=each.num_children,
        below_tokens=each.tokens - run.length,
        below_nodes=each.nodes - 1,
        first_tokens=first_tokens,
    )
