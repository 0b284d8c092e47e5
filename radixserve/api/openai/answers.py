"""The answers of chat and text completions, as structs that msgspec encodes straight to
bytes.

Owns the field names and decides which may be absent. Knows neither aiohttp nor the engine.
"""

from __future__ import annotations

import msgspec
from msgspec import UNSET, UnsetType

from radixserve.front.generation import Counts


class CachedTokensDetails(msgspec.Struct):
    """Where cached tokens were when the request arrived; they add up to `cached_tokens`."""

    device: int
    host: int
    disk: int


class PromptTokensDetails(msgspec.Struct):
    cached_tokens: int
    cached_tokens_details: CachedTokensDetails


class Usage(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


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


class ChatDelta(msgspec.Struct, omit_defaults=True):
    role: str | UnsetType = UNSET
    content: str | UnsetType = UNSET


class ChatChunkChoice(msgspec.Struct):
    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None


class ChatChunk(msgspec.Struct):
    id: str
    created: int
    model: str
    choices: list[ChatChunkChoice]
    object: str = "chat.completion.chunk"
    usage: Usage | UnsetType | None = UNSET


class ChatMessage(msgspec.Struct):
    content: str
    role: str = "assistant"
    refusal: None = None


class ChatChoice(msgspec.Struct):
    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: str


class ChatCompletion(msgspec.Struct):
    id: str
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    object: str = "chat.completion"


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


class TextCompletion(msgspec.Struct):
    """Whole answers and stream chunks have the same shape."""

    id: str
    created: int
    model: str
    choices: list[TextChoice]
    object: str = "text_completion"
    usage: Usage | UnsetType | None = UNSET


def usage_of(counts: Counts) -> Usage:
    """`counts` in the shape of the dialect."""
    device = counts.cached - counts.host - counts.disk
    details = CachedTokensDetails(device, counts.host, counts.disk)
    total = counts.prompt + counts.generated
    return Usage(
        counts.prompt, counts.generated, total, PromptTokensDetails(counts.cached, details)
    )
