"""The body of `POST /v1/responses` exactly as a client may write it.

Owns names, types and nullability. Items, tools and `tool_choice` come in many shapes, which are
told apart by their `type`, so they are decoded in a second step: `items` and `tools` do it.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from radixserve.api.openai.wire import SharedBody


class TextConfig(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """`format` is a `PlainFormat`, or a schema with its members beside the type."""

    format: dict[str, Any] | None = None
    verbosity: str | None = None


class PlainFormat(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A `format` without a schema."""

    type: Literal["text", "json_object"]


class ReasoningConfig(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """How much the model shall reason. A summary is its whole reasoning."""

    effort: str | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None
    context: str | None = None
    mode: str | None = None


class ResponsesStreamOptions(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    include_obfuscation: bool | None = None


class ResponsesBody(SharedBody, kw_only=True, forbid_unknown_fields=True):
    """Items to be answered."""

    input: str | list[dict[str, Any]]
    instructions: str | None = None
    max_output_tokens: int | None = None
    top_logprobs: int | None = None
    include: list[str] | None = None
    text: TextConfig | None = None
    reasoning: ReasoningConfig | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    max_tool_calls: int | None = None  # of tools that the server runs, of which there are none
    truncation: Literal["auto", "disabled"] | None = None
    stream_options: ResponsesStreamOptions | None = None
    # These fields have no effect, as in chat completions; answers repeat some of them.
    client_metadata: dict[str, str] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    # Fields that are refused by name, because nothing is stored and no tool runs in the server.
    access_programs: Any = None
    background: Any = None
    background_options: Any = None
    context_management: Any = None
    conversation: Any = None
    image: Any = None
    moderation: Any = None
    previous_response_id: Any = None
    prompt: Any = None

    @property
    def seals_reasoning(self) -> bool:
        """Whether reasoning is also given in the form that is sent back unread: the client asks
        for it, or says that it does not count on a store.
        """
        return self.store is False or "reasoning.encrypted_content" in (self.include or ())

    @property
    def summarises(self) -> bool:
        """Whether reasoning is given as a summary."""
        given = self.reasoning
        return given is not None and bool(given.summary or given.generate_summary)

    @property
    def has_breakpoints(self) -> bool:
        """See `SharedBody.has_breakpoints`."""
        items = self.input if isinstance(self.input, list) else ()
        contents = [each for item in items for each in (item.get("content"), item.get("output"))]
        parts = [part for each in contents if isinstance(each, list) for part in each]
        return any(part.get("prompt_cache_breakpoint") for part in parts)


SAME_IN_CHAT = (*SharedBody.__struct_fields__, "top_logprobs", "chat_template_kwargs")
"""The fields that a chat body has by the same name and with the same meaning."""

REFUSED = (
    *("access_programs", "background", "background_options", "context_management"),
    *("conversation", "image", "moderation", "previous_response_id", "prompt"),
)
"""Fields that the server knows and refuses."""

HARMLESS: dict[str, Any] = {"background": False, "context_management": []}
"""For fields of `REFUSED`: the value that describes what the server does anyway."""

INCLUDABLE = (
    *("message.output_text.logprobs", "reasoning.encrypted_content"),
    *("file_search_call.results", "web_search_call.results", "web_search_call.action.sources"),
    *("message.input_image.image_url", "computer_call_output.output.image_url"),
    *("code_interpreter_call.outputs",),
)
"""The values of `include`. Only the first two can occur in an answer of this server."""


class ItemPart(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """One part of an item's content. Only text is supported; the members of other parts are
    declared so that these parts are refused by their type.
    """

    type: str
    text: str | None = None
    refusal: str | None = None
    annotations: Any = None  # sent back by clients with an earlier answer
    logprobs: Any = None  # the same
    prompt_cache_breakpoint: Any = None
    detail: Any = None
    file_data: Any = None
    file_id: Any = None
    file_url: Any = None
    filename: Any = None
    image_url: Any = None
    input_audio: Any = None


class MessageItem(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    role: str
    content: str | list[ItemPart]
    type: str | None = None
    id: str | None = None
    status: str | None = None
    phase: str | None = None


class FunctionCallItem(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    type: str
    call_id: str
    name: str
    arguments: str
    id: str | None = None
    status: str | None = None
    namespace: Any = None
    caller: Any = None
    is_async: bool | None = msgspec.field(default=None, name="async")


class CustomCallItem(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    type: str
    call_id: str
    name: str
    input: str
    id: str | None = None
    status: str | None = None
    namespace: Any = None
    caller: Any = None
    is_async: bool | None = msgspec.field(default=None, name="async")


class CallOutputItem(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What a function or a custom tool returned."""

    type: str
    call_id: str
    output: str | list[ItemPart]
    id: str | None = None
    status: str | None = None
    name: str | None = None
    namespace: Any = None
    caller: Any = None
    is_async: bool | None = msgspec.field(default=None, name="async")


class ReasoningPart(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    type: str
    text: str


class ReasoningItem(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    type: str
    id: str | None = None
    summary: list[ReasoningPart] | None = None
    content: list[ReasoningPart] | None = None
    encrypted_content: str | None = None
    status: str | None = None
