"""Tools and `tool_choice` in the form of chat completions.

A function is the same there but for one level of nesting. A custom tool becomes a function with one
argument, a text; `custom_input` gets the text out of the arguments of a call. Tools that the server
would have to run are refused by name.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import Any, Literal, Protocol

import msgspec

from radixserve.api.body import Body, convert_member
from radixserve.api.openai.wire_tools import (
    AllowedTools,
    Function,
    NamedFunction,
    TextFunction,
    Tool,
    ToolChoice,
)
from radixserve.api.refusals import missing, shown, unsupported

log = logging.getLogger("radixserve.api")


class FunctionTool(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    type: str
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    output_schema: dict[str, Any] | None = None  # of what the client returns; not used here
    allowed_callers: Any = None
    defer_loading: bool | None = None
    is_async: bool | None = msgspec.field(default=None, name="async")


class CustomFormat(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    type: str
    syntax: str | None = None
    definition: str | None = None


class CustomTool(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    type: str
    name: str
    description: str | None = None
    format: CustomFormat | None = None
    allowed_callers: Any = None
    defer_loading: bool | None = None
    is_async: bool | None = msgspec.field(default=None, name="async")


class NamedTool(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A choice of one tool."""

    type: str
    name: str


class AllowedChoice(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A choice among some of the tools."""

    type: str
    mode: Literal["auto", "required"]
    tools: list[NamedTool]


class Convert(Protocol):
    """`convert_member`, or a form of it."""

    def __call__(self, value: object, member_type: type[Body], path: str) -> Body: ...


_CALLED = ("function", "custom")


def chat_tools(
    tools: list[dict[str, Any]] | None, *, ignore_unknown: bool = False
) -> list[Tool] | None:
    """`tools` of a chat body. Raises BadRequest for a tool that is no function and no custom
    tool, and for fields that are not known unless `ignore_unknown`.
    """
    if tools is None:
        return None
    convert = partial(convert_member, ignore_unknown=ignore_unknown)
    return [_chat_tool(tool, f"tools[{i}]", convert) for i, tool in enumerate(tools)]


def without_hosted(tools: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """`tools` without those that a server has to run; the log names each that is left out."""
    for tool in tools:
        if tool.get("type") not in (*_CALLED, None):
            log.warning("tool left out, which a server has to run: %r", shown(tool["type"]))
    return [tool for tool in tools if tool.get("type") in (*_CALLED, None)]


def chat_tool_choice(
    choice: str | dict[str, Any] | None, *, ignore_unknown: bool = False
) -> str | ToolChoice | None:
    """`tool_choice` of a chat body. Raises BadRequest for a tool that the server would run, and
    for fields that are not known unless `ignore_unknown`.
    """
    if not isinstance(choice, dict):
        return choice
    convert = partial(convert_member, path="tool_choice", ignore_unknown=ignore_unknown)
    kind = choice.get("type")
    if kind in _CALLED:
        name = convert(choice, NamedTool).name
        return ToolChoice(type="function", function=NamedFunction(name=name))
    if kind != "allowed_tools":
        raise unsupported("tool_choice.type", f"a 'tool_choice' of type '{shown(kind)}'")
    allowed = convert(choice, AllowedChoice)
    for i, tool in enumerate(allowed.tools):
        if tool.type not in _CALLED:
            where = f"tool_choice.tools[{i}].type"
            raise unsupported(where, f"allowed tools of type '{shown(tool.type)}'")
    named = [{"type": "function", "function": {"name": tool.name}} for tool in allowed.tools]
    tools = AllowedTools(mode=allowed.mode, tools=named)
    return ToolChoice(type="allowed_tools", allowed_tools=tools)


def custom_names(tools: list[dict[str, Any]] | None) -> frozenset[str]:
    """The names of the custom tools in a body."""
    return frozenset(tool["name"] for tool in tools or () if tool.get("type") == "custom")


def custom_arguments(text: str) -> str:
    """The arguments of the function that stands for a custom tool called with `text`."""
    return msgspec.json.encode({"input": text}).decode()


def custom_input(arguments: str) -> str:
    """The text in the arguments of a call to a custom tool: `arguments` as they are if they are
    broken or incomplete.
    """
    try:
        return msgspec.json.decode(arguments, type=_CustomArguments).input
    except msgspec.DecodeError:
        return arguments


class _CustomArguments(msgspec.Struct):
    input: str


def _chat_tool(tool: dict[str, Any], path: str, convert: Convert) -> Tool:
    match kind := tool.get("type"):
        case None:
            raise missing(f"{path}.type")
        case "function":
            given = convert(tool, FunctionTool, path)
            _refuse_programs(given, path)
            function = Function(
                name=given.name,
                description=given.description,
                parameters=given.parameters,
                strict=given.strict,
            )
        case "custom":
            function = _custom_function(convert(tool, CustomTool, path), path)
        case _:
            what = f"tools of type '{shown(kind)}', which a server has to run"
            raise unsupported(f"{path}.type", what)
    return Tool(type="function", function=function)


def _custom_function(tool: CustomTool, path: str) -> Function:
    """The function with one text that stands for a custom tool."""
    _refuse_programs(tool, path)
    text: dict[str, Any] = {"type": "string"}
    match tool.format:
        case None | CustomFormat(type="text"):
            grammar = None
        case CustomFormat(type="grammar", syntax="regex", definition=str(pattern)):
            text["pattern"], grammar = f"^(?:{pattern})$", None
        case CustomFormat(type="grammar", syntax="lark", definition=str(grammar)):
            text["description"] = f"Text that matches this grammar, in Lark's syntax:\n{grammar}"
        case _:
            raise unsupported(
                f"{path}.format",
                "formats of custom tools other than text and grammars, whose 'syntax' is 'lark' or "
                "'regex' and which have a 'definition'",
            )
    parameters = {
        "type": "object",
        "properties": {"input": text},
        "required": ["input"],
        "additionalProperties": False,
    }
    function = Function(
        name=tool.name, description=tool.description, parameters=parameters, strict=True
    )
    if grammar is None:
        return function
    return TextFunction(**msgspec.structs.asdict(function), text_grammar=grammar)


def _refuse_programs(tool: FunctionTool | CustomTool, path: str) -> None:
    if tool.allowed_callers not in (None, ["direct"]):
        raise unsupported(f"{path}.allowed_callers")
    if tool.is_async:
        raise unsupported(f"{path}.async")
    if tool.defer_loading:
        raise unsupported(f"{path}.defer_loading")
