"""Chat completions: turns generated text into `chat.completion` bodies and chunks. Knows no engine
and no HTTP.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from msgspec import UNSET

from radixserve.api.answers import (
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatDelta,
    ChatLogprobs,
    ChatMessage,
    ChatTokenLogprob,
    TopLogprob,
    Usage,
)
from radixserve.api.generation import Choice, Delta
from radixserve.api.validate import Generation
from radixserve.step import TokenLogprob

if TYPE_CHECKING:
    from radixserve.text.client import TokenizerClient

LOWEST_LOGPROB = -9999.0  # JSON has no -Infinity


class ChatRenderer:
    """Builds the bodies of one answer. Each stream reuses one chunk struct, which must be encoded
    before the next one is made.
    """

    def __init__(self, generation: Generation, model: str, tokenizer: TokenizerClient) -> None:
        self._generation = generation
        self._tokenizer = tokenizer
        self._id = f"chatcmpl-{generation.id}"
        self._created = int(time.time())
        self._model = model
        self._choice = ChatChunkChoice(0, ChatDelta())
        usage = None if generation.include_usage else UNSET
        self._chunk = ChatChunk(self._id, self._created, model, [self._choice], usage=usage)

    def opening(self, choice: Choice, usage: Usage | None) -> ChatChunk:
        """The first chunk of a choice, which gives the role."""
        opening = ChatChunkChoice(choice.index, ChatDelta(role="assistant", content=""))
        shown = usage or self._chunk.usage
        return ChatChunk(self._id, self._created, self._model, [opening], usage=shown)

    def chunk(self, choice: Choice, delta: Delta, usage: Usage | None) -> ChatChunk:
        """The chunk for `delta`; valid until the next call."""
        self._chunk.usage = usage or self._chunk.usage
        self._choice.index = choice.index
        self._choice.delta.content = delta.text or UNSET
        self._choice.finish_reason = choice.finish_reason
        self._choice.logprobs = (
            self._logprobs(delta.logprobs) if self._wants_logprobs and delta.logprobs else None
        )
        return self._chunk

    def usage_chunk(self, usage: Usage) -> ChatChunk:
        return ChatChunk(self._id, self._created, self._model, [], usage=usage)

    def whole(self, choices: list[Choice], usage: Usage) -> ChatCompletion:
        """The body of an answer that is not streamed; every choice has finished."""
        return ChatCompletion(
            self._id, self._created, self._model, [self._whole(choice) for choice in choices], usage
        )

    @property
    def _wants_logprobs(self) -> bool:
        return self._generation.logprobs is not None

    def _whole(self, choice: Choice) -> ChatChoice:
        logprobs = self._logprobs(choice.whole.logprobs) if self._wants_logprobs else None
        return ChatChoice(
            choice.index, ChatMessage(choice.whole.text), logprobs, choice.finish_reason or "stop"
        )

    def _logprobs(self, entries: list[TokenLogprob]) -> ChatLogprobs:
        return ChatLogprobs([self._token_logprob(entry) for entry in entries])

    def _token_logprob(self, entry: TokenLogprob) -> ChatTokenLogprob:
        most = self._generation.logprobs or 0
        top = [
            TopLogprob(*self._token(token_id, logprob)) for token_id, logprob in entry.top[:most]
        ]
        return ChatTokenLogprob(*self._token(entry.token_id, entry.logprob), top)

    def _token(self, token_id: int, logprob: float) -> tuple[str, float, list[int]]:
        tokenizer = self._tokenizer
        as_bytes = list(tokenizer.token_bytes(token_id))
        return tokenizer.token_text(token_id), max(logprob, LOWEST_LOGPROB), as_bytes
