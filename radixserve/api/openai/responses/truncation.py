"""`truncation: auto`: leaves the oldest turns of a conversation out until it fits.

A turn begins with a user's message, so calls and their outputs stay together. System messages at
the beginning are kept. Knows no tokenizer: whether a conversation fits is what the checks say.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from radixserve.api.openai.responses.translate import Translation
from radixserve.errors import BadRequest

T = TypeVar("T")

_TOO_LONG = ("context_length_exceeded", "kv_budget_exceeded")


async def with_latest_turns(
    whole: Translation, prepare: Callable[[Translation], Awaitable[T]]
) -> T:
    """What `prepare` makes of the longest end of the conversation that fits, in whole turns.

    Raises the refusal of the whole conversation if not even its last turn fits. Calls `prepare`
    O(log n) times for n turns.
    """
    try:
        return await prepare(whole)
    except BadRequest as refusal:
        if refusal.code not in _TOO_LONG:
            raise
        too_long = refusal
    starts = whole.conversation.turn_starts()[1:]
    found: list[T] = []
    low, high = 0, len(starts)
    while low < high:
        middle = (low + high) // 2
        try:
            found = [await prepare(whole.starting_at(starts[middle]))]
            high = middle
        except BadRequest as refusal:
            if refusal.code not in _TOO_LONG:
                raise
            low = middle + 1
    if not found:
        raise too_long
    return found[0]
