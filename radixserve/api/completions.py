"""Text completions: turns generated text into `text_completion` bodies and chunks. Knows no engine
and no HTTP.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from msgspec import UNSET

from radixserve.api.answers import TextChoice, TextCompletion, TextLogprobs, Usage
from radixserve.api.chat import LOWEST_LOGPROB
from radixserve.api.generation import Choice, Delta
from radixserve.api.validate import Generation
from radixserve.step import TokenLogprob

if TYPE_CHECKING:
    from radixserve.text.client import TokenizerClient


class CompletionRenderer:
    """Builds the bodies of one answer. Each stream reuses one chunk struct, which must be encoded
    before the next one is made.
    """

    def __init__(self, generation: Generation, model: str, tokenizer: TokenizerClient) -> None:
        self._generation = generation
        self._tokenizer = tokenizer
        self._id = f"cmpl-{generation.id}"
        self._created = int(time.time())
        self._model = model
        self._choice = TextChoice(0, "")
        usage = None if generation.include_usage else UNSET
        self._chunk = TextCompletion(self._id, self._created, model, [self._choice], usage=usage)

    def opening(self, choice: Choice, usage: Usage | None) -> None:
        """A text completion has no opening chunk."""

    def chunk(self, choice: Choice, delta: Delta, usage: Usage | None) -> TextCompletion:
        """The chunk for `delta`; valid until the next call."""
        self._chunk.usage = usage or self._chunk.usage
        self._choice.index = choice.index
        self._choice.text = delta.text
        self._choice.finish_reason = choice.finish_reason
        self._choice.logprobs = self._logprobs(choice, delta)
        return self._chunk

    def usage_chunk(self, usage: Usage) -> TextCompletion:
        return TextCompletion(self._id, self._created, self._model, [], usage=usage)

    def whole(self, choices: list[Choice], usage: Usage) -> TextCompletion:
        """The body of an answer that is not streamed; every choice has finished."""
        rendered = [
            TextChoice(
                choice.index,
                choice.whole.text,
                self._logprobs(choice, choice.whole),
                choice.finish_reason,
            )
            for choice in choices
        ]
        return TextCompletion(self._id, self._created, self._model, rendered, usage=usage)

    def _logprobs(self, choice: Choice, delta: Delta) -> TextLogprobs | None:
        """Parallel lists over the tokens of `delta`, the prompt's tokens first if they are
        echoed.
        """
        if self._generation.logprobs is None:
            return None
        lists = TextLogprobs([], [], [], [])
        if delta.prompt_logprobs is not None:
            self._append_prompt(lists, choice, delta.prompt_logprobs)
        for entry, offset in zip(delta.logprobs, delta.offsets, strict=True):
            self._append(lists, entry.token_id, entry, len(choice.echo_text) + offset)
        return lists

    def _append_prompt(
        self, lists: TextLogprobs, choice: Choice, entries: list[TokenLogprob]
    ) -> None:
        """Append the prompt's tokens; the first has no probability."""
        ids = choice.request.prompt_ids
        offsets = self._tokenizer.offsets(ids, choice.echo_text)
        for token_id, entry, offset in zip(ids, [None, *entries], offsets, strict=True):
            self._append(lists, token_id, entry, offset)

    def _append(
        self, lists: TextLogprobs, token_id: int, entry: TokenLogprob | None, offset: int
    ) -> None:
        name = self._name(token_id)
        lists.tokens.append(name)
        lists.text_offset.append(offset)
        lists.token_logprobs.append(None if entry is None else max(entry.logprob, LOWEST_LOGPROB))
        lists.top_logprobs.append(None if entry is None else self._top(entry, name))

    def _top(self, entry: TokenLogprob, drawn_name: str) -> dict[str, float]:
        """The alternatives, most likely first; the drawn token is always included, under
        `drawn_name`.

        If other tokens have the same text, the likeliest gets the name and the rest are called
        `token_id:7`, so that each token keeps its own value.
        """
        most: Sequence[tuple[int, float]] = entry.top[: self._generation.logprobs or 0]
        if all(token_id != entry.token_id for token_id, _ in most):
            most = [*most, (entry.token_id, entry.logprob)]
        top: dict[str, float] = {}
        for token_id, logprob in most:
            is_drawn = token_id == entry.token_id
            name = drawn_name if is_drawn else self._name(token_id)
            if name in top or (name == drawn_name and not is_drawn):
                name = f"token_id:{token_id}"
            top[name] = max(logprob, LOWEST_LOGPROB)
        return top

    def _name(self, token_id: int) -> str:
        """The token's text, or `bytes:\\xf0\\x9f` if its bytes are not valid text by themselves."""
        data = self._tokenizer.token_bytes(token_id)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return f"bytes:{repr(data)[2:-1]}"
