"""Chat completions: turns the parts of an answer into `chat.completion` bodies and chunks. Knows no
engine and no HTTP.
"""

from __future__ import annotations

import time

import msgspec
from msgspec import UNSET

from radixserve.api.context import Api
from radixserve.api.openai.answers import (
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatDelta,
    ChatLogprobs,
    ChatMessage,
    usage_of,
)
from radixserve.api.openai.events import DONE, failed
from radixserve.api.openai.logprobs import chat_logprobs
from radixserve.api.openai.wire import ChatBody
from radixserve.api.sse import event
from radixserve.errors import ApiError
from radixserve.front.generation import Generation
from radixserve.front.stream import Delta, Stream
from radixserve.step import TokenLogprob


class ChatRenderer:
    """Builds the bodies of one answer. All chunks reuse one struct."""

    def __init__(self, api: Api, generation: Generation, body: ChatBody) -> None:
        self._generation = generation
        self._tokenizer = api.tokenizer
        self._id = f"chatcmpl-{generation.id}"
        self._created = int(time.time())
        self._model = api.model_name
        self._choice = ChatChunkChoice(0, ChatDelta())
        usage = None if generation.include_usage else UNSET
        self._chunk = ChatChunk(self._id, self._created, self._model, [self._choice], usage=usage)
        self._opened: set[int] = set()

    def opening(self) -> bytes:
        """See `Renderer`. Each choice has an opening of its own, before its first delta."""
        return b""

    def delta(self, stream: Stream, delta: Delta) -> bytes:
        """See `Renderer`."""
        chunk, choice = self._chunk, self._choice
        if self._generation.continuous_usage:
            chunk.usage = usage_of(self._generation.counts())
        opening = b"" if stream.index in self._opened else self._open(stream)
        choice.index = stream.index
        choice.delta = ChatDelta(content=delta.text or UNSET)
        choice.finish_reason = stream.finish_reason
        choice.logprobs = (
            self._logprobs(delta.logprobs) if self._wants_logprobs and delta.logprobs else None
        )
        return opening + event(chunk)

    def closing(self) -> bytes:
        """See `Renderer`."""
        if not self._generation.include_usage:
            return DONE
        usage = usage_of(self._generation.counts())
        return event(ChatChunk(self._id, self._created, self._model, [], usage=usage)) + DONE

    def failure(self, error: ApiError) -> bytes:
        """See `Renderer`."""
        return failed(error)

    def whole(self, answers: list[Delta]) -> bytes:
        """See `Renderer`."""
        choices = [
            self._whole(stream, answer)
            for stream, answer in zip(self._generation.streams, answers, strict=True)
        ]
        usage = usage_of(self._generation.counts())
        return msgspec.json.encode(
            ChatCompletion(self._id, self._created, self._model, choices, usage)
        )

    def _open(self, stream: Stream) -> bytes:
        """The first chunk of a choice, which gives the role."""
        self._opened.add(stream.index)
        opening = ChatChunkChoice(stream.index, ChatDelta(role="assistant", content=""))
        chunk = self._chunk
        return event(ChatChunk(self._id, self._created, self._model, [opening], usage=chunk.usage))

    @property
    def _wants_logprobs(self) -> bool:
        return self._generation.logprobs is not None

    def _whole(self, stream: Stream, answer: Delta) -> ChatChoice:
        logprobs = self._logprobs(answer.logprobs) if self._wants_logprobs else None
        message = ChatMessage(answer.text)
        return ChatChoice(stream.index, message, logprobs, stream.finish_reason or "stop")

    def _logprobs(self, entries: list[TokenLogprob]) -> ChatLogprobs:
        most = self._generation.logprobs or 0
        return ChatLogprobs(chat_logprobs(self._tokenizer, entries, most))
