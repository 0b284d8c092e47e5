"""Turns the tools of a Messages body, and the choice among them, into those of a chat body."""

from __future__ import annotations

import logging
from typing import Any

from radixserve.api.anthropic.wire import CustomTool, ToolChoice
from radixserve.api.body import convert_member
from radixserve.api.openai.wire_tools import Function, NamedFunction
from radixserve.api.openai.wire_tools import Tool as ChatTool
from radixserve.api.openai.wire_tools import ToolChoice as ChatToolChoice
from radixserve.api.refusals import missing, shown, unsupported

log = logging.getLogger("radixserve.api")


def chat_tools(tools: list[dict[str, Any]] | None, *, ignore_unknown: bool) -> dict[str, ChatTool]:
    """The tools by their places in the body. With `ignore_unknown` those that Anthropic runs, and
    members that are not known, are left out, and the log names them.

    Raises:
        BadRequest: for a tool that Anthropic runs, and a member that is wrong or not known.
    """
    found = {}
    for i, given in enumerate(tools or ()):
        path, kind = f"tools[{i}]", given.get("type")
        if kind in (None, "custom"):
            tool = convert_member(given, CustomTool, path, ignore_unknown=ignore_unknown)
            found[path] = _chat_tool(tool)
        elif ignore_unknown:
            log.warning("tool left out, which Anthropic's servers run: %r", shown(kind))
        else:
            raise unsupported(f"{path}.type", f"tools of type '{shown(kind)}'")
    return found


def _chat_tool(tool: CustomTool) -> ChatTool:
    function = Function(
        name=tool.name,
        description=tool.description,
        parameters=tool.input_schema,
        strict=tool.strict,
    )
    return ChatTool(type="function", function=function)


def chat_tool_choice(choice: ToolChoice) -> str | ChatToolChoice:
    """`tool_choice` of a chat body. Raises BadRequest if the tool has no name."""
    if choice.type != "tool":
        return {"auto": "auto", "any": "required", "none": "none"}[choice.type]
    if choice.name is None:
        raise missing("tool_choice.name")
    return ChatToolChoice(type="function", function=NamedFunction(name=choice.name))
