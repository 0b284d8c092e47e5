"""Tools, and calls of them, as a client may write them in a body. Owns names, types and
nullability.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec


class Function(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A function that the model may call; `parameters` is the JSON schema of its arguments."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class TextFunction(Function, kw_only=True):
    """The function that stands for a custom tool of Responses: its only argument is a text that
    matches a grammar in Lark's syntax. No client can write it.
    """

    text_grammar: str


class Tool(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A tool of a body. Only functions are served; `custom` is declared so that it is refused by
    name.
    """

    type: str
    function: Function | None = None
    custom: Any = None
    cache_control: Any = None


class NamedFunction(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    name: str


class AllowedTools(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A choice among some of the tools, each given as `{"type": "function", "function":
    {"name"}}`.
    """

    mode: Literal["auto", "required"]
    tools: list[dict[str, Any]]


class ToolChoice(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A choice of one tool, or of some."""

    type: str
    function: NamedFunction | None = None
    allowed_tools: AllowedTools | None = None
    custom: Any = None


class CalledFunction(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The function of a call; `arguments` is the text of a JSON object."""

    name: str
    arguments: str | dict[str, Any] | None = None


class ToolCall(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A call in an assistant's message."""

    id: str | None = None
    type: str | None = None
    index: int | None = None  # of streamed calls that are sent back
    function: CalledFunction | None = None
    custom: Any = None
