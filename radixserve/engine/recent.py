"""The prompts of recent requests, and the places where K/V went: enough to say why a prompt was not
found in the cache.

A prompt is compared with the newest of its session, with the recent one that begins with most of
its tokens, with the one that has most of its first shingles, and with a branch of the tree: always
of the same namespace, whatever part of both is public. What it has in common with one of these
behind a difference would have been found, had it not changed in front of that. Recent prompts are
found by hashes, so a request costs a few passes over its tokens. What is remembered is bounded:
prompts by count and bytes, places by count. Knows prefixes and nodes, no sequences.
"""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeVar

import numpy as np

from radixserve.cache.ghosts import CHUNK, chunk_keys
from radixserve.cache.radix import Node, RadixTree, root_of
from radixserve.declared import Numbers
from radixserve.engine.counters import (
    CACHE_OFF,
    DROPPED,
    EVICTED,
    EXPIRED,
    LOSS_TOKENS,
    NEVER_SEEN,
    NOT_KEPT,
    NOT_LOADED,
    OTHER_NAMESPACE,
    PREFIX_CHANGED,
    TOO_SHORT,
)
from radixserve.engine.shingles import end_of_same, sample
from radixserve.prefix import TOKEN_BYTES, Prefix

Key = TypeVar("Key")

MOST_PROMPTS = 1024
MOST_BYTES = 16 << 20  # of their token ids
MOST_PLACES = 16384
MIN_SHARED = 16  # tokens; a session's prompt that shares fewer is not compared
_CONTEXT = 16  # tokens before a place, by which it is told from others


@dataclass(slots=True, eq=False)
class Seen:
    """The prompt of a request; `at` is in seconds of time.monotonic()."""

    prompt: Prefix
    session: str  # empty without one
    at: float
    keys: list[int]  # of its chunks, without its namespace
    shingles: list[int]  # some of those in its beginning

    @classmethod
    def now(cls, prompt: Prefix, session: str) -> Seen:
        """The prompt of a request that comes now; O(tokens)."""
        keys = list(chunk_keys(Prefix("", prompt.tokens), CHUNK))
        return cls(prompt, session, time.monotonic(), keys, sample(prompt.tokens))

    @property
    def own_keys(self) -> Iterator[tuple[str, int]]:
        """The keys of its chunks, each with its namespace."""
        return ((self.prompt.namespace, key) for key in self.keys)

    @property
    def own_shingles(self) -> Iterator[tuple[str, int]]:
        """Its shingles, each with its namespace."""
        return ((self.prompt.namespace, shingle) for shingle in self.shingles)


class Reference(NamedTuple):
    """What a prompt is compared with. Both begin with the same `shared` tokens. Had it not changed
    behind these, it would have been found up to position `end`.
    """

    kind: Literal["session", "recent", "stored"]
    tokens: bytes
    shared: int
    end: int
    found_in: Seen | Node  # a recent prompt, or the node of the tree with which it ends

    @property
    def is_changed(self) -> bool:
        """Whether something of the prompt was lost by the change."""
        return self.end > self.shared


Stored = Callable[[], Reference | None]
"""The branch of the tree that a prompt is compared with, if there is one."""


class Gone(NamedTuple):
    """K/V of `num_tokens` tokens that went: why, when, and for how many tokens room was made."""

    cause: str
    at: float
    num_needed: int
    num_tokens: int


class Found(NamedTuple):
    """What there was of a prompt: the cache gave the first `matched` tokens; `agreed` tokens are
    cached on the device, whether or not they can be continued; up to position `unloaded` tiers had
    K/V that they did not bring in time (None: a tier had not even said how much).
    """

    matched: int
    agreed: int
    unloaded: int | None = 0


