"""The bodies of /v1/messages and /v1/messages/count_tokens exactly as a client may write them.

Owns names, types and nullability; `conversation` turns a body into one of the OpenAI dialect, whose
validator checks ranges and rules across fields.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from radixserve.api.anthropic.blocks import CacheControl, ContentBlock, TextBlock


class KnownElsewhere(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Fields of Anthropic's API that radixserve does not implement.

    They are declared so that null and a value that changes nothing (`AS_IF_ABSENT`) are accepted,
    and any other value is refused by name instead of being ignored.
    """

    billing_policy: Any = None
    compaction: Any = None
    container: Any = None
    context_management: Any = None
    fallback_credit_token: Any = None
    fallbacks: Any = None
    inference_geo: Any = None
    mcp_servers: Any = None
    speed: Any = None
    thread: Any = None


AS_IF_ABSENT: dict[str, tuple[Any, ...]] = {
    "context_management": (
        {},
        {"edits": []},
        {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        {"edits": [{"type": "clear_thinking_20251015", "keep": {"type": "all"}}]},
    ),
    "mcp_servers": ([],),
    "speed": ("standard",),
}
"""For fields of `KnownElsewhere`: the values that describe what radixserve does anyway."""


class Message(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    role: Literal["user", "assistant", "system"]
    content: str | list[ContentBlock]


class CustomTool(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A tool that the client runs. The last five members have no effect here."""

    name: str
    input_schema: dict[str, Any]
    description: str | None = None
    strict: bool | None = None
    type: Literal["custom"] | None = None
    cache_control: CacheControl | None = None
    allowed_callers: list[str] | None = None
    defer_loading: bool | None = None
    eager_input_streaming: bool | None = None
    input_examples: list[dict[str, Any]] | None = None


class ToolChoice(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """How the model may use the tools; `name` belongs to the type "tool"."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Whether the model reasons before it answers."""

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: int | None = None
    display: Literal["summarized", "omitted"] | None = None


class JsonFormat(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The answer is JSON that obeys `schema`."""

    type: Literal["json_schema"]
    schema: dict[str, Any]


class OutputConfig(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: JsonFormat | None = None
    task_budget: Any = None


class Metadata(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    user_id: str | None = None


class Diagnostics(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    previous_message_id: str | None = None


class CountTokensBody(KnownElsewhere, kw_only=True, forbid_unknown_fields=True):
    """A conversation. Tools are decoded in `conversation`, because those that Anthropic runs have
    other members.
    """

    messages: list[Message]
    model: str | None = None  # the model served
    system: str | list[TextBlock] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    output_format: JsonFormat | None = None
    cache_control: CacheControl | None = None


class MessagesBody(CountTokensBody, kw_only=True, forbid_unknown_fields=True):
    """A conversation to be continued."""

    max_tokens: int
    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stop_sequences: list[str] | None = None
    # These fields have no effect here: nothing is stored, there is one tier of service, and
    # requests are not compared with earlier ones.
    metadata: Metadata | None = None
    service_tier: Literal["auto", "standard_only"] | None = None
    diagnostics: Diagnostics | None = None
