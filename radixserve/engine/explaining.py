"""Why a prompt would not be found in the cache: where it leaves what is stored or was asked before,
and what became of the rest.
"""

from __future__ import annotations

import time

from radixserve.cache.ages import Ages
from radixserve.cache.kvcache import KVCache
from radixserve.cache.radix import Node
from radixserve.engine.recent import Found, Recent, Reference, Seen, stored_branch
from radixserve.prefix import TOKEN_BYTES, Prefix, unpack
from radixserve.questions import Compared, Explain, Explanation

SHOWN_BEFORE = 8  # tokens that are shown before the one that differs


def explained(
    cache: KVCache, recent: Recent, ages: Ages, question: Explain, matched: dict[str, int]
) -> Explanation:
    """The answer to `question`, of which the tiers have `matched` so many tokens. O(tokens)."""
    prompt = Prefix.of(question.namespace, question.tokens, question.num_public)
    depth, reads = sum(matched.values()), question.reads_cache and cache.enabled
    asked = Seen.now(prompt, question.session)
    branch = stored_branch(cache.tree, prompt)
    agreed = cache.agrees(prompt)
    lost = recent.losses(asked, Found(depth, agreed), lambda: branch, reads=reads)
    gone = recent.gone_at(prompt, max(depth, agreed)) if reads and lost else None
    other = _compared(recent.references(asked), branch)
    differs_at, theirs, theirs_from = None, b"", 0
    if other is not None and other.shared < min(_num_tokens(other), prompt.num_tokens):
        differs_at = other.shared
        theirs_from = max(0, differs_at - SHOWN_BEFORE)
        stop = differs_at + question.most_theirs
        theirs = other.tokens[theirs_from * TOKEN_BYTES : stop * TOKEN_BYTES]
    return Explanation(
        matched=matched,
        lost=dict(lost),
        gone_seconds=None if gone is None else round(time.monotonic() - gone.at, 1),
        gone_for=None if gone is None else gone.num_needed or None,
        compared=None if other is None else _told(other, ages),
        differs_at=differs_at,
        theirs=unpack(theirs),
        theirs_from=theirs_from,
    )


def _compared(earlier: list[Reference], branch: Reference | None) -> Reference | None:
    """What is shown of those that a prompt is compared with: the one by whose change most was lost;
    if there is none, the first one. Behind the end of that comes its answer, which only the tree
    has.
    """
    candidates = [*earlier, *([] if branch is None else [branch])]
    shown = max(candidates, key=lambda each: each.end if each.is_changed else 0, default=None)
    if branch is None or shown is None or shown.is_changed:
        return shown
    goes_on = shown.shared == _num_tokens(shown)
    return branch if goes_on and branch.shared > shown.shared else shown


def _told(reference: Reference, ages: Ages) -> Compared:
    place, now = reference.found_in, time.monotonic()
    if isinstance(place, Node):
        age = 0.0 if place.pins else ages.age(place.last_use, now)
    else:
        age = now - place.at
    return Compared(
        kind=reference.kind,
        tokens=_num_tokens(reference),
        shared=reference.shared,
        age_seconds=round(age, 1),
    )


def _num_tokens(reference: Reference) -> int:
    return len(reference.tokens) // TOKEN_BYTES
