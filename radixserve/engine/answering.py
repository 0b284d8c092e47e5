"""Answers the front's questions about the cache, between steps.

A question that takes long is worked on in parts of a few milliseconds, so that steps go on
meanwhile. Questions are answered in the order in which they came, but those that tenants may ask
after the others: each may wait for a slow disk, and a flush should not wait for all of them. Knows
no sockets.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from heapq import nlargest
from typing import Any

from radixserve.cache.ages import Ages
from radixserve.cache.counters import OLDEST_SECONDS
from radixserve.cache.kvcache import KVCache
from radixserve.cache.radix import Node, path_prefix
from radixserve.cache.survey import Parts, Surveyed, drop_unused, find, roots_of, survey, walk
from radixserve.declared import Numbers
from radixserve.engine.adapter_questions import AdapterQuestions
from radixserve.engine.adapters import LoadedAdapter
from radixserve.engine.configuring import Configuring
from radixserve.engine.explaining import explained
from radixserve.engine.scheduler import Scheduler
from radixserve.engine.showing import NO_NODE, Awaited, TreeShower
from radixserve.engine.tiers import Tiers
from radixserve.errors import first_line
from radixserve.prefix import Branch, Prefix, pack
from radixserve.questions import (
    Answered,
    AnyAnswer,
    AnyQuestion,
    Asked,
    Configure,
    Drop,
    Dropped,
    Explain,
    Failed,
    ListPins,
    LoadAdapter,
    NamespaceTokens,
    Pin,
    PinList,
    RestorePins,
    ShowTree,
    Summarize,
    Summary,
    TierSummary,
    UnloadAdapter,
    Unpin,
    Unpinned,
)
from radixserve.tiers.contract import Dropping, Tier
from radixserve.tiers.counters import TIER_BYTES

log = logging.getLogger(__name__)

SLICE_SECONDS = 0.002  # of work on questions between two steps
TIER_SECONDS = 10.0  # in which tiers have to answer, because a disk may hang
WAIT_SECONDS = 0.01  # how often they are looked at while nothing else is to be done
SWEPT_NODES = 256  # dropped nodes that are freed between two steps

_NO_PIN = Failed(message="There is no such pin (any more).", not_found=True)

_STATES = ("budget", "used")

Handler = Callable[[Any], Parts[AnyAnswer]]


class Answering:
    """The questions that one engine has not answered yet, and the freeing of what was dropped."""

    def __init__(self, cache: KVCache, scheduler: Scheduler, tiers: Tiers) -> None:
        self._cache, self._scheduler, self._tiers = cache, scheduler, tiers
        self._pins = scheduler.pins
        self._configuring = Configuring(cache, scheduler, tiers)
        self._ages = Ages(time.monotonic())
        adapters = AdapterQuestions(scheduler, self._configuring, self._loaded)
        self._trees = TreeShower(
            cache, tiers, self._ages, lambda: self._pins.leases(), self._awaited
        )
        self._waiting: deque[Asked] = deque()
        self._working: Parts[AnyAnswer] | None = None  # on the first of them
        self._is_waiting = False  # the first one waits for a tier
        self._handlers: dict[type[AnyQuestion], Handler] = {
            Drop: self._drop,
            Summarize: self._summarize,
            ShowTree: self._trees.show,
            Explain: self._explain,
            Pin: self._pin,
            Unpin: self._unpin,
            ListPins: self._list_pins,
            Configure: self._configure,
            RestorePins: self._restore_pins,
            LoadAdapter: adapters.load,
            UnloadAdapter: adapters.unload,
        }

    @property
    def patience(self) -> float | None:
        """How many seconds to sleep at most before the next `work`; None: until there is a
        question.
        """
        if self._cache.dropped.pending:
            return 0.0
        return (WAIT_SECONDS if self._is_waiting else 0.0) if self._waiting else None

    def ask(self, asked: Asked) -> None:
        """Take a question. The first one may be worked on already."""
        index = len(self._waiting)
        if not asked.question.open_to_tenants:
            while index > 1 and self._waiting[index - 1].question.open_to_tenants:
                index -= 1
        self._waiting.insert(index, asked)

    def work(self) -> list[Answered]:
        """Go on answering for a moment; returns what is answered."""
        if self._cache.dropped.pending:
            self._cache.slots.sweep(SWEPT_NODES)
        answered: list[Answered] = []
        until = time.monotonic() + SLICE_SECONDS
        while self._waiting and time.monotonic() < until:
            answer = self._part()
            if answer is not None:
                answered.append(Answered(self._waiting.popleft().id, answer))
                self._working = None
            elif self._cache.dropped.pending or self._is_waiting:
                break
        return answered

    def note_time(self) -> None:
        """To be called every second or so, so that ages can be told."""
        self._ages.note(self._cache.evictor.clock, time.monotonic())

    def numbers(self) -> Numbers:
        """The age of what may be evicted, as declared in `cache.counters`."""
        oldest, now = self._cache.slots.shares.oldest_use(), time.monotonic()
        age = 0.0 if oldest is None else self._ages.age(oldest, now)
        return {OLDEST_SECONDS.key(): round(age, 1)}

    def _part(self) -> AnyAnswer | None:
        """Do one part of the first question; its answer if that was the last one."""
        question = self._waiting[0].question
        try:
            if self._working is None:
                self._working = self._handlers[type(question)](question)
            next(self._working)
            return None
        except StopIteration as end:
            answer: AnyAnswer = end.value
            return answer
        except Exception as error:  # one question fails, and nothing else
            log.exception("a question could not be answered")
            return Failed(message=f"The engine could not answer: {first_line(error)}.")

    # Dropping.

    def _drop(self, question: Drop) -> Parts[AnyAnswer]:
        names = None if question.namespaces is None else frozenset(question.namespaces)
        if question.older_than > 0:
            return (yield from self._drop_unused(names, question.older_than))
        branch = Branch(names, pack(question.prefix), question.tenant)
        if question.node is not None:
            prefix = yield from self._trees.prefix_of(question.tier, question.node)
            if prefix is None:
                return NO_NODE
            branch = Branch(frozenset([prefix.namespace]), prefix.tokens)
        return (yield from self._drop_branch(branch))

    def _drop_branch(self, branch: Branch) -> Parts[AnyAnswer]:
        cache, dropped = self._cache, self._cache.dropped
        tokens, nodes = dropped.freed_tokens_total, dropped.freed_nodes_total
        below = self._tiers.drop(branch)
        cache.drop(branch)
        self._scheduler.withhold(branch)
        self._pins.dropped(branch)
        while dropped.pending:
            yield
        told = yield from self._confirmed(below)
        return Dropped(
            tokens=dropped.freed_tokens_total - tokens,
            nodes=dropped.freed_nodes_total - nodes,
            leased_tokens=dropped.leased_tokens(),
            tiers=told.tiers,
            pending=told.pending,
        )

    def _awaited(self, asked: Sequence[Awaited], seconds: float | None = None) -> Parts[None]:
        """Wait until all tiers have answered, or for `seconds`, or as long as they may take."""
        until = time.monotonic() + (TIER_SECONDS if seconds is None else seconds)
        while not all(each.done for each in asked) and time.monotonic() < until:
            self._is_waiting = True
            yield
        self._is_waiting = False

    def _drop_unused(self, names: frozenset[str] | None, seconds: float) -> Parts[AnyAnswer]:
        now = time.monotonic()

        def is_old(last_use: int) -> bool:
            return self._ages.age(last_use, now) > seconds

        below = self._tiers.drop_unused(names, seconds)
        tokens, nodes = yield from drop_unused(self._cache, names, is_old)
        told = yield from self._confirmed(below)
        return Dropped(tokens=tokens, nodes=nodes, tiers=told.tiers, pending=told.pending)

    def _confirmed(self, below: list[Dropping]) -> Parts[Dropped]:
        """What the tiers below have dropped, once all have confirmed; without those that take too
        long, because a disk may hang.
        """
        yield from self._awaited(below)
        named = list(zip((tier.name for tier in self._tiers.below), below, strict=True))
        return Dropped(
            tiers={name: each.num_tokens for name, each in named if each.done},
            pending=[name for name, each in named if not each.done],
        )

    # Pinning.

    def _pin(self, question: Pin) -> Parts[AnyAnswer]:
        prefix = question.prefix
        if question.node is not None:
            node = yield from find(self._cache, question.node)
            if node is None or node.is_root:
                return NO_NODE
            prefix = path_prefix(node)
        answer = self._pins.add(question, prefix)
        if answer.tokens:
            self._tiers.offer_cached(prefix.first(answer.tokens))
        return answer

    def _unpin(self, question: Unpin) -> Parts[AnyAnswer]:
        yield from ()
        tokens = self._pins.remove(question.id)
        return _NO_PIN if tokens is None else Unpinned(tokens)

    def _list_pins(self, question: ListPins) -> Parts[AnyAnswer]:
        yield from ()
        return PinList(self._pins.states())

    def _restore_pins(self, question: RestorePins) -> Parts[AnyAnswer]:
        yield from ()
        for pin in self._tiers.pins_left():
            self._pins.add(pin, pin.prefix)
        return PinList(self._pins.states())

    def _loaded(self, adapter: Future[LoadedAdapter]) -> Parts[None]:
        """Wait until an adapter is loaded, or cannot be."""
        while not adapter.done():
            self._is_waiting = True
            yield
        self._is_waiting = False

    # Settings.

    def _configure(self, question: Configure) -> Parts[AnyAnswer]:
        return (yield from self._configuring.change(question))

    # Explaining.

    def _explain(self, question: Explain) -> Parts[AnyAnswer]:
        cache = self._cache
        prompt = Prefix.of(question.namespace, question.tokens, question.num_public)
        reads = question.reads_cache and cache.enabled
        usable = prompt.first(prompt.num_tokens - 1)
        matched = {"device": cache.match(usable) if reads else 0}
        looks = [tier.match(usable) for tier in self._tiers.below] if reads else []
        yield from self._awaited(looks)
        for tier, found in zip(self._tiers.below, looks, strict=False):
            matched[tier.name] = max(0, found.num_tokens - sum(matched.values()))
        return explained(cache, self._scheduler.recent, self._ages, question, matched)

    # Looking.

    def _summarize(self, question: Summarize) -> Parts[AnyAnswer]:
        roots = roots_of(self._cache, question.namespaces)
        found: dict[str, NamespaceTokens] = {}
        now = time.monotonic()
        yield from survey(roots, 0, lambda each: self._add(found, each, now), one_namespace=True)
        stats = self._cache.stats()
        return Summary(
            enabled=self._cache.enabled,
            tiers=self._tier_summaries(),
            nodes=sum(each.nodes for each in found.values()),
            num_namespaces=len(found),
            namespaces=nlargest(
                question.most_namespaces, found.values(), key=lambda each: each.tokens
            ),
            oldest_seconds=(yield from self._oldest(roots, now)),
            evicted_tokens_total=stats.evicted_tokens_total,
            dropping_tokens=self._cache.dropped.leased_tokens(),
        )

    def _add(self, found: dict[str, NamespaceTokens], root: Surveyed[Node], now: float) -> None:
        """Count a root, of which a namespace has several where it hangs below public tokens."""
        name = str(root.node.key)
        age = 0.0 if root.leased else round(self._ages.age(root.last_use, now), 1)
        before = found.get(name) or NamespaceTokens(name, 0, 0, 0, age)
        found[name] = NamespaceTokens(
            name,
            tokens=before.tokens + root.tokens,
            nodes=before.nodes + root.nodes - 1,
            hits=before.hits + root.hits,
            age_seconds=min(before.age_seconds, age),
        )

    def _oldest(self, roots: list[Node], now: float) -> Parts[float | None]:
        """The age of the leaf that was not used for longest."""
        oldest: int | None = None

        def see(node: Node) -> None:
            nonlocal oldest
            if not node.children and not node.pins:
                oldest = node.last_use if oldest is None else min(oldest, node.last_use)

        yield from walk(roots, see)
        return None if oldest is None else round(self._ages.age(oldest, now), 1)

    def _tier_summaries(self) -> list[TierSummary]:
        stats, kv, pins = self._cache.stats(), self._cache.bytes(), self._pins.leases()
        leased = sum(node.num_tokens for node in self._cache.leased_nodes(pins))
        device = TierSummary(
            name="device",
            budget_bytes=kv["budget"],
            used_bytes=kv["used"],
            budget_tokens=stats.num_slots,
            used_tokens=stats.num_slots - stats.free,
            leased_tokens=stats.private + leased,
            pinned_tokens=self._pins.num_tokens,
        )
        return [device, *map(self._tier_summary, self._tiers.below)]

    def _tier_summary(self, tier: Tier) -> TierSummary:
        numbers = tier.numbers()
        budget, used = (int(numbers[TIER_BYTES.key(tier.name, each)]) for each in _STATES)
        return TierSummary(name=tier.name, budget_bytes=budget, used_bytes=used)
