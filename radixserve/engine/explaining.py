"""Why a prompt would not be found in the cache: where it leaves what is stored or was asked before,
and what became of the rest.
"""

from __future__ import annotations

import time
from typing import NamedTuple

from radixserve.cache.ages import Ages
from radixserve.cache.kvcache import KVCache
from radixserve.cache.radix import Node, root_of
from radixserve.engine.recent import Recent, Seen
from radixserve.prefix import TOKEN_BYTES, Prefix, unpack
from radixserve.questions import Compared, Explain, Explanation

SHOWN_BEFORE = 8  # tokens that are shown before the one that differs


class _Other(NamedTuple):
    """What a prompt is compared with; `tokens` are packed."""

    told: Compared
    tokens: bytes


def explained(
    cache: KVCache, recent: Recent, ages: Ages, question: Explain, matched: dict[str, int]
) -> Explanation:
    """The answer to `question`, of which the tiers have `matched` so many tokens. O(tokens)."""
    prompt = Prefix.of(question.namespace, question.tokens, question.num_public)
    depth, reads = sum(matched.values()), question.reads_cache and cache.enabled
    asked = Seen.now(prompt, question.session)
    lost = recent.losses(asked, depth, reads=reads)
    gone = recent.gone_at(prompt, depth) if reads and lost else None
    other = _other(cache, recent, ages, asked)
    differs_at, theirs, theirs_from = None, b"", 0
    if other is not None and other.told.shared < min(other.told.tokens, prompt.num_tokens):
        differs_at = other.told.shared
        theirs_from = max(0, differs_at - SHOWN_BEFORE)
        stop = differs_at + question.most_theirs
        theirs = other.tokens[theirs_from * TOKEN_BYTES : stop * TOKEN_BYTES]
    return Explanation(
        matched=matched,
        lost=dict(lost),
        gone_seconds=None if gone is None else round(time.monotonic() - gone.at, 1),
        gone_for=None if gone is None else gone.num_needed or None,
        compared=None if other is None else other.told,
        differs_at=differs_at,
        theirs=unpack(theirs),
        theirs_from=theirs_from,
    )


def _other(cache: KVCache, recent: Recent, ages: Ages, asked: Seen) -> _Other | None:
    """The recent prompt that `asked` is best compared with. Behind its end comes its answer, which
    only the tree has.
    """
    earlier, stored = _recent_one(recent, asked), _stored_one(cache, ages, asked.prompt)
    if earlier is None or stored is None:
        return earlier or stored
    goes_on = earlier.told.shared == earlier.told.tokens
    return stored if goes_on and stored.told.shared > earlier.told.shared else earlier


def _recent_one(recent: Recent, asked: Seen) -> _Other | None:
    reference = recent.reference(asked)
    if reference is None:
        return None
    seen = reference.seen
    told = Compared(
        kind="session" if reference.of_session else "recent",
        tokens=seen.prompt.num_tokens,
        shared=reference.shared,
        age_seconds=round(time.monotonic() - seen.at, 1),
    )
    return _Other(told, seen.prompt.tokens)


def _stored_one(cache: KVCache, ages: Ages, prompt: Prefix) -> _Other | None:
    """The branch of the tree that shares most with `prompt`, and where it divides the part that was
    used last. One of the same namespace: what others added to public tokens is theirs.
    """
    point = cache.tree.find(prompt)
    if point is None or not point.depth or root_of(point.node).key != prompt.namespace:
        return None
    edges = [prompt.first(point.depth).tokens, point.node.edge[point.offset * TOKEN_BYTES :]]
    end = point.node
    while end.children:
        end = max(end.children.values(), key=_used)
        edges.append(end.edge)
    tokens = b"".join(edges)
    age = 0.0 if end.pins else ages.age(end.last_use, time.monotonic())
    told = Compared(
        kind="stored",
        tokens=len(tokens) // TOKEN_BYTES,
        shared=point.depth,
        age_seconds=round(age, 1),
    )
    return _Other(told, tokens)


def _used(node: Node) -> tuple[bool, int]:
    return node.pins > 0, node.last_use
