"""Text completions: turns generated text into `text_completion` bodies and chunks. Knows no engine
and no HTTP.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import msgspec
from msgspec import UNSET

from radixserve.api.context import Api
from radixserve.api.openai.answers import TextChoice, TextCompletion, TextLogprobs, usage_of
from radixserve.api.openai.events import DONE, failed, stop_reason
from radixserve.api.openai.logprobs import LOWEST_LOGPROB, TokenSpeller
from radixserve.api.openai.wire import CompletionBody
from radixserve.api.sse import event
from radixserve.errors import ApiError
from radixserve.front.generation import Generation
from radixserve.front.stream import Delta, Stream
from radixserve.step import TokenLogprob


class CompletionRenderer:
    """Builds the bodies of one answer. All chunks reuse one struct."""

    def __init__(self, api: Api, generation: Generation, body: CompletionBody) -> None:
        self._generation = generation
        self._body = body
        self._tokenizer = api.tokenizer
        self._speller = TokenSpeller(api.tokenizer, as_ids=bool(body.return_tokens_as_token_ids))
        self._id = f"cmpl-{generation.id}"
        self._created = int(time.time())
        self._model = generation.adapter or api.model_name
        self._choice = TextChoice(0, "")
        usage = None if generation.include_usage else UNSET
        self._chunk = TextCompletion(
            self._id, self._created, self._model, [self._choice], usage=usage
        )

    def opening(self) -> bytes:
        """See `Renderer`. A text completion has no opening chunk."""
        return b""

    def delta(self, stream: Stream, delta: Delta) -> bytes:
        """See `Renderer`."""
        if self._generation.continuous_usage:
            self._chunk.usage = usage_of(self._generation.counts(), self._body)
        self._choice.index = stream.index
        self._choice.text = delta.text
        self._choice.finish_reason = stream.finish_reason
        self._choice.stop_reason = UNSET
        if stream.finish_reason is not None:
            self._choice.stop_reason = stop_reason(stream, self._body)
        self._choice.logprobs = self._logprobs(stream, delta)
        self._choice.token_ids = delta.token_ids if self._body.return_token_ids else UNSET
        return event(self._chunk)

    def closing(self) -> bytes:
        """See `Renderer`."""
        if not self._generation.include_usage:
            return DONE
        usage = usage_of(self._generation.counts(), self._body)
        return event(TextCompletion(self._id, self._created, self._model, [], usage=usage)) + DONE

    def failure(self, error: ApiError) -> bytes:
        """See `Renderer`."""
        return failed(error)

    def whole(self, answers: list[Delta]) -> bytes:
        """See `Renderer`."""
        drawn = [*zip(self._generation.streams, answers, strict=True)]
        size = self._generation.num_choices
        prompts = [drawn[i : i + size] for i in range(0, len(drawn), size)]
        best = [pair for prompt in prompts for pair in _best(prompt, self._body.num_choices)]
        choices = [self._whole(*pair) for pair in best]
        for index, choice in enumerate(choices):
            choice.index = index
        usage = usage_of(self._generation.counts(), self._body)
        return msgspec.json.encode(
            TextCompletion(self._id, self._created, self._model, choices, usage=usage)
        )

    def _whole(self, stream: Stream, answer: Delta) -> TextChoice:
        choice = TextChoice(
            stream.index,
            answer.text,
            self._logprobs(stream, answer),
            stream.finish_reason,
            stop_reason(stream, self._body),
        )
        prompt_ids = stream.request.prompt_ids
        if self._body.return_token_ids:
            choice.token_ids, choice.prompt_token_ids = answer.token_ids, prompt_ids
        if self._body.prompt_logprobs is not None:
            entries = answer.prompt_logprobs or []
            choice.prompt_logprobs = self._speller.prompt_logprobs(prompt_ids, entries)
        return choice

    def _logprobs(self, stream: Stream, delta: Delta) -> TextLogprobs | None:
        """Parallel lists over the tokens of `delta`, the prompt's tokens first if they are
        echoed.
        """
        if self._generation.logprobs is None:
            return None
        lists = TextLogprobs([], [], [], [])
        if delta.prompt_logprobs is not None and self._body.wants_echo:
            self._append_prompt(lists, stream, delta.prompt_logprobs)
        for entry, offset in zip(delta.logprobs, delta.offsets, strict=True):
            self._append(lists, entry.token_id, entry, len(stream.echo) + offset)
        return lists

    def _append_prompt(
        self, lists: TextLogprobs, stream: Stream, entries: list[TokenLogprob]
    ) -> None:
        """Append the prompt's tokens; the first has no probability."""
        ids = stream.request.prompt_ids
        offsets = self._tokenizer.offsets(ids, stream.echo)
        for token_id, entry, offset in zip(ids, [None, *entries], offsets, strict=True):
            self._append(lists, token_id, entry, offset)

    def _append(
        self, lists: TextLogprobs, token_id: int, entry: TokenLogprob | None, offset: int
    ) -> None:
        name = self._speller.name(token_id)
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
            name = drawn_name if is_drawn else self._speller.name(token_id)
            if name in top or (name == drawn_name and not is_drawn):
                name = f"token_id:{token_id}"
            top[name] = max(logprob, LOWEST_LOGPROB)
        return top


def _best(drawn: list[tuple[Stream, Delta]], most: int) -> list[tuple[Stream, Delta]]:
    """The `most` answers whose tokens are likeliest on average, the best first; all in their order
    if there are no more.
    """
    if len(drawn) <= most:
        return drawn
    return sorted(drawn, key=lambda pair: _mean_logprob(pair[1]), reverse=True)[:most]


def _mean_logprob(answer: Delta) -> float:
    entries = answer.logprobs
    return sum(entry.logprob for entry in entries) / max(1, len(entries))
