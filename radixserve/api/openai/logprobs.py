"""Log probabilities in the shapes of chat completions and of `prompt_logprobs`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from radixserve.api.openai.answers import (
    ChatLogprobs,
    ChatTokenLogprob,
    PromptLogprob,
    PromptLogprobs,
    TopLogprob,
)
from radixserve.step import TokenLogprob

if TYPE_CHECKING:
    from radixserve.text.client import TokenizerClient

LOWEST_LOGPROB = -9999.0  # JSON has no -Infinity


class TokenSpeller:
    """Writes tokens as text, or as `token_id:7` for bodies with `return_tokens_as_token_ids`."""

    def __init__(self, tokenizer: TokenizerClient, *, as_ids: bool) -> None:
        self._tokenizer = tokenizer
        self._as_ids = as_ids

    def chat_logprobs(self, entries: Sequence[TokenLogprob], most: int) -> ChatLogprobs:
        """`entries` with at most `most` alternatives each."""
        return ChatLogprobs([self._entry(entry, most) for entry in entries])

    def prompt_logprobs(
        self, ids: Sequence[int], entries: Sequence[TokenLogprob]
    ) -> PromptLogprobs:
        """The prompt's tokens with their alternatives; `entries` begin with the second token. A
        rank is that among the alternatives, which are the likeliest.
        """
        return [None, *(self._prompt_entry(entry) for entry in entries)] if ids else []

    def name(self, token_id: int) -> str:
        """The token's text, or `bytes:\\xf0\\x9f` if its bytes are not valid text by themselves."""
        if self._as_ids:
            return f"token_id:{token_id}"
        data = self._tokenizer.token_bytes(token_id)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return f"bytes:{repr(data)[2:-1]}"

    def _entry(self, entry: TokenLogprob, most: int) -> ChatTokenLogprob:
        top = [TopLogprob(*self._token(each, logprob)) for each, logprob in entry.top[:most]]
        return ChatTokenLogprob(*self._token(entry.token_id, entry.logprob), top)

    def _token(self, token_id: int, logprob: float) -> tuple[str, float, list[int]]:
        tokenizer = self._tokenizer
        text = f"token_id:{token_id}" if self._as_ids else tokenizer.token_text(token_id)
        return text, max(logprob, LOWEST_LOGPROB), list(tokenizer.token_bytes(token_id))

    def _prompt_entry(self, entry: TokenLogprob) -> dict[str, PromptLogprob]:
        ranks = {token_id: rank for rank, (token_id, _) in enumerate(entry.top, start=1)}
        told = dict([*entry.top, (entry.token_id, entry.logprob)])
        return {
            str(token_id): PromptLogprob(
                max(logprob, LOWEST_LOGPROB),
                self._tokenizer.token_text(token_id),
                ranks.get(token_id),
            )
            for token_id, logprob in told.items()
        }
