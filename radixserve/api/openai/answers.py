"""The answers of chat and text completions, as structs that msgspec encodes straight to
bytes.

Owns the field names and decides which may be absent. Knows neither aiohttp nor the engine.
"""

from __future__ import annotations

import msgspec
from msgspec import UNSET, UnsetType

from radixserve.api.openai.wire import GenerationBody, SharedBody
from radixserve.front.generation import Counts
from radixserve.step import PinStatus


class PromptTokensDetails(msgspec.Struct):
    cached_tokens: int
    # where they were when the request arrived: tier -> tokens
    cached_tokens_details: dict[str, int]
    cache_write_tokens: int  # computed for this request, and kept as long as there is room
    # whether it is kept for the time that the request asks for, and how many tokens are
    prompt_cache: PinStatus | UnsetType = UNSET
    pinned_tokens: int | UnsetType = UNSET


class CompletionTokensDetails(msgspec.Struct):
    reasoning_tokens: int


class Usage(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails


class TopLogprob(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int]


class ChatTokenLogprob(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct):
    content: list[ChatTokenLogprob]
    refusal: None = None


class FunctionDelta(msgspec.Struct, omit_defaults=True):
    name: str | UnsetType = UNSET
    arguments: str | UnsetType = UNSET


class ToolCallDelta(msgspec.Struct, omit_defaults=True):
    index: int | UnsetType = UNSET
    id: str | UnsetType = UNSET
    type: str | UnsetType = UNSET
    function: FunctionDelta | UnsetType = UNSET


class ChatDelta(msgspec.Struct, omit_defaults=True):
    """An addition to a message. Both names of the reasoning are in use by clients."""

    role: str | UnsetType = UNSET
    content: str | UnsetType | None = UNSET
    reasoning_content: str | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET
    tool_calls: list[ToolCallDelta] | UnsetType = UNSET
    function_call: FunctionDelta | UnsetType = UNSET


class ChatChunkChoice(msgspec.Struct):
    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: str | int | UnsetType | None = UNSET
    token_ids: list[int] | UnsetType = UNSET


class ChatChunk(msgspec.Struct):
    id: str
    created: int
    model: str
    choices: list[ChatChunkChoice]
    object: str = "chat.completion.chunk"
    usage: Usage | UnsetType | None = UNSET


class CalledFunction(msgspec.Struct):
    name: str
    arguments: str


class ToolCall(msgspec.Struct):
    id: str
    function: CalledFunction
    type: str = "function"


class ChatMessage(msgspec.Struct):
    content: str | None
    role: str = "assistant"
    refusal: None = None
    reasoning_content: str | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET
    tool_calls: list[ToolCall] | UnsetType = UNSET
    function_call: CalledFunction | UnsetType = UNSET


class PromptLogprob(msgspec.Struct):
    """A token of the prompt, or an alternative to it."""

    logprob: float
    decoded_token: str
    rank: int | None = None


PromptLogprobs = list[dict[str, PromptLogprob] | None]
"""An entry per token of the prompt, by token id. The first token has no probability."""


class ChatChoice(msgspec.Struct):
    """`stop_reason` is the stop string or the token that ended the answer, null for the end of
    text and for a limit.
    """

    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: str
    stop_reason: str | int | None = None
    token_ids: list[int] | UnsetType = UNSET


class ChatCompletion(msgspec.Struct):
    id: str
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    object: str = "chat.completion"
    prompt_token_ids: list[int] | UnsetType = UNSET
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET


class TextLogprobs(msgspec.Struct):
    """Parallel lists with one entry per token. The first prompt token has no probability, so its
    entry is null.
    """

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class TextChoice(msgspec.Struct):
    index: int
    text: str
    logprobs: TextLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: str | int | UnsetType | None = UNSET
    token_ids: list[int] | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET


class TextCompletion(msgspec.Struct):
    """Whole answers and stream chunks have the same shape."""

    id: str
    created: int
    model: str
    choices: list[TextChoice]
    object: str = "text_completion"
    usage: Usage | UnsetType | None = UNSET


def pinned_of(counts: Counts, body: SharedBody) -> tuple[PinStatus | UnsetType, int | UnsetType]:
    """What usage says of pins: what became of those with a time, `clipped` for marks that name
    none, nothing without marks.
    """
    if not counts.pins:
        return "clipped" if body.wants_pin else UNSET, UNSET
    return counts.pin_status, counts.pinned


def usage_of(counts: Counts, body: GenerationBody) -> Usage:
    """`counts` in the shape of the dialect."""
    written = counts.prompt - counts.cached if body.stores_cache else 0
    return Usage(
        counts.prompt,
        counts.generated,
        counts.prompt + counts.generated,
        PromptTokensDetails(counts.cached, counts.cached_in(), written, *pinned_of(counts, body)),
        CompletionTokensDetails(counts.reasoning),
    )
