"""The prompts of recent requests, and the places where K/V went: enough to say why a prompt was not
found in the cache.

A prompt is compared with the newest of its session, or else with the recent prompt that shares most
with it; always with one of the same namespace, whatever part of both is public. They are found by
hashes of chunks, so a request costs one pass over its tokens and one comparison. What is remembered
is bounded: prompts by count and bytes, places by count. Knows prefixes and nodes, no sequences.
"""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np

from radixserve.cache.ghosts import CHUNK, chunk_keys
from radixserve.cache.radix import Node, root_of
from radixserve.declared import Numbers
from radixserve.engine.counters import (
    CACHE_OFF,
    DROPPED,
    EVICTED,
    EXPIRED,
    LOSS_TOKENS,
    NEVER_SEEN,
    OTHER_NAMESPACE,
    PREFIX_CHANGED,
    TOO_SHORT,
)
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

    @classmethod
    def now(cls, prompt: Prefix, session: str) -> Seen:
        """The prompt of a request that comes now; O(tokens)."""
        keys = list(chunk_keys(Prefix("", prompt.tokens), CHUNK))
        return cls(prompt, session, time.monotonic(), keys)

    @property
    def own_keys(self) -> Iterator[tuple[str, int]]:
        """The keys of its chunks, each with its namespace."""
        return ((self.prompt.namespace, key) for key in self.keys)


class Reference(NamedTuple):
    """The earlier prompt that one is compared with, and how many tokens both share."""

    seen: Seen
    shared: int
    of_session: bool


class Gone(NamedTuple):
    """K/V of `num_tokens` tokens that went: why, when, and for how many tokens room was made."""

    cause: str
    at: float
    num_needed: int
    num_tokens: int


class Recent:
    """What one engine remembers. One thread may use it."""

    def __init__(self) -> None:
        self._prompts: OrderedDict[int, Seen] = OrderedDict()  # by id(), oldest first
        self._num_bytes = 0
        self._by_key: dict[tuple[str, int], Seen] = {}  # the newest prompt with this chunk
        self._by_key_anywhere: dict[int, Seen] = {}
        self._of_session: dict[tuple[str, str], Seen] = {}  # the longest of the latest
        self._places: OrderedDict[int, Gone] = OrderedDict()
        self._losses: Counter[str] = Counter()

    def numbers(self) -> Numbers:
        """What it counts, as declared in `engine.counters`."""
        return {LOSS_TOKENS.key(cause): count for cause, count in self._losses.items()}

    def asked(self, asked: Seen, matched: int, *, reads: bool, keeps: bool) -> None:
        """A request with this prompt begins, of which the cache gave the first `matched` tokens:
        count why not more, and remember the prompt. `reads` and `keeps` say whether the request
        uses the cache and adds to it.
        """
        self._losses.update(self.losses(asked, matched, reads=reads))
        if keeps:
            self.note(asked)

    # Remembering.

    def note(self, seen: Seen) -> None:
        """Remember a prompt; the oldest ones are forgotten."""
        self._prompts[id(seen)] = seen
        self._num_bytes += len(seen.prompt.tokens)
        self._by_key.update(dict.fromkeys(seen.own_keys, seen))
        self._by_key_anywhere.update(dict.fromkeys(seen.keys, seen))
        if seen.session:
            self._of_session[seen.prompt.namespace, seen.session] = seen
        while len(self._prompts) > MOST_PROMPTS or self._num_bytes > MOST_BYTES:
            self._forget_oldest()

    def _forget_oldest(self) -> None:
        _, oldest = self._prompts.popitem(last=False)
        self._num_bytes -= len(oldest.prompt.tokens)
        _forget(oldest, oldest.own_keys, self._by_key)
        _forget(oldest, oldest.keys, self._by_key_anywhere)
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

    def reference(self, asked: Seen) -> Reference | None:
        """The newest prompt of the session, or else the recent one that shares most with that of
        `asked`; None if there is none.
        """
        prompt, session = asked.prompt, asked.session
        seen = self._of_session.get((prompt.namespace, session)) if session else None
        if seen is not None and (shared := _shared(prompt, seen.prompt)) >= MIN_SHARED:
            return Reference(seen, shared, of_session=True)
        newest = _deepest(asked.own_keys, self._by_key)
        if newest is None:
            return None
        return Reference(newest, _shared(prompt, newest.prompt), of_session=False)

    def shared_elsewhere(self, asked: Seen) -> int:
        """How many tokens the prompt shares with a recent prompt of whatever namespace, if that is
        at least a chunk.
        """
        newest = _deepest(asked.keys, self._by_key_anywhere)
        return 0 if newest is None else _shared(asked.prompt, newest.prompt)

    def gone_at(self, prompt: Prefix, depth: int) -> Gone | None:
        """What became of the K/V of `prompt` that stood behind its first `depth` tokens; None if it
        is not remembered.
        """
        if depth >= prompt.num_tokens:
            return None
        return self._places.get(_place_in(prompt, depth))

    def losses(self, asked: Seen, matched: int, *, reads: bool) -> Counter[str]:
        """The tokens of the prompt behind the first `matched` ones and before its last one, which
        is always computed, by the reason why they were not in the cache. In order of position.
        """
        stop = asked.prompt.num_tokens - 1
        if matched >= stop:
            return Counter()
        if not reads:
            return Counter({CACHE_OFF: stop - matched})
        if stop < MIN_SHARED:
            return Counter({TOO_SHORT: stop - matched})
        return self._told_apart(asked, matched, stop)

    def _told_apart(self, asked: Seen, depth: int, stop: int) -> Counter[str]:
        found: Counter[str] = Counter()

        def up_to(end: int, cause: str) -> None:
            nonlocal depth
            end = min(end, stop)
            if end > depth:
                found[cause] += end - depth
                depth = end

        reference, gone = self.reference(asked), self.gone_at(asked.prompt, depth)
        if reference is not None and reference.shared > depth:
            up_to(reference.shared, EVICTED if gone is None else gone.cause)
        elif gone is not None:  # of a prompt that is too short for a chunk, or forgotten
            up_to(depth + gone.num_tokens, gone.cause)
        if reference is not None and reference.of_session:
            up_to(reference.seen.prompt.num_tokens, PREFIX_CHANGED)
        if depth < stop:
            up_to(self.shared_elsewhere(asked), OTHER_NAMESPACE)
        up_to(stop, NEVER_SEEN)
        return found


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


def _shared(one: Prefix, other: Prefix) -> int:
    """With how many same tokens both begin."""
    a, b = (np.frombuffer(each.tokens, np.int32) for each in (one, other))
    n = min(len(a), len(b))
    differs = a[:n] != b[:n]
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
