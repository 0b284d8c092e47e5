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
    usage_of,
)
from radixserve.api.openai.events import DONE, failed, stop_reason
from radixserve.api.openai.logprobs import TokenSpeller
from radixserve.api.openai.message import MessageWriter
from radixserve.api.openai.wire import ChatBody
from radixserve.api.sse import event
from radixserve.errors import ApiError
from radixserve.front.generation import Generation
from radixserve.front.stream import Delta, Stream


class ChatRenderer:
    """Builds the bodies of one answer. All chunks reuse one struct."""

    def __init__(self, api: Api, generation: Generation, body: ChatBody) -> None:
        self._generation = generation
        self._body = body
        self._writer = MessageWriter(
            old_form=bool(body.functions), with_reasoning=body.include_reasoning is not False
        )
        self._speller = TokenSpeller(api.tokenizer, as_ids=bool(body.return_tokens_as_token_ids))
        self._id = f"chatcmpl-{generation.id}"
        self._created = int(time.time())
        self._model = generation.adapter or api.model_name
        self._choice = ChatChunkChoice(0, ChatDelta())
        usage = None if generation.include_usage else UNSET
        self._chunk = ChatChunk(self._id, self._created, self._model, [self._choice], usage=usage)
        self._opened: set[int] = set()

    def opening(self) -> bytes:
        """See `Renderer`. Each choice has an opening of its own, before its first delta."""
        return b""

    def delta(self, stream: Stream, delta: Delta) -> bytes:
        """See `Renderer`. Logprobs and token ids are in the first chunk, the finish reason is in
        the last.
        """
        chunk, choice = self._chunk, self._choice
        if self._generation.continuous_usage:
            chunk.usage = usage_of(self._generation.counts(), self._body)
        events = [] if stream.index in self._opened else [self._open(stream)]
        *before, last = [*self._writer.deltas(delta.parts)] or [ChatDelta()]
        choice.index = stream.index
        choice.finish_reason, choice.stop_reason = None, UNSET
        self._add_tokens(delta)
        for each in before:
            choice.delta = each
            events.append(event(chunk))
            choice.logprobs, choice.token_ids = None, UNSET
        choice.delta = last
        if stream.finish_reason is not None:
            choice.finish_reason = self._writer.finish_reason(stream.finish_reason)
            choice.stop_reason = stop_reason(stream, self._body)
        events.append(event(chunk))
        return b"".join(events)

    def _add_tokens(self, delta: Delta) -> None:
        most = self._generation.logprobs
        self._choice.logprobs = None
        if most is not None and delta.logprobs:
            self._choice.logprobs = self._speller.chat_logprobs(delta.logprobs, most)
        self._choice.token_ids = delta.token_ids if self._body.return_token_ids else UNSET

    def closing(self) -> bytes:
        """See `Renderer`."""
        if not self._generation.include_usage:
            return DONE
        usage = usage_of(self._generation.counts(), self._body)
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
        usage = usage_of(self._generation.counts(), self._body)
        completion = ChatCompletion(self._id, self._created, self._model, choices, usage)
        prompt_ids = self._generation.streams[0].request.prompt_ids
        if self._body.return_token_ids:
            completion.prompt_token_ids = prompt_ids
        if self._body.prompt_logprobs is not None:
            entries = answers[0].prompt_logprobs or []
            completion.prompt_logprobs = self._speller.prompt_logprobs(prompt_ids, entries)
        return msgspec.json.encode(completion)

    def _open(self, stream: Stream) -> bytes:
        """The first chunk of a choice, which gives the role."""
        self._opened.add(stream.index)
        opening = ChatChunkChoice(stream.index, ChatDelta(role="assistant", content=""))
        chunk = self._chunk
        return event(ChatChunk(self._id, self._created, self._model, [opening], usage=chunk.usage))

    def _whole(self, stream: Stream, answer: Delta) -> ChatChoice:
        most = self._generation.logprobs
        return ChatChoice(
            stream.index,
            self._writer.message(answer.parts),
            None if most is None else self._speller.chat_logprobs(answer.logprobs, most),
            self._writer.finish_reason(stream.finish_reason) or "stop",
            stop_reason(stream, self._body),
            answer.token_ids if self._body.return_token_ids else UNSET,
        )
