"""The events that the engine sends to the front about a sequence: its next tokens, and its end with
the reason.

The first event of a sequence also says how its prompt was served: what was cached and where, how
long it waited, and what became of its pins. Changes nothing but what a sequence has reported.
"""

from __future__ import annotations

from radixserve.engine.planning import Work
from radixserve.engine.sequence import Sequence
from radixserve.errors import BadRequest
from radixserve.sampling import Sampled, leaves_no_token
from radixserve.step import FinishReason, TokenEvent


def ended(sequence: Sequence, finish: FinishReason, error: str | None = None) -> TokenEvent:
    """The end of `sequence` without another token."""
    event = TokenEvent(request_id=sequence.request.id, finish=finish, error=error)
    if sequence.num_reported == sequence.num_prompt:  # else the event of the first token said it
        _describe_cached(sequence, event)
    return event


def refused(sequence: Sequence, refusal: BadRequest) -> TokenEvent:
    """The end of `sequence` because of what its request asks."""
    event = ended(sequence, "refused", refusal.message)
    event.code = refusal.code
    return event


def refusal_of(work: Work) -> BadRequest | None:
    """Why the request itself lets no token be drawn; None if it does."""
    constraint = work.sequence.constraint
    if constraint is not None and constraint.error:
        return BadRequest(
            "The grammar became too complex while the answer was generated.",
            code="grammar_too_complex",
        )
    if leaves_no_token(work):
        return BadRequest(
            "No token is left to draw: what 'allowed_token_ids', 'bad_words', 'min_tokens' and the "
            "form of the answer allow excludes each other.",
            code="invalid_value",
        )
    return None


def token_event(sequence: Sequence, drawn: list[Sampled]) -> TokenEvent:
    """The event of the tokens just drawn and appended, and of the forced ones before them."""
    sampling, constraint = sequence.request.sampling, sequence.constraint
    is_first = sequence.num_reported == sequence.num_prompt
    new_ids = sequence.ids[sequence.num_reported : sequence.num_tokens].tolist()
    event = TokenEvent(request_id=sequence.request.id, token_ids=new_ids)
    logprobs = [sampled.logprob for sampled in drawn if sampled.logprob is not None]
    if logprobs:
        event.logprobs = [*sequence.forced_logprobs, *logprobs]
    if drawn[-1].token_id in sampling.stop_token_ids:
        event.finish, event.stop_token_id = "stop", drawn[-1].token_id
    elif constraint is not None and constraint.is_complete:
        event.finish = "stop"
    elif sequence.num_output >= sampling.max_tokens:
        event.finish = "length"
    if is_first:
        _describe_start(sequence, event)
    event.preempted, sequence.preempted = tuple(sequence.preempted), []
    sequence.num_reported, sequence.forced_logprobs = sequence.num_tokens, []
    return event


def _describe_start(sequence: Sequence, event: TokenEvent) -> None:
    assert sequence.admitted_at is not None, "a token was drawn before admission"
    _describe_cached(sequence, event)
    event.queue_seconds = max(0.0, sequence.admitted_at - sequence.request.arrived)
    event.lookup_seconds, event.loads = sequence.lookup_seconds, tuple(sequence.loads)
    event.pins = sequence.pins
    if sequence.request.sampling.prompt_logprobs is not None:
        event.prompt_logprobs = sequence.prompt_logprobs


def _describe_cached(sequence: Sequence, event: TokenEvent) -> None:
    event.num_cached = sequence.num_cached
    event.cached_below = sequence.cached_below
