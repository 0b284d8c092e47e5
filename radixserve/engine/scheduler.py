"""Decides which sequences compute what in the next step, and handles the outcome.

Owns the queue and the running sequences. Which of the waiting ones begin with a step is decided by
`admission`. When the cache has no room for a decode, a running sequence is preempted, the youngest
one unless another tenant holds more than its share: its K/V stays in the tree, so resuming it is a
prefix hit. When nothing else runs, pins give way first. Knows no model, no tensors and no sockets.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass

from radixserve.cache.kvcache import KVCache
from radixserve.declared import Numbers
from radixserve.engine.adapters import Adapters
from radixserve.engine.admission import Admission
from radixserve.engine.counters import BACKLOG_TOKENS, PREFILL_RATE, RUNNING, WAITING
from radixserve.engine.events import ended, refusal_of, refused, token_event
from radixserve.engine.faults import NOT_FINITE, Fault
from radixserve.engine.giving_way import comes_first, prompts_of
from radixserve.engine.grammars import Grammars
from radixserve.engine.pins import Pins
from radixserve.engine.planning import GROWTH, Plan, Work, last_slot, second_try, slots_wanted
from radixserve.engine.prefill_pace import PrefillPace
from radixserve.engine.queue import FairQueue
from radixserve.engine.recent import Found, Recent, Seen, stored_branch
from radixserve.engine.running import Running, lease_of, publish
from radixserve.engine.savings import Savings
from radixserve.engine.sequence import Sequence
from radixserve.engine.speculation import Speculation
from radixserve.engine.tiers import Tiers
from radixserve.engine.totals import Totals
from radixserve.errors import BadRequest
from radixserve.grammar import Compiled
from radixserve.prefix import Branch
from radixserve.request import Request
from radixserve.sampling import Sampled
from radixserve.step import TokenEvent

_NO_ADAPTER = "The adapter that this request names was unloaded."


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of what runs at a time."""

    max_running: int  # sequences
    max_step_tokens: int  # tokens computed in one step
    # of the time of decodes, what prompt tokens may take in a step that others await; 0: no limit
    prefill_share: float = 0.0
    shared_step_seconds: float = 0.0  # what such a step may take in any case
    pin_share: float = 0.25  # of the slots, what all pins together may hold
    # of the slots, or of a tenant's quota, what the pins of one tenant's requests may hold
    request_pin_share: float = 0.125
    speculates: bool = False  # whether decodes guess the tokens behind the next one


