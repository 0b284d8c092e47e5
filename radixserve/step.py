"""The plain values of a step: what to compute, what came of it, and the engine's state.

They belong to no layer: the scheduler fills `Chunk`s, the model runner reads them, the front reads
`TokenEvent`s and `EngineStats`. No torch and no text here.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from radixserve.adapters import AdapterInfo
from radixserve.declared import Declared, Key, Numbers

Slots = npt.NDArray[np.int32]
"""The slot of position p at index p."""


class Logits(enum.Enum):
    """The rows of a chunk whose logits are computed. The last row is always one of them: it shows
    whether K/V is finite.
    """

    LAST = "last"
    ALL = "all"  # prompt logprobs


class Adapter(Protocol):
    """What the model computes with for some rows besides its own weights."""

    @property
    def address(self) -> int:
        """Where its table lies in memory; never 0."""


class StatePart(NamedTuple):
    """Rows of a chunk up to position `stop`, of a model whose layers have states: the state before
    them is in the state slot `source` (-1: there is none yet, it is zeros), and the one behind them
    is written to `target`.
    """

    stop: int
    source: int
    target: int


@dataclass(slots=True)
class Chunk:
    """One sequence's part of a step: it computes K/V of positions [start, start + len(token_ids)),
    which attend all positions from 0 on.

    `slots` covers positions 0 .. stop-1; those below `start` hold K/V already, or get it from an
    earlier step. With `drawn_row` the chunk is one token that only the device knows yet: the step
    before draws it in that row. `states` are its parts in order, of which each begins with the
    state behind the one before, if the model's layers have states.
    """

    token_ids: npt.NDArray[np.int32]
    start: int
    slots: Slots
    logits: Logits = Logits.LAST
    drawn_row: int | None = None
    adapter: Adapter | None = None
    states: tuple[StatePart, ...] = ()

    @property
    def stop(self) -> int:
        return self.start + len(self.token_ids)

    @property
    def num_logits(self) -> int:
        return len(self.token_ids) if self.logits is Logits.ALL else 1


FinishReason = Literal["stop", "length", "abort", "error", "refused"]
"""How a request ends. "refused" says that what the client asked for cannot be done, "error" that
the server failed.
"""

FaultKind = Literal["exception", "out_of_memory", "not_finite"]


class TokenLogprob(msgspec.Struct, frozen=True, array_like=True):
    """Natural-log probability of a token under the model's own distribution (before penalties and
    temperature).
    """

    token_id: int
    logprob: float
    top: list[tuple[int, float]]  # the most likely tokens, best first


GivenUp = Literal["late", "no_room", "declined"]
"""Why K/V that a tier had did not come to the device: reading it took longer than computing it
would, no slots were free, or the tier did not read it, because that is slower than computing, or
because it failed."""


class TierLoad(msgspec.Struct, frozen=True, array_like=True):
    """K/V that was copied to the device for one request, or was to be."""

    tier: str
    start_seconds: float  # since the front accepted the request
    seconds: float
    num_tokens: int  # 0 if it was given up
    given_up: GivenUp | None = None


PinStatus = Literal["accepted", "clipped", "refused"]
"""Whether all tokens that are to stay cached for a while are held, some, or none."""


class PinOutcome(msgspec.Struct, frozen=True, array_like=True):
    """What became of a request's wish that K/V of its prompt stays cached for a while."""

    status: PinStatus
    num_tokens: int  # that are held


class TokenEvent(msgspec.Struct, kw_only=True, omit_defaults=True):
    """The outcome of one step for one request. Every accepted request ends in exactly one event
    with `finish` set.

    The event of the first token carries `num_cached` and what stands below it; an engine that
    continues the request after another one does not repeat them.
    `stop_token_id` is set when a stop token ended the request; that token is the last of
    `token_ids`, and the front keeps it out of the text.
    """

    request_id: str
    token_ids: list[int] = []
    logprobs: list[TokenLogprob] | None = None
    # for positions 1 .. n-1, in the event of the first token
    prompt_logprobs: list[TokenLogprob] | None = None
    finish: FinishReason | None = None
    stop_token_id: int | None = None
    # a sentence for the client, with "error" and "refused", and with "abort" unless the client
    # aborted
    error: str | None = None
    code: str | None = None  # of the refusal, with "refused"
    num_cached: int | None = None
    cached_below: dict[str, int] = {}  # tokens of num_cached, by the tier that they came from
    queue_seconds: float | None = None  # the look-up and the loads included
    lookup_seconds: float = 0.0  # the search of the prefix tree
    loads: tuple[TierLoad, ...] = ()  # that brought something or were given up
    pins: tuple[PinOutcome, ...] = ()  # one for each of the request's wishes
    # when it was preempted since its last event, in seconds since the front accepted the request
    preempted: tuple[float, ...] = ()


MIN_SLOTS = 64
"""The smallest K/V budget, in tokens."""


class EngineInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Facts about the loaded model, with which the front validates requests and answers
    /version.
    """

    vocab_size: int
    context_length: int  # most tokens of prompt and answer together
    eos_token_ids: tuple[int, ...]
    max_request_tokens: int  # the same, limited also by the K/V budget
    num_slots: int  # tokens of K/V that the budget holds, but for what adapters take of it
    pool_slots: int  # the same of the largest budget, whose memory is reserved
    host_bytes: int = 0  # the largest budget of the host tier; 0: there is none
    most_running: int = 4096  # the largest value that max_running may get
    slot_bytes: int  # bytes of the K/V budget that a token takes
    device: str
    dtype: str  # of weights and activations
    checkpoint_dtype: str  # of the weights in the model's files
    kv_dtype: str  # of keys and values on the device
    quantize: str = "none"  # what the weights of linears became while they were loaded
    cpu_level: str | None = None  # the instructions that CPU kernels use; None on other devices
    attention: str  # name of the attention kernel in use
    exact: bool  # a cache hit equals a miss bit for bit in this configuration
    inexact_reason: str | None = None
    # At this start, or at an earlier one with the same model on this machine.
    load_check: Literal["run", "remembered"] = "run"
    forward: Literal["fast", "generic"] = "generic"  # our own forward pass, or the model's modules
    generic_reason: str | None = None  # why the fast forward is not used
    weight_bytes: dict[str, int] = {}  # of packed weights, by their format; fast forward only
    fallback_reason: str | None = None  # which fast path of the device is not used, and why
    cache_enabled: bool = True
    adapters: tuple[AdapterInfo, ...] = ()  # that were loaded at its start


class EngineStats(msgspec.Struct, kw_only=True):
    """What the engine counts, sent after steps, under the keys of what its parts declare
    (`metrics_table.ENGINE`).
    """

    numbers: Numbers = {}
    observed: dict[Key, list[float]] = {}  # values of histograms since the last report

    def value(self, declared: Declared, *labels: str) -> float:
        """One number; 0 if it is not reported."""
        return self.numbers.get(declared.key(*labels), 0)

    def total(self, declared: Declared) -> float:
        """The sum over all series of a metric."""
        return sum(value for key, value in self.numbers.items() if key[0] == declared.name)

    def seen(self, declared: Declared, *labels: str) -> list[float]:
        """What a histogram observed since the last report."""
        return self.observed.get(declared.key(*labels), [])
