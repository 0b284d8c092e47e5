"""The tools that a chat body offers, and how the model may use them.

Owns the rules of `tools`, `tool_choice`, `parallel_tool_calls` and of the older `functions` and
`function_call`. Knows no template and no markup.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from radixserve.api.openai.wire import ChatBody
from radixserve.api.openai.wire_tools import Function, Tool, ToolChoice
from radixserve.api.refusals import missing, shown, too_many, unsupported
from radixserve.errors import BadRequest

MAX_TOOLS = 512  # agents with several tool servers offer hundreds
_NAME = re.compile(r"[A-Za-z0-9_.:/-]{1,128}")


@dataclass(frozen=True, slots=True)
class Offer:
    """The tools of one body.

    Attributes:
        shown: every tool, in the form that chat templates take.
        callable: those that may be called.
        required: the answer is a call; otherwise it may be one.
        parallel: an answer may have several calls.
        old_form: the body uses `functions`, so the answer has a `function_call`.
    """

    shown: list[dict[str, Any]]
    callable: list[Function]
    required: bool = False
    parallel: bool = True
    old_form: bool = False


NO_TOOLS = Offer([], [])


def offered_tools(body: ChatBody) -> Offer:
    """The tools of `body`. Raises BadRequest for a tool that is not served, a name that is not
    one, and a choice that does not fit the tools.
    """
    if body.functions:
        if body.tools:
            raise BadRequest(
                "'functions' and 'tools' exclude each other.",
                param="functions",
                code="invalid_value",
            )
        return _old_offer(body, body.functions)
    if body.function_call not in (None, "none", "auto"):
        raise BadRequest(
            "'function_call' needs 'functions'.", param="function_call", code="invalid_value"
        )
    functions = [_function(tool, f"tools[{i}]") for i, tool in enumerate(body.tools or ())]
    _check_names(functions, "tools")
    mode, named = _choice(body.tool_choice, functions)
    if mode == "none" or not functions:
        return Offer(_shown(functions) if mode != "none" else [], [])
    chosen = [each for each in functions if named is None or each.name in named]
    one_call = isinstance(body.tool_choice, ToolChoice) and body.tool_choice.type == "function"
    return Offer(
        _shown(functions),
        chosen,
        required=mode == "required",
        parallel=body.parallel_tool_calls is not False and not one_call,
    )


def _old_offer(body: ChatBody, functions: Sequence[Function]) -> Offer:
    _check_names(functions, "functions")
    choice = body.function_call
    if choice == "none":
        return NO_TOOLS
    if choice is None or isinstance(choice, str):
        if choice not in (None, "auto"):
            raise _bad_choice("function_call", choice)
        return Offer(_shown(functions), list(functions), parallel=False, old_form=True)
    chosen = _named(functions, {choice.name}, "function_call.name")
    return Offer(_shown(functions), chosen, required=True, parallel=False, old_form=True)


def _function(tool: Tool, path: str) -> Function:
    if tool.type != "function":
        raise unsupported(f"{path}.type", f"tools of type '{shown(tool.type)}'")
    if tool.custom is not None:
        raise unsupported(f"{path}.custom")
    if tool.function is None:
        raise missing(f"{path}.function")
    return tool.function


def _check_names(functions: Sequence[Function], param: str) -> None:
    if len(functions) > MAX_TOOLS:
        raise too_many(param, MAX_TOOLS)
    seen = set()
    for i, function in enumerate(functions):
        where = f"{param}[{i}].function.name" if param == "tools" else f"{param}[{i}].name"
        if not _NAME.fullmatch(function.name):
            text = (
                f"'{shown(function.name)}' is no name of a function: letters, digits and _ . : / - "
                "are allowed, at most 128 of them."
            )
            raise BadRequest(text, param=where, code="invalid_value")
        if function.name in seen:
            text = f"Two functions are called '{shown(function.name)}'."
            raise BadRequest(text, param=where, code="invalid_value")
        seen.add(function.name)


def _choice(
    choice: str | ToolChoice | None, functions: Sequence[Function]
) -> tuple[Literal["none", "auto", "required"], set[str] | None]:
    """The mode, and the names that may be called; None: all."""
    match choice:
        case None:
            return "auto", None
        case "none" | "auto":
            return choice, None
        case "required":
            if not functions:
                raise _no_tools()
            return "required", None
        case str():
            raise _bad_choice("tool_choice", choice)
    if choice.type == "function" and choice.function is not None:
        _named(functions, {choice.function.name}, "tool_choice.function.name")
        return "required", {choice.function.name}
    if choice.type == "allowed_tools" and choice.allowed_tools is not None:
        names = {_allowed_name(each) for each in choice.allowed_tools.tools}
        if not names and choice.allowed_tools.mode == "required":
            where = "tool_choice.allowed_tools.tools"
            raise BadRequest("No tool may be called.", param=where, code="empty_array")
        _named(functions, names, "tool_choice.allowed_tools")
        return choice.allowed_tools.mode, names
    if choice.type not in ("function", "allowed_tools"):
        raise unsupported("tool_choice.type", f"a choice of type '{shown(choice.type)}'")
    raise missing(f"tool_choice.{choice.type}")


def _allowed_name(tool: dict[str, Any]) -> str:
    function = tool.get("function")
    name = function.get("name") if isinstance(function, dict) else tool.get("name")
    if not isinstance(name, str):
        raise missing("tool_choice.allowed_tools.tools.function.name")
    return name


def _named(functions: Sequence[Function], names: set[str], param: str) -> list[Function]:
    found = [each for each in functions if each.name in names]
    if unknown := sorted(names - {each.name for each in found}):
        if not functions:
            raise _no_tools()
        text = f"'{shown(unknown[0])}' is not one of the tools."
        raise BadRequest(text, param=param, code="invalid_value")
    return found


def _shown(functions: Sequence[Function]) -> list[dict[str, Any]]:
    return [{"type": "function", "function": _function_shown(each)} for each in functions]


def _function_shown(function: Function) -> dict[str, Any]:
    """The function without what the client left out; `strict` is no matter of the model."""
    members = {name: getattr(function, name) for name in ("name", "description", "parameters")}
    return {name: value for name, value in members.items() if value is not None}


def _no_tools() -> BadRequest:
    return BadRequest("'tool_choice' needs 'tools'.", param="tool_choice", code="invalid_value")


def _bad_choice(param: str, choice: str) -> BadRequest:
    return BadRequest(f"'{shown(choice)}' is not a choice.", param=param, code="invalid_value")
