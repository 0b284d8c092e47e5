"""What a client may say of the form of an answer. Owns names, types and nullability."""

from __future__ import annotations

from typing import Any, Literal

import msgspec


class JsonSchema(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A named schema; `strict` makes no difference, because every schema is obeyed."""

    name: str | None = None
    description: str | None = None
    schema: dict[str, Any] | bool | None = None
    strict: bool | None = None


class ResponseFormat(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The form of the answer in OpenAI's words."""

    type: Literal["text", "json_object", "json_schema", "regex", "grammar", "structural_tag"]
    json_schema: JsonSchema | None = None
    structures: Any = None
    triggers: Any = None
    format: Any = None


class StructuredOutputs(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The form of the answer in vLLM's words; exactly one of the first five is given."""

    json: dict[str, Any] | str | bool | None = None
    json_object: bool | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    structural_tag: Any = None
    disable_any_whitespace: bool | None = None
    disable_additional_properties: bool | None = None
    whitespace_pattern: str | None = None
    disable_fallback: bool | None = None
