"""Finds the token that a chat template writes at the end of the assistant's turn.

A model that was trained with the template draws that token at the end of its answer. If it is not a
stop token, answers continue with turns that the model invents.
"""

from __future__ import annotations

from collections.abc import Sequence

from radixserve.text.conversation import Conversation

_MESSAGES = [
    {"role": "user", "content": "What is the capital of France?"},
    {"role": "assistant", "content": "Paris"},
]
OPEN = Conversation(_MESSAGES, ending="open")
CLOSED = Conversation(_MESSAGES, ending="closed")


def turn_end(open_ids: Sequence[int], closed_ids: Sequence[int]) -> int | None:
    """The first token after the assistant's text, from the encodings of `OPEN` and `CLOSED`; None
    if the template writes nothing there, or nothing that is a separate token.
    """
    start = len(open_ids)
    if list(closed_ids[:start]) != list(open_ids) or len(closed_ids) == start:
        return None
    return closed_ids[start]