class Recent:
    """What one engine remembers. One thread may use it."""

    def __init__(self) -> None:
        self._prompts: OrderedDict[int, Seen] = OrderedDict()  # by id(), oldest first
        self._num_bytes = 0
        self._by_key: dict[tuple[str, int], Seen] = {}  # the newest prompt with this chunk
        self._by_key_anywhere: dict[int, Seen] = {}
        self._by_shingle: dict[tuple[str, int], Seen] = {}
        self._of_session: dict[tuple[str, str], Seen] = {}  # the longest of the latest
        self._places: OrderedDict[int, Gone] = OrderedDict()
        self._losses: Counter[str] = Counter()

    def numbers(self) -> Numbers:
        """What it counts, as declared in `engine.counters`."""
        return {LOSS_TOKENS.key(cause): count for cause, count in self._losses.items()}

    def asked(
        self,
        asked: Seen,
        found: Found,
        stored: Stored,
        *,
        reads: bool,
        keeps: bool,
    ) -> None:
        """A request with this prompt begins, of which so much was found: count why not more, and
        remember the prompt. `reads` and `keeps` say whether the request uses the cache and adds to
        it.
        """
        self._losses.update(self.losses(asked, found, stored, reads=reads))
        if keeps:
            self.note(asked)

    # Remembering.

    def note(self, seen: Seen) -> None:
        """Remember a prompt; the oldest ones are forgotten."""
        self._prompts[id(seen)] = seen
        self._num_bytes += len(seen.prompt.tokens)
        self._by_key.update(dict.fromkeys(seen.own_keys, seen))
        self._by_key_anywhere.update(dict.fromkeys(seen.keys, seen))
        self._by_shingle.update(dict.fromkeys(seen.own_shingles, seen))
        if seen.session:
            self._of_session[seen.prompt.namespace, seen.session] = seen
        while len(self._prompts) > MOST_PROMPTS or self._num_bytes > MOST_BYTES:
            self._forget_oldest()

    def _forget_oldest(self) -> None:
        _, oldest = self._prompts.popitem(last=False)
        self._num_bytes -= len(oldest.prompt.tokens)
        _forget(oldest, oldest.own_keys, self._by_key)
        _forget(oldest, oldest.keys, self._by_key_anywhere)
        _forget(oldest, oldest.own_shingles, self._by_shingle)
        where = (oldest.prompt.namespace, oldest.session)
        if self._of_session.get(where) is oldest:
            del self._of_session[where]

    def gone(self, node: Node, offset: int, is_evicted: bool, num_needed: int) -> None:
        """Remember that K/V of `node` from `offset` on goes; the cache calls this as `OnGone`.
        O(depth in nodes).
        """
        key = _place_in_tree(node, offset)
        cause = (EXPIRED if node.expired else EVICTED) if is_evicted else DROPPED
        self._places[key] = Gone(cause, time.monotonic(), num_needed, node.num_tokens - offset)
        self._places.move_to_end(key)
        if len(self._places) > MOST_PLACES:
            self._places.popitem(last=False)

    # Looking.

    def references(self, asked: Seen) -> list[Reference]:
        """The earlier prompts that `asked` is compared with, none twice: the newest of its session,
        the one that begins with most of its tokens, and the one that has most of its shingles.
        O(tokens).
        """
        prompt, found = asked.prompt, []
        of_session = self._of_session.get((prompt.namespace, asked.session))
        if of_session is not None:
            shared = _shared(prompt.tokens, of_session.prompt.tokens)
            if shared >= MIN_SHARED:
                found.append(_of_session(prompt, of_session, shared))
        others = (_deepest(asked.own_keys, self._by_key), self._most_alike(asked))
        for each in dict.fromkeys(others):
            if each is not None and each is not of_session:
                found.append(_recent(prompt, each))
        return found

    def _most_alike(self, asked: Seen) -> Seen | None:
        """The prompt with most of the shingles of `asked`."""
        having = (self._by_shingle.get(each) for each in asked.own_shingles)
        counts = Counter(each for each in having if each is not None)
        return max(counts, key=counts.__getitem__, default=None)

    def shared_elsewhere(self, asked: Seen) -> int:
        """How many tokens the prompt shares with a recent prompt of whatever namespace, if that is
        at least a chunk.
        """
        newest = _deepest(asked.keys, self._by_key_anywhere)
        return 0 if newest is None else _shared(asked.prompt.tokens, newest.prompt.tokens)

    def gone_at(self, prompt: Prefix, depth: int) -> Gone | None:
        """What became of the K/V of `prompt` that stood behind its first `depth` tokens; None if it
        is not remembered.
        """
        if depth >= prompt.num_tokens:
            return None
        return self._places.get(_place_in(prompt, depth))

    def losses(
        self,
        asked: Seen,
        found: Found,
        stored: Stored,
        *,
        reads: bool,
    ) -> Counter[str]:
        """The tokens of the prompt behind those that matched and before its last one, which is
        always computed, by the reason why they were not in the cache. In order of position.
        """
        matched, stop = found.matched, asked.prompt.num_tokens - 1
        if matched >= stop:
            return Counter()
        if not reads:
            return Counter({CACHE_OFF: stop - matched})
        if stop < MIN_SHARED:
            return Counter({TOO_SHORT: stop - matched})
        return self._told_apart(asked, found, stored, stop)

    def _told_apart(self, asked: Seen, found: Found, stored: Stored, stop: int) -> Counter[str]:
        lost: Counter[str] = Counter()
        depth = found.matched

        def up_to(end: int, cause: str) -> None:
            nonlocal depth
            end = min(end, stop)
            if end > depth:
                lost[cause] += end - depth
                depth = end

        up_to(found.unloaded or 0, NOT_LOADED)
        up_to(found.agreed, NOT_KEPT)
        gone, earlier = self.gone_at(asked.prompt, depth), self.references(asked)
        was_there = max((each.shared for each in earlier), default=0)
        if was_there <= depth and gone is not None:  # of a prompt that is forgotten
            was_there = depth + gone.num_tokens
        cause = EVICTED if gone is None else gone.cause
        up_to(was_there, NOT_LOADED if found.unloaded is None else cause)
        branch = stored() if depth < stop else None
        if branch is not None:
            earlier.append(branch)
        up_to(max((each.end for each in earlier), default=0), PREFIX_CHANGED)
        if depth < stop:
            up_to(self.shared_elsewhere(asked), OTHER_NAMESPACE)
        up_to(stop, NEVER_SEEN)
        return lost


