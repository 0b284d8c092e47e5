"""Which token a chat template writes where the assistant's turn ends.

A model that was trained with the template draws that token at the end of its answer. If it is no
stop token, answers run on through turns that the model invents.
"""

from __future__ import annotations

from collections.abc import Sequence

CONVERSATION = [
    {"role": "user", "content": "What is the capital of France?"},
    {"role": "assistant", "content": "Paris"},
]
"""To be encoded twice: with the ending "open", and "closed"."""


def turn_end(open_ids: Sequence[int], closed_ids: Sequence[int]) -> int | None:
    """The first token behind the assistant's text, from both encodings of `CONVERSATION`; None
    where the template writes nothing there, or nothing that is a token of its own.
    """
    start = len(open_ids)
    if list(closed_ids[:start]) != list(open_ids) or len(closed_ids) == start:
        return None
    return closed_ids[start]