class Scheduler:
    """Plans steps and commits their results; the only owner of sequences."""

    def __init__(
        self,
        cache: KVCache,
        limits: Limits,
        tiers: Tiers | None = None,
        grammars: Grammars | None = None,
        pins: Pins | None = None,
    ) -> None:
        self.cache = cache
        self.adapters = Adapters(None, cache.slots.budget, cache.slots.slot_bytes)
        self.tiers = tiers or Tiers(cache)
        self.pins = pins or Pins(cache, 0, 0.0)
        self._grammars = grammars
        # of those waiting: the ones whose grammar is being compiled
        self._awaiting: dict[Sequence, Future[Compiled]] = {}
        self.limits = limits
        self.waiting = FairQueue(self._num_matched)
        self.pace = PrefillPace(limits.prefill_share, limits.shared_step_seconds)
        self.totals = Totals()
        self.running = Running(cache, self.waiting, self.totals, limits.max_running)
        self.recent = Recent()
        cache.slots.on_gone = self.recent.gone
        self.savings = Savings()
        self._speculation = Speculation(cache)
        self.budget = (
            cache.slots.budget
        )  # slots; that of the cache may be more while requests need it
        self._gave_way: set[str] = set()  # tenants with prompts in a step that was given up

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running)

    def numbers(self) -> Numbers:
        """What it counts, as declared in `engine.counters`."""
        return {
            RUNNING.key(): len(self.running),
            WAITING.key(): len(self.waiting),
            BACKLOG_TOKENS.key(): self._backlog(),
            PREFILL_RATE.key(): self.pace.tokens_per_second,
            **self.totals.numbers(),
            **self.waiting.numbers(),
            **self.savings.numbers(),
            **self.recent.numbers(),
            **self._speculation.numbers(),
            **self.adapters.numbers(),
        }

    def add(self, request: Request, output_ids: list[int]) -> TokenEvent | None:
        """Queue a request. Returns an event if it can never run, or if all its tokens were sent
        before. One that the front has accepted before the budget shrank may still run.
        """
        sequence = Sequence.of(request, output_ids)
        self.cache.slots.limit(request.namespace, request.kv_quota, request.kv_floor)
        if last_slot(sequence) > self.cache.slots.allocator.capacity:
            return ended(
                sequence,
                "error",
                f"the request needs {last_slot(sequence)} slots, there are "
                f"{self.cache.slots.allocator.capacity}",
            )
        if sequence.num_output >= request.sampling.max_tokens:
            return ended(sequence, "length")
        if request.sampling.grammar is not None and self._grammars is None:
            return ended(sequence, "error", "this engine has no grammars")
        if request.adapter:
            sequence.adapter = self.adapters.take(request.adapter)
            if sequence.adapter is None:
                return refused(sequence, BadRequest(_NO_ADAPTER, code="model_not_found"))
        if request.sampling.grammar is not None and self._grammars is not None:
            self._awaiting[sequence] = self._grammars.compile(request.sampling.grammar)
        self.waiting.add(sequence)
        if last_slot(sequence) > self.cache.slots.budget:
            self._keep_budget()
        return None

    def resize(self, num_slots: int) -> int:
        """Change the K/V budget, as `BudgetedSlots.resize` does, but leave as much as the longest
        request in the engine needs until it has ended. Returns how many tokens were evicted.
        """
        self.budget = num_slots
        return self._keep_budget()

    def _keep_budget(self) -> int:
        needed = max(map(last_slot, (*self.waiting, *self.running)), default=0)
        return self.cache.slots.resize(max(self.budget, needed))

    @property
    def awaits_grammar(self) -> bool:
        """Whether a sequence waits for its grammar."""
        return bool(self._awaiting)

    def settle_grammars(self) -> list[TokenEvent]:
        """To be called between two steps: give the sequences that wait for a grammar those that are
        compiled. Returns the ends of sequences whose grammar cannot be compiled.
        """
        settled = [each for each, future in self._awaiting.items() if future.done()]
        events = (self._constrain(each) for each in settled)
        return [event for event in events if event is not None]

    def _constrain(self, sequence: Sequence) -> TokenEvent | None:
        """Give `sequence` its grammar, which is compiled, or end it if that failed."""
        try:
            compiled = self._awaiting[sequence].result()
        except BadRequest as refusal:
            self._end(sequence)
            return refused(sequence, refusal)
        del self._awaiting[sequence]
        sequence.constrain(compiled)
        return None

    def abort(self, request_id: str) -> TokenEvent | None:
        """End a request in any state. None if it is unknown, or has ended."""
        for sequence in (*self.waiting, *self.running):
            if sequence.request.id == request_id:
                self._end(sequence)
                return ended(sequence, "abort")
        return None

    def withhold(self, branch: Branch) -> None:
        """`branch` was dropped: what running sequences have computed of it, and not published yet,
        is never published.
        """
        for sequence in self.running:
            if branch.covers(sequence.prefix(sequence.num_tokens)):
                lease_of(sequence).withhold()

    # plan

    def plan(self) -> list[Work]:
        """The works of the next step: decodes, then prefill chunks in the queue's order, of new
        sequences, too, within max_step_tokens and what the pace allows if others wait.

        Sequences of a failed step come first of all, one at a time. One step may be in flight:
        planned before, not committed yet.
        """
        retried = next((sequence for sequence in self.running if sequence.num_retry), None)
        if retried is not None:
            return second_try(retried)
        plan = Plan(self.limits.max_step_tokens)
        decoding = [each for each in self.running if not each.is_prefilling]
        self._plan(plan, decoding)
        others_wait = bool(decoding) or self.waiting.is_shared
        if others_wait and (most := self.pace.most_tokens()) is not None:
            plan.room = min(plan.room, most)
        if self.waiting:
            admission = Admission(self.running, self.waiting, self.tiers, self.pins, plan)
            admission.admit(self._first_admission)
        prefilling = [each for each in self.running if each.is_prefilling]
        newcomers = [each for each in prefilling if each.request.tenant not in self._gave_way]
        self._gave_way = set()
        self._plan(plan, self.waiting.prefill_order(newcomers or prefilling))
        for each in prefilling:
            each.num_passed = 0 if plan.has(each) else each.num_passed + 1
        if self.limits.speculates:
            self._speculation.add_drafts(plan)
        return plan.works()

    def _plan(self, plan: Plan, sequences: list[Sequence]) -> None:
        """Add `sequences` to the plan as far as there is room."""
        for sequence in sequences:
            # Without a lease it was preempted by an older sequence in this very loop.
            gone = sequence.lease is None or sequence.is_ending
            if not gone and plan.room > 0 and self._hold_slots(sequence, plan):
                plan.add(sequence)

    def _hold_slots(self, sequence: Sequence, plan: Plan) -> bool:
        """Give every token of `sequence` a slot, also the one being drawn, and those that are
        computed next window slots, preempting others if necessary.

        False if `sequence` itself was preempted.
        """
        while not _has_slots(sequence, plan.room):
            if self.tiers.relent() or (len(self.running) == 1 and self.pins.relent()):
                continue
            victim = self._victim_for(sequence)
            plan.drop(victim)
            self.running.preempt(victim)
            if victim is sequence:
                return False
        return True

    def _victim_for(self, growing: Sequence) -> Sequence:
        """The running sequence that is preempted for the next slots of `growing`: of another tenant
        that holds more than its share, or else the youngest of its own.
        """
        giver = (
            self.running.slot_shares().giver(growing, GROWTH) if self.waiting.is_shared else None
        )
        tenant = growing.request.tenant
        ours = (each for each in reversed(self.running) if each.request.tenant == tenant)
        return giver or next(ours)

    def _first_admission(self, sequence: Sequence) -> None:
        """Count what the cache had for `sequence`, which has begun and never ran before."""
        sequence.admitted_at = time.monotonic()
        sequence.num_cached = min(sequence.num_computed, sequence.num_prompt)
        self.totals.note_prompt(sequence)
        self.savings.add(sequence.num_cached, self.pace.tokens_per_second)
        request, prompt = sequence.request, sequence.prefix(sequence.num_prompt)
        # Without second slots all that agrees was given.
        agreed = 0 if self.cache.second is None else self.cache.agrees(prompt)
        self.recent.asked(
            Seen.now(prompt, request.session),
            Found(sequence.num_cached, agreed, sequence.unloaded),
            lambda: stored_branch(self.cache.tree, prompt),
            reads=self.cache.enabled and sequence.reads_cache,
            keeps=self.cache.enabled and request.keeps_cache and not sequence.num_resumed,
        )

    def _backlog(self) -> int:
        """Prompt tokens still to be computed; choices of one prompt share them."""
        waiting = {(each.body, each.num_prompt): each for each in self.waiting}
        missing = sum(each.num_tokens - each.num_matched for each in waiting.values())
        return missing + sum(each.num_pending for each in self.running if each.num_pending > 1)

    def _num_matched(self, sequence: Sequence) -> int:
        """How many tokens of a waiting sequence the device holds now."""
        if not (self.cache.enabled and sequence.reads_cache):
            return 0
        return self.cache.match(sequence.prefix(sequence.num_usable))

    # commit

    def commit(self, works: list[Work], drawn: Iterable[list[Sampled | None]]) -> list[TokenEvent]:
        """Record a computed step. `drawn` holds each work's draws, None for a row whose logits were
        not finite.

        What was computed for a sequence that has ended or was preempted in the meantime is dropped.
        """
        events = (
            self._advance(work, draws)
            for work, draws in zip(works, drawn, strict=True)
            if work.is_current
        )
        return [event for event in events if event is not None]

    def gives_way(self, works: list[Work], request: Request) -> bool:
        """Whether the step of `works`, which is being computed, should be given up for `request`,
        which has just come.
        """
        is_full = len(self.running) >= self.limits.max_running
        if is_full or not self.limits.prefill_share or request.sampling.grammar is not None:
            return False
        newcomer = Sequence.of(request, request.output_ids)
        newcomer.num_matched = self._num_matched(newcomer)
        return comes_first(newcomer, prompts_of(works), self.waiting)

    def give_up(self, works: list[Work]) -> None:
        """Take back a step that was given up. The next one computes no prompts of its tenants, if
        there are others.
        """
        current = [work for work in works if work.is_current]
        for work in current:
            work.sequence.num_planned = work.sequence.num_computed
        self._gave_way = {each.request.tenant for each in prompts_of(current)}

    def fail(self, works: list[Work], fault: Fault) -> list[TokenEvent]:
        """Take back a step that failed, or end its sequence if this was its second try. Nothing of
        it becomes visible.
        """
        self.totals.faults[fault.kind] += 1
        events = []
        for work in works:
            if not work.is_current:
                continue
            if work.sequence.num_retry:
                events.append(self._fail(work.sequence, fault))
            else:
                work.take_back()
        return events

    def _fail(self, sequence: Sequence, fault: Fault) -> TokenEvent:
        self._end(sequence, publishes=False)
        return ended(sequence, fault.finish, fault.error)

    def _advance(self, work: Work, drawn: list[Sampled | None]) -> TokenEvent | None:
        sequence = work.sequence
        if drawn[0] is None:
            return self._fail_row(work)
        self.waiting.served(sequence, work.stop - work.start)
        sequence.num_computed, sequence.num_retry = work.start + work.num_known, 0
        work.lease.reach(sequence.num_computed)
        if work.start < sequence.num_prompt:
            publish(sequence)
            if sequence.num_computed >= sequence.num_prompt:
                lease_of(sequence).note_end()
                self.tiers.save(sequence)
                self._note_pinned(sequence)
        if sequence.num_pending:
            return None
        counting = work.counting(drawn)
        for sampled in counting:
            sequence.append(sampled.token_id)
        if len(work.draft):
            num_right = len(counting) - 1
            sequence.num_computed += num_right
            sequence.num_planned += num_right
            self._speculation.judge(work, num_right)
        event = token_event(sequence, counting)
        self.totals.generated_tokens += len(event.token_ids)
        if event.finish is not None:
            self._end(sequence)
        else:
            sequence.append_forced()
        return event

    def _note_pinned(self, sequence: Sequence) -> None:
        """All K/V of the prompt is there."""
        prompt, request = sequence.prefix(sequence.num_computed), sequence.request
        if sequence.reads_cache:
            self.pins.served(prompt, renews=request.renews_pins)
        if request.pins:
            sequence.pins = self.pins.add_wishes(request, prompt)

    def _fail_row(self, work: Work) -> TokenEvent:
        """End a sequence for which no token could be drawn."""
        sequence = work.sequence
        refusal = refusal_of(work)
        if refusal is not None:
            self._end(sequence)
            return refused(sequence, refusal)
        self.totals.faults[NOT_FINITE.kind] += 1
        return self._fail(sequence, NOT_FINITE)

    # release: every sequence ends here

    def _end(self, sequence: Sequence, publishes: bool = True) -> None:
        self._awaiting.pop(sequence, None)
        self.waiting.leave(sequence)
        if sequence.lease is None:
            self.waiting.remove(sequence)
        else:
            self._end_running(sequence, publishes)
        if sequence.adapter is not None and self.adapters.give_back(sequence.request.adapter):
            self.resize(self.adapters.kv_slots)
        if self.cache.slots.budget > self.budget:
            self._keep_budget()

    def _end_running(self, sequence: Sequence, publishes: bool) -> None:
        if publishes:
            publish(sequence)
            self.tiers.save(sequence)
        self.running.end(sequence)


def _has_slots(sequence: Sequence, room: int) -> bool:
    """Whether the lease has slots for every token of `sequence`, and window slots for the next
    `room` of them, or can get them without preempting others.
    """
    lease, wanted = lease_of(sequence), sequence.num_expected
    if len(lease.slots) < wanted and not lease.grow(slots_wanted(sequence)):
        return False
    return lease.cover(sequence.num_planned, min(wanted, sequence.num_planned + room))