def stored_branch(tree: RadixTree, prompt: Prefix) -> Reference | None:
    """The branch of the tree that shares most with `prompt`, and where it divides the part that was
    used last. One of the same namespace: what others added to public tokens is theirs. O(tokens).
    """
    point = tree.find(prompt)
    if point is None or not point.depth or root_of(point.node).key != prompt.namespace:
        return None
    edges = [prompt.first(point.depth).tokens, point.node.edge[point.offset * TOKEN_BYTES :]]
    last = point.node
    while children := [each for each in last.children.values() if not each.is_root]:
        last = max(children, key=lambda child: (child.pins > 0, child.last_use))
        edges.append(last.edge)
    return _reference("stored", prompt, b"".join(edges), point.depth, last)


def _of_session(prompt: Prefix, seen: Seen, shared: int) -> Reference:
    """All of a session's earlier prompt would have been found in the next one."""
    tokens = seen.prompt.tokens
    end = min(prompt.num_tokens, seen.prompt.num_tokens)
    return Reference("session", tokens, shared, end, seen)


def _recent(prompt: Prefix, seen: Seen) -> Reference:
    tokens = seen.prompt.tokens
    return _reference("recent", prompt, tokens, _shared(prompt.tokens, tokens), seen)


def _reference(
    kind: Literal["recent", "stored"],
    prompt: Prefix,
    tokens: bytes,
    shared: int,
    found_in: Seen | Node,
) -> Reference:
    end = end_of_same(prompt.tokens, tokens, shared)
    return Reference(kind, tokens, shared, end, found_in)


def _forget(oldest: Seen, keys: Iterable[Key], newest: dict[Key, Seen]) -> None:
    for key in keys:
        if newest.get(key) is oldest:
            del newest[key]


def _deepest(keys: Iterable[Key], newest: dict[Key, Seen]) -> Seen | None:
    """The prompt that shares the most chunks with that of these keys."""
    found = None
    for key in keys:
        seen = newest.get(key)
        if seen is None:
            break
        found = seen
    return found


def _shared(one: bytes, other: bytes) -> int:
    """With how many same tokens both begin."""
    n = min(len(one), len(other)) // TOKEN_BYTES
    a, b = (np.frombuffer(each, np.int32, n) for each in (one, other))
    differs = a != b
    first = int(differs.argmax()) if n else 0
    return first if n and differs[first] else n


def _place_in(prompt: Prefix, depth: int) -> int:
    start, end = depth * TOKEN_BYTES, (depth + 1) * TOKEN_BYTES
    before = prompt.tokens[max(0, start - _CONTEXT * TOKEN_BYTES) : start]
    return hash((prompt.namespace_at(depth), depth, before, prompt.tokens[start:end]))


def _place_in_tree(node: Node, offset: int) -> int:
    at = offset * TOKEN_BYTES
    before, token = node.edge[:at], node.edge[at : at + TOKEN_BYTES]
    depth, above = node.start + offset, node.parent
    while above is not None and len(before) < _CONTEXT * TOKEN_BYTES:
        before = above.edge[-_CONTEXT * TOKEN_BYTES :] + before
        above = above.parent
    namespace = str(root_of(node).key)
    return hash((namespace, depth, before[-_CONTEXT * TOKEN_BYTES :], token))
