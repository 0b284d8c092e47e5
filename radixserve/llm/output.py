"""What a Python user gets: the answers to one prompt."""

from __future__ import annotations

from dataclasses import dataclass, field

from radixserve.front.generation import Generation
from radixserve.front.stream import Delta, Stream
from radixserve.parsing.parts import CallArguments, CallBegun
from radixserve.step import TokenLogprob


@dataclass(slots=True)
class ToolCall:
    """A call of a tool; `arguments` is the text of a JSON object."""

    id: str
    name: str
    arguments: str = ""


@dataclass(slots=True)
class Completion:
    """One answer.

    Attributes:
        finish_reason: "stop", "length" or "tool_calls".
        stop_reason: the stop string or the id of the token that ended it; None for a limit.
        logprobs: an entry per token, if they were asked for.
    """

    index: int
    text: str
    reasoning: str
    tool_calls: list[ToolCall]
    token_ids: list[int]
    finish_reason: str
    stop_reason: str | int | None
    logprobs: list[TokenLogprob] | None = None


@dataclass(slots=True)
class Output:
    """The answers to one prompt; `text` and `tool_calls` are those of the first.

    Attributes:
        prompt_token_ids: the prompt as the model got it.
        num_cached_tokens: tokens of the prompt that were not computed.
        prompt_logprobs: an entry for every token of the prompt but the first, if asked for.
    """

    prompt_token_ids: list[int]
    num_cached_tokens: int
    completions: list[Completion] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprob] | None = None

    @property
    def text(self) -> str:
        return self.completions[0].text

    @property
    def tool_calls(self) -> list[ToolCall]:
        return self.completions[0].tool_calls


def output_of(generation: Generation, answers: list[Delta]) -> Output:
    """The output of a complete generation; `answers` has one `Delta` per stream."""
    first = generation.streams[0]
    wants = generation.logprobs is not None
    return Output(
        first.request.prompt_ids,
        first.num_cached,
        [
            _completion(stream, answer, wants)
            for stream, answer in zip(generation.streams, answers, strict=True)
        ],
        answers[0].prompt_logprobs,
    )


def _completion(stream: Stream, answer: Delta, wants_logprobs: bool) -> Completion:
    calls: dict[int, ToolCall] = {}
    for part in answer.parts:
        if isinstance(part, CallBegun):
            calls[part.index] = ToolCall(part.id, part.name)
        elif isinstance(part, CallArguments):
            calls[part.index].arguments += part.text
    return Completion(
        stream.index,
        answer.text,
        answer.reasoning,
        list(calls.values()),
        answer.token_ids,
        stream.finish_reason or "stop",
        stream.matched_stop,
        answer.logprobs if wants_logprobs else None,
    )
