"""Decides when the step that is being computed is given up for a request that has just come.

A request waits for the end of the step in flight. If its prompt is cached, that can take longer
than its own step. So where others' long prompts are computed, the engine looks for new requests
between layers, and gives the step up for one that is short and whose tenant is behind:

    in turn     | long prompt of A      || B, and more of A      |
                        ^ B comes                                ^ its first token
    given up    | long p|| B       || long prompt of A      |
                                   ^

What was computed of the step is lost, which may be a small share of all computing. The sequences of
the step have not advanced, so the same tokens are computed again, to the same bits; K/V that is
half written belongs to nobody.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from radixserve.engine.planning import Work
from radixserve.engine.queue import FairQueue
from radixserve.engine.sequence import Sequence

MOST_TOKENS: Final = 32  # of a request's prompt that are not cached
LOST_SHARE: Final = 0.05  # of the time of steps, the most that is lost with those given up
_MOST_SAVED: Final = 0.25  # seconds of it that may be saved up


class GivenUp(Exception):
    """The step that is being computed is given up."""


class GivingWay:
    """How many steps were given up, and whether one more may be."""

    def __init__(self) -> None:
        self.num_given_up = 0
        self._seconds = 0.0  # that may be lost

    def computed(self, seconds: float) -> None:
        """A step has taken so long."""
        self._seconds = min(_MOST_SAVED, self._seconds + LOST_SHARE * seconds)

    def lost(self, seconds: float) -> None:
        """A step was given up after so long."""
        self.num_given_up += 1
        self._seconds -= seconds

    def may_be(self, works: Iterable[Work]) -> bool:
        """Whether the step of `works` may be given up: it computes part of a prompt, and is no
        second try.
        """
        retries = any(work.sequence.num_retry for work in works)
        return self._seconds > 0 and not retries and bool(prompts_of(works))


def prompts_of(works: Iterable[Work]) -> list[Sequence]:
    """The sequences of which a step computes more than the last known token and guesses."""
    return [work.sequence for work in works if work.num_known > 1]


def comes_first(newcomer: Sequence, others: list[Sequence], queue: FairQueue) -> bool:
    """Whether `newcomer` should not wait for a step that computes prompts of `others`: its tenant
    is behind, and little of it is to be computed, less than of the longest of them.
    """
    missing = newcomer.num_tokens - newcomer.num_matched
    longest = max(each.num_pending for each in others)
    return missing <= MOST_TOKENS and missing < longest and queue.is_behind(newcomer, others)
