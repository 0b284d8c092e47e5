"""Logprobs in the shape of chat completions, which responses share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from radixserve.api.openai.answers import ChatTokenLogprob, TopLogprob
from radixserve.step import TokenLogprob

if TYPE_CHECKING:
    from radixserve.text.client import TokenizerClient

LOWEST_LOGPROB = -9999.0  # JSON has no -Infinity


def chat_logprobs(
    tokenizer: TokenizerClient, entries: Sequence[TokenLogprob], most: int
) -> list[ChatTokenLogprob]:
    """One entry per token, each with the `most` likeliest alternatives at most."""
    return [_entry(tokenizer, entry, most) for entry in entries]


def _entry(tokenizer: TokenizerClient, entry: TokenLogprob, most: int) -> ChatTokenLogprob:
    top = [TopLogprob(*_token(tokenizer, *each)) for each in entry.top[:most]]
    return ChatTokenLogprob(*_token(tokenizer, entry.token_id, entry.logprob), top)


def _token(
    tokenizer: TokenizerClient, token_id: int, logprob: float
) -> tuple[str, float, list[int]]:
    as_bytes = list(tokenizer.token_bytes(token_id))
    return tokenizer.token_text(token_id), max(logprob, LOWEST_LOGPROB), as_bytes
