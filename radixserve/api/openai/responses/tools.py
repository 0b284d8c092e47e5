"""Tools and `tool_choice` in the form of chat completions.

A function is the same there but for one level of nesting. A custom tool becomes a function with one
argument, a text; `custom_input` gets the text out of the arguments of a call. Tools that the server
would have to run are refused by name.
"""

from __future__ import annotations

from typing import Any

import msgspec

from radixserve.api.body import convert_member
from radixserve.api.refusals import shown, unsupported
from radixserve.errors import BadRequest


class FunctionTool(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    type: str
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    output_schema: dict[str, Any] | None = None  # of what the client returns; not used here
    allowed_callers: Any = None
    defer_loading: bool | None = None


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


def chat_tools(tools: list[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
    """`tools` of a chat body. Raises BadRequest for a tool that is no function and no custom
    tool.
    """
    if tools is None:
        return None
    return [_chat_tool(tool, f"tools[{i}]") for i, tool in enumerate(tools)]


def chat_tool_choice(choice: str | dict[str, Any] | None) -> str | dict[str, Any] | None:
    """`tool_choice` of a chat body. Raises BadRequest for a tool that the server would run."""
    if not isinstance(choice, dict):
        return choice
    kind = choice.get("type")
    if kind in ("function", "custom"):
        return {"type": "function", "function": {"name": _name_of(choice, "tool_choice")}}
    if kind != "allowed_tools":
        raise unsupported("tool_choice.type", f"a 'tool_choice' of type '{shown(kind)}'")
    allowed = choice.get("tools")
    if not isinstance(allowed, list):
        message = "'tool_choice.tools' must be a list of tools."
        raise BadRequest(message, param="tool_choice.tools", code="invalid_type")
    tools = [_allowed_tool(tool, f"tool_choice.tools[{i}]") for i, tool in enumerate(allowed)]
    inner = {"mode": choice.get("mode", "auto"), "tools": tools}
    return {"type": "allowed_tools", "allowed_tools": inner}


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


def _chat_tool(tool: dict[str, Any], path: str) -> dict[str, Any]:
    kind = tool.get("type")
    if kind == "function":
        given = convert_member(tool, FunctionTool, path)
        _refuse_programs(given, path)
        function = {"name": given.name}
        for name in ("description", "parameters", "strict"):
            if (value := getattr(given, name)) is not None:
                function[name] = value
        return {"type": "function", "function": function}
    if kind == "custom":
        return _chat_custom_tool(convert_member(tool, CustomTool, path), path)
    if kind is None:
        where = f"{path}.type"
        message = f"Missing required field '{where}'."
        raise BadRequest(message, param=where, code="missing_required_parameter")
    raise unsupported(f"{path}.type", f"tools of type '{shown(kind)}', which a server has to run")


def _chat_custom_tool(tool: CustomTool, path: str) -> dict[str, Any]:
    _refuse_programs(tool, path)
    text: dict[str, Any] = {"type": "string"}
    if (form := tool.format) is not None and form.type != "text":
        if form.type != "grammar" or form.syntax != "regex" or form.definition is None:
            what = "formats of custom tools other than text and regex grammars"
            raise unsupported(f"{path}.format", what)
        text["pattern"] = f"^(?:{form.definition})$"
    parameters = {
        "type": "object",
        "properties": {"input": text},
        "required": ["input"],
        "additionalProperties": False,
    }
    function: dict[str, Any] = {"name": tool.name, "parameters": parameters, "strict": True}
    if tool.description is not None:
        function["description"] = tool.description
    return {"type": "function", "function": function}


def _refuse_programs(tool: FunctionTool | CustomTool, path: str) -> None:
    if tool.allowed_callers not in (None, ["direct"]):
        raise unsupported(f"{path}.allowed_callers")
    if tool.defer_loading:
        raise unsupported(f"{path}.defer_loading")


def _allowed_tool(tool: object, path: str) -> dict[str, Any]:
    if not isinstance(tool, dict) or tool.get("type") not in ("function", "custom"):
        raise unsupported(path, "allowed tools other than functions and custom tools")
    return {"type": "function", "function": {"name": _name_of(tool, path)}}


def _name_of(given: dict[str, Any], path: str) -> str:
    name = given.get("name")
    if isinstance(name, str):
        return name
    message = f"'{path}.name' must be the name of a tool."
    code = "missing_required_parameter" if name is None else "invalid_type"
    raise BadRequest(message, param=f"{path}.name", code=code)
