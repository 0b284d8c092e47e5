"""The running state of one request: the one mutable object that travels through the engine.

Counters, not phases: a sequence has `num_tokens` tokens of which `num_computed` have K/V, and every
step lets the second catch up with the first. Prefill, a prefix hit, chunked prefill, decode and
resumption after preemption are all that one rule.

        positions  0 ...... num_computed ...... num_planned ...... num_tokens .......... capacity
                   K/V in slots   | a step in flight    | to be computed     | not generated yet
                   |<- prompt (num_prompt) ->|<- output ->|

While no step is in flight, num_planned equals num_computed. A step in flight that computes the last
known token draws the one behind it; then there are `num_expected` tokens, one more than
`num_tokens`, and that one may be planned although only the device knows which it is: `ids` holds a
zero in its place.

Tokens that a grammar forces are appended behind a drawn one without being drawn. The next step
computes all of them in one chunk and draws the token behind them; all are reported together then,
because the logprobs of forced tokens come from that step. So `num_reported` is less than
`num_tokens` only between two draws.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from radixserve.cache.kvcache import Lease
from radixserve.engine.constraint import Constraint
from radixserve.engine.drafts import Drafting
from radixserve.grammar import Compiled
from radixserve.prefix import Prefix
from radixserve.request import Request
from radixserve.step import Adapter, PinOutcome, TierLoad, TokenLogprob


@dataclass(slots=True, eq=False)
class Sequence:
    """A request in the engine; owned by the scheduler."""

    request: Request
    ids: npt.NDArray[np.int32]  # [num_prompt + max_tokens]: tokens, then room for those to come
    num_tokens: int
    num_reported: int  # tokens that the client knows of: the prompt, and the output sent so far
    body: str  # what the choices of one body have in common: their ids are BODY-0, BODY-1, ...
    num_resumed: int = 0  # output tokens that came from an earlier engine
    num_computed: int = 0
    num_reached: int = 0  # the most tokens it had computed before it was admitted last
    num_planned: int = 0  # tokens that have K/V or are in a step in flight
    # tokens of the chunk to be computed again, alone, because its step raised; 0 if none
    num_retry: int = 0
    row: int = 0  # its index among the works of the step planned last
    num_cached: int | None = None  # prompt tokens found in the cache at first admission
    num_asked: int = 0  # lower tiers that were asked for K/V since it began to wait
    # tokens whose K/V was copied to the device for it, by tier
    num_promoted: dict[str, int] = field(default_factory=dict)
    loads: list[TierLoad] = field(default_factory=list)  # before its first admission
    # up to which position tiers had K/V that did not come; None: one had not even said how much
    unloaded: int | None = 0
    # when it was preempted since its last event, in seconds since the front accepted it
    preempted: list[float] = field(default_factory=list)
    num_matched: int = 0  # tokens in the cache when the queue last looked
    num_overtaken: int = 0  # later arrivals of its tenant that were admitted before it
    num_passed: int = 0  # steps in a row in which it had tokens to prefill and got none
    place: tuple[int, float, int] = (1, 0.0, 0)  # in the order of arrival of its tenant
    admitted_at: float | None = None  # time.monotonic() seconds
    lookup_seconds: float = 0.0  # at first admission
    lease: Lease | None = None
    pins: tuple[PinOutcome, ...] = ()  # what became of its wishes
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)
    forced_logprobs: list[TokenLogprob] = field(default_factory=list)  # of unreported tokens
    drafting: Drafting | None = None  # its guesses, once it decodes
    adapter: Adapter | None = None  # that computes it
    constraint: Constraint | None = None  # of its grammar, once that is compiled

    @classmethod
    def of(cls, request: Request, output_ids: list[int]) -> Sequence:
        """A waiting sequence; `output_ids` continue the prompt where an earlier engine stopped."""
        known = request.prompt_ids + output_ids
        ids = np.zeros(
            max(len(request.prompt_ids) + request.sampling.max_tokens, len(known)), np.int32
        )
        ids[: len(known)] = known
        body = request.id.rpartition("-")[0] or request.id
        return cls(request, ids, len(known), len(known), body, num_resumed=len(output_ids))

    @property
    def num_prompt(self) -> int:
        return len(self.request.prompt_ids)

    @property
    def num_output(self) -> int:
        return self.num_tokens - self.num_prompt

    @property
    def num_pending(self) -> int:
        """Tokens whose K/V is not computed yet; 1 while decoding."""
        return self.num_tokens - self.num_computed

    @property
    def num_expected(self) -> int:
        """How many tokens there will be once the step in flight is committed; `num_tokens` if none
        is.
        """
        return self.num_tokens + (self.num_planned >= self.num_tokens)

    @property
    def is_prefilling(self) -> bool:
        """Whether more than one of its tokens is not planned yet."""
        return self.num_expected - self.num_planned > 1

    @property
    def is_ending(self) -> bool:
        """Whether the step in flight draws the last token that the request may have."""
        return self.num_expected - self.num_prompt >= self.request.sampling.max_tokens

    @property
    def prompt_ids(self) -> npt.NDArray[np.int32]:
        return self.ids[: self.num_prompt]

    @property
    def output_ids(self) -> npt.NDArray[np.int32]:
        return self.ids[self.num_prompt : self.num_tokens]

    @property
    def reads_cache(self) -> bool:
        """Whether it may skip cached tokens."""
        return self.request.reads_cache and not self.wants_prompt_logits

    @property
    def wants_prompt_logits(self) -> bool:
        """Whether the logits of every prompt position are needed, for prompt logprobs. Those of a
        resumed request came with its first token.
        """
        return self.request.sampling.prompt_logprobs is not None and self.num_resumed == 0

    @property
    def cached_below(self) -> dict[str, int]:
        """How many of the cached prompt tokens were copied from each tier for this request."""
        below, left = {}, self.num_cached or 0
        for tier, promoted in self.num_promoted.items():
            below[tier] = min(promoted, left)
            left -= below[tier]
        return below

    @property
    def awaits_grammar(self) -> bool:
        """Whether it has a grammar that is not compiled yet."""
        return self.request.sampling.grammar is not None and self.constraint is None

    @property
    def num_usable(self) -> int:
        """Tokens whose K/V may be read from the cache, but for the last one: those before the
        first token whose logprob is still to be computed.
        """
        wanted = self.request.sampling.logprobs is not None
        return self.num_reported if wanted else self.num_tokens

    def wants_logits(self, start: int, stop: int) -> bool:
        """Whether a chunk of these positions computes logits of all its rows, for the logprobs of
        known tokens: of the prompt, or of tokens that a grammar forced.
        """
        if start < self.num_prompt and self.wants_prompt_logits:
            return True
        first, last = max(start + 1, self.num_reported), min(stop + 1, self.num_tokens)
        return self.request.sampling.logprobs is not None and first < last

    def prefix(self, num_tokens: int) -> Prefix:
        """The first `num_tokens` tokens, as cache and tiers know them."""
        request = self.request
        return Prefix(request.namespace, self.ids[:num_tokens].tobytes(), request.num_public)

    def constrain(self, compiled: Compiled) -> None:
        """Follow its grammar from now on, and append the tokens that it forces first."""
        self.constraint = Constraint(compiled, self.request.sampling, self.output_ids.tolist())
        self.append_forced()

    def append(self, token_id: int) -> None:
        """Append a drawn token."""
        self.ids[self.num_tokens] = token_id
        self.num_tokens += 1
        if self.constraint is not None and token_id not in self.request.sampling.stop_token_ids:
            self.constraint.advance(token_id)

    def append_forced(self) -> None:
        """Append the tokens that the grammar forces here. At least one of `max_tokens` is left to
        be drawn.
        """
        if self.constraint is not None:
            most = self.request.sampling.max_tokens - self.num_output - 1
            forced = self.constraint.take_forced(most)
            self.ids[self.num_tokens : self.num_tokens + len(forced)] = forced
            self.num_tokens += len(forced)

    def shared_prefix(self, other: Sequence) -> int:
        """Number of leading tokens of which both have the same K/V; 0 if `other` keeps none."""
        if not other.request.keeps_cache:
            return 0
        n, mine, theirs = min(self.num_tokens, other.num_tokens), self.request, other.request
        if (mine.namespace, mine.num_public) != (theirs.namespace, theirs.num_public):
            n = min(n, mine.num_public, theirs.num_public)
        differs = self.ids[:n] != other.ids[:n]
        first = int(differs.argmax()) if n else 0
        return first if n and differs[first] else n
