"""The content blocks of a Messages body exactly as a client may write them.

Owns names, types and nullability. Blocks that this server cannot read are declared where clients
send them, so that they are refused by name.
"""

from __future__ import annotations

from typing import Any, Final, Literal

import msgspec

TTLS: Final = {"5m": 300.0, "1h": 3600.0}
"""The seconds of each `ttl`."""


class CacheControl(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A breakpoint of the prompt cache. Everything is cached without it; it decides how `usage`
    counts the tokens that are stored, and with a `ttl` the prompt up to it is pinned.
    """

    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] | None = None
    scope: str | None = None


class Block(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, tag_field="type"):
    """A content block; `type` tells its kind."""

    cache_control: CacheControl | None = None


class TextBlock(Block, tag="text"):
    text: str
    citations: Any = None


class ThinkingBlock(Block, tag="thinking"):
    """The reasoning of an earlier answer, sent back. The signature is not verified."""

    thinking: str
    signature: str | None = None


class RedactedThinkingBlock(Block, tag="redacted_thinking"):
    """Reasoning that only its author can read; it adds nothing to a prompt."""

    data: str


class ToolUseBlock(Block, tag="tool_use"):
    """A call that an earlier answer made."""

    id: str
    name: str
    input: dict[str, Any]
    caller: Any = None
    toolset_name: Any = None


class ImageBlock(Block, tag="image"):
    source: Any = None


class DocumentBlock(Block, tag="document"):
    source: Any = None
    title: Any = None
    context: Any = None
    citations: Any = None


class SearchResultBlock(Block, tag="search_result"):
    source: Any = None
    title: Any = None
    content: Any = None
    citations: Any = None


class ToolReferenceBlock(Block, tag="tool_reference"):
    tool_name: Any = None


UnreadBlock = ImageBlock | DocumentBlock | SearchResultBlock | ToolReferenceBlock


class ToolResultBlock(Block, tag="tool_result"):
    """What a tool answered to the call `tool_use_id`."""

    tool_use_id: str
    content: (
        str
        | list[TextBlock | ImageBlock | DocumentBlock | SearchResultBlock | ToolReferenceBlock]
        | None
    ) = None
    is_error: bool | None = None
    toolset_name: Any = None


ContentBlock = (
    TextBlock
    | ThinkingBlock
    | RedactedThinkingBlock
    | ToolUseBlock
    | ToolResultBlock
    | ImageBlock
    | DocumentBlock
    | SearchResultBlock
)
