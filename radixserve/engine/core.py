"""The engine without its process: runs one step after the other through plan, launch, landing and
commit.

Connects scheduler, model and sampling; runs in the engine process, or directly in a test. Knows no
sockets.

    in turn    plan 1, launch 1, land 1, commit 1,  plan 2, launch 2, land 2, commit 2, ...
    ahead      plan 1, launch 1,  plan 2, launch 2, land 1, commit 1,  plan 3, launch 3, land 2, ...

When it runs ahead, the host plans and enqueues a step while the device computes the one before, so
the device never waits for the host. The tokens that step 1 draws are passed to step 2 on the
device.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

from radixserve.blocks import DEVICE, HOST, BlockChanges
from radixserve.cache.block_watch import BlockWatch
from radixserve.cache.kvcache import KVCache
from radixserve.engine.adapters import Adapters
from radixserve.engine.answering import Answering
from radixserve.engine.counters import GIVEN_UP, STEP_SECONDS, STEP_SEQUENCES, STEP_TOKENS, STEPS
from radixserve.engine.faults import OUT_OF_MEMORY, Fault, free_memory
from radixserve.engine.flight import Flight, StepModel
from radixserve.engine.giving_way import GivenUp, GivingWay
from radixserve.engine.grammars import Grammars
from radixserve.engine.pins import Pins
from radixserve.engine.planning import Work
from radixserve.engine.scheduler import Limits, Scheduler
from radixserve.engine.tiers import Tiers
from radixserve.questions import Answered, Asked
from radixserve.request import Request
from radixserve.step import EngineStats, TokenEvent

GRAMMAR_SECONDS = 0.001  # how often a grammar being compiled is polled while nothing else is to do


class EngineCore:
    """The engine without its process."""

    def __init__(
        self,
        model: StepModel,
        cache: KVCache,
        limits: Limits,
        *,
        tiers: Tiers | None = None,
        grammars: Grammars | None = None,
        ahead: bool = False,
    ) -> None:
        """Without `grammars` requests with a grammar end with an error. With `ahead` one step stays
        in flight, which helps if the host and the device work at the same time.
        """
        self.model = model
        self.cache = cache
        self.tiers = tiers or Tiers(cache)
        most_pinned = int(limits.pin_share * cache.slots.budget)
        self.pins = Pins(cache, most_pinned, limits.request_pin_share)
        self.scheduler = Scheduler(cache, limits, self.tiers, grammars, self.pins)
        self.answering = Answering(cache, self.scheduler, self.tiers)
        self.giving_way = GivingWay()
        # Called while a step computes: the requests that have come since, to be submitted later.
        self.arrivals: Callable[[], list[Request]] = list
        self._grammars = grammars
        self._ahead = ahead
        self._in_flight: Flight | None = None
        self._idle = False  # the last step found nothing to compute
        self._landed_at = 0.0
        self._steps = 0
        self._watches: list[BlockWatch] = []
        # seconds, tokens and sequences of each step not reported yet
        self._recent: list[tuple[float, int, int]] = []

    def watch_blocks(self, block_tokens: int) -> None:
        """From now on tell which blocks of so many tokens the device and host memory hold; to be
        called while they are empty.
        """
        trees = {DEVICE: self.cache.tree}
        if self.tiers.host is not None:
            trees[HOST] = self.tiers.host.cache.tree
        for medium, tree in trees.items():
            assert not tree.num_nodes, "nobody watched what is there already"
            tree.watch = BlockWatch(block_tokens, medium)
            self._watches.append(tree.watch)

    def block_changes(self) -> BlockChanges | None:
        """What has changed since the last call; None if nothing has, or nobody watches."""
        changes = [change for watch in self._watches for change in watch.take()]
        return BlockChanges(changes) if changes else None

    def serve_adapters(self, adapters: Adapters) -> None:
        """Serve requests with these adapters; without this none is served."""
        self.scheduler.adapters = adapters

    def prepare(self) -> None:
        """Begin, on another thread, to build what grammars need. Steps are held up for about half a
        second, so this is best called before there are any.
        """
        if self._grammars is not None:
            self._grammars.prepare()

    @property
    def has_work(self) -> bool:
        return self.scheduler.has_work or self._in_flight is not None

    @property
    def patience(self) -> float | None:
        """How many seconds the process may sleep before the next step; None: until something
        happens.

        It is 0 while there is something to compute. What may happen is that a message arrives, or
        that `tiers` has something to settle.
        """
        each = (
            self.answering.patience,
            self.pins.patience,
            self.tiers.trimming_patience,
            self._patience,
        )
        return min((seconds for seconds in each if seconds is not None), default=None)

    @property
    def _patience(self) -> float | None:
        """The same, without questions, pins and trimming."""
        if not self.has_work:
            return self.tiers.patience or None
        if not self._idle:
            return 0.0
        patience = self.tiers.patience
        return (
            min(patience or GRAMMAR_SECONDS, GRAMMAR_SECONDS)
            if self.scheduler.awaits_grammar
            else patience
        )

    def submit(self, request: Request, output_ids: list[int]) -> list[TokenEvent]:
        """Queue a request. Returns an event only if the request can never run."""
        event = self.scheduler.add(request, output_ids)
        return [event] if event else []

    def abort(self, request_id: str) -> list[TokenEvent]:
        """End a request. Returns no event if the request is unknown."""
        event = self.scheduler.abort(request_id)
        return [event] if event else []

    def step(self) -> list[TokenEvent]:
        """Launch one step, and commit the steps that need not stay in flight. Returns the events of
        the committed ones.

        If a step raises, each of its sequences is computed again, in a step of its own; a sequence
        whose own step raises ends. A step stays synchronous if it is such a second try, or if one
        of its draws depends on the tokens drawn before (penalties).
        """
        self.tiers.settle()
        self.pins.expire()
        self._tell_tiers_of_pins()
        refused = self.scheduler.settle_grammars()
        before, newest = self._in_flight, self._launch()
        self._idle = before is None and newest is None
        stays = self._ahead and newest is not None and newest.may_stay
        self._in_flight = newest if stays else None
        landing = (before,) if stays else (before, newest)
        return refused + [event for flight in landing if flight for event in self._land(flight)]

    def _tell_tiers_of_pins(self, *, at_once: bool = False) -> None:
        pins = self.pins.for_tiers(at_once=at_once)
        if pins is not None:
            self.tiers.keep(pins)

    def close(self, seconds: float) -> None:
        """Let tiers keep what was offered and what is pinned, for at most `seconds`."""
        self._tell_tiers_of_pins(at_once=True)
        self.tiers.close(seconds)

    def _launch(self) -> Flight | None:
        """Launch the next step, behind the one in flight. None if there is nothing to compute
        before that one lands.
        """
        works = self.scheduler.plan()
        if not works:
            return None
        flight = Flight(works)
        may_be = not self._ahead and self.giving_way.may_be(works)
        look = partial(self._give_way, works) if may_be else None
        flight.launch(self.model, self._in_flight, ahead=self._ahead, between_layers=look)
        return flight

    def _give_way(self, works: list[Work]) -> None:
        """Give the step of `works` up if a request has come that should not wait for its end."""
        if any(self.scheduler.gives_way(works, request) for request in self.arrivals()):
            raise GivenUp

    def _land(self, flight: Flight) -> list[TokenEvent]:
        if flight.is_given_up:
            self.scheduler.give_up(flight.works)
            self.giving_way.lost(time.perf_counter() - flight.started)
            return []
        outcome = flight.land()
        if isinstance(outcome, Fault):
            if outcome is OUT_OF_MEMORY:
                free_memory()
            return self.scheduler.fail(flight.works, outcome)
        events = self.scheduler.commit(flight.works, outcome)
        self._record(flight)
        return events

    def _record(self, flight: Flight) -> None:
        """Note how long a landed step took: from its launch, or if that is later, from the landing
        of the step before.
        """
        since, self._landed_at = max(flight.started, self._landed_at), time.perf_counter()
        num_tokens, seconds = (
            sum(len(work.token_ids) for work in flight.works),
            self._landed_at - since,
        )
        self._steps += 1
        self.giving_way.computed(seconds)
        self._recent.append((seconds, num_tokens, len(flight.works)))
        self.tiers.computed(num_tokens, seconds)
        num_decodes = sum(len(work.token_ids) for work in flight.works if work.num_known == 1)
        is_full = any(work.stop < work.sequence.num_prompt for work in flight.works)
        self.scheduler.pace.observe(num_tokens - num_decodes, seconds, is_full=is_full)

    def ask(self, asked: Asked) -> None:
        """Take a question of the front."""
        self.answering.ask(asked)

    def answers(self) -> list[Answered]:
        """Go on answering questions for a moment; returns what is answered. To be called between
        two steps.
        """
        return self.answering.work()

    def stats(self) -> EngineStats:
        """What is counted now, and the steps since the last call."""
        self.answering.note_time()
        recent, self._recent = self._recent, []
        return EngineStats(
            numbers={
                STEPS.key(): self._steps,
                GIVEN_UP.key(): self.giving_way.num_given_up,
                **self.scheduler.numbers(),
                **self.cache.numbers(),
                **self.tiers.numbers(),
                **self.pins.numbers(),
                **self.answering.numbers(),
            },
            observed={
                STEP_SECONDS.key(): [seconds for seconds, _, _ in recent],
                STEP_TOKENS.key(): [tokens for _, tokens, _ in recent],
                STEP_SEQUENCES.key(): [sequences for _, _, sequences in recent],
            },
        )
