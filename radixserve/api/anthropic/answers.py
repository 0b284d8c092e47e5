"""The answers and stream events of /v1/messages, as structs that msgspec encodes straight to bytes.

Owns the field names and decides which may be absent. Knows neither aiohttp nor the engine.
"""

from __future__ import annotations

import msgspec
from msgspec import UNSET, UnsetType

from radixserve.step import PinStatus


class TextContent(msgspec.Struct, tag_field="type", tag="text"):
    text: str


class ThinkingContent(msgspec.Struct, tag_field="type", tag="thinking"):
    thinking: str
    signature: str


class ToolUseContent(msgspec.Struct, tag_field="type", tag="tool_use"):
    id: str
    name: str
    input: msgspec.Raw


Content = TextContent | ThinkingContent | ToolUseContent


class CacheCreation(msgspec.Struct):
    """The tokens of `cache_creation_input_tokens` by the time for which the client asked."""

    ephemeral_5m_input_tokens: int
    ephemeral_1h_input_tokens: int


class OutputTokensDetails(msgspec.Struct):
    """Those of the output tokens that were reasoning."""

    thinking_tokens: int


class DeltaUsage(msgspec.Struct):
    """The three counts of input tokens exclude each other; together they are the prompt."""

    input_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    # with a `ttl`: whether its tokens are kept for that time, and how many are
    prompt_cache: PinStatus | UnsetType = UNSET
    pinned_tokens: int | UnsetType = UNSET


class Usage(DeltaUsage, kw_only=True):
    cache_creation: CacheCreation
    service_tier: str = "standard"


class CacheMissReason(msgspec.Struct, tag_field="type", tag="unavailable"):
    """Requests are not compared with earlier ones."""


class Diagnostics(msgspec.Struct):
    cache_miss_reason: CacheMissReason


class Message(msgspec.Struct, tag_field="type", tag="message"):
    id: str
    model: str
    content: list[Content]
    usage: Usage
    stop_reason: str | None = None
    stop_sequence: str | None = None
    role: str = "assistant"
    diagnostics: Diagnostics | UnsetType = UNSET


class TokenCount(msgspec.Struct):
    input_tokens: int


class TextDelta(msgspec.Struct, tag_field="type", tag="text_delta"):
    text: str


class ThinkingDelta(msgspec.Struct, tag_field="type", tag="thinking_delta"):
    thinking: str


class SignatureDelta(msgspec.Struct, tag_field="type", tag="signature_delta"):
    signature: str


class InputJsonDelta(msgspec.Struct, tag_field="type", tag="input_json_delta"):
    partial_json: str


BlockDelta = TextDelta | ThinkingDelta | SignatureDelta | InputJsonDelta


class MessageStart(msgspec.Struct, tag_field="type", tag="message_start"):
    message: Message


class Ping(msgspec.Struct, tag_field="type", tag="ping"):
    """Tells a client that the connection is alive."""


class ContentBlockStart(msgspec.Struct, tag_field="type", tag="content_block_start"):
    index: int
    content_block: Content


class ContentBlockDelta(msgspec.Struct, tag_field="type", tag="content_block_delta"):
    index: int
    delta: BlockDelta


class ContentBlockStop(msgspec.Struct, tag_field="type", tag="content_block_stop"):
    index: int


class Stop(msgspec.Struct):
    stop_reason: str
    stop_sequence: str | None


class MessageDelta(msgspec.Struct, tag_field="type", tag="message_delta"):
    delta: Stop
    usage: DeltaUsage


class MessageStop(msgspec.Struct, tag_field="type", tag="message_stop"):
    pass
