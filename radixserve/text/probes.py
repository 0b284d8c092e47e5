"""What a chat template can do, found by rendering short conversations with it.

Templates say nothing about themselves, and reading their code would be guessing. Knows no tokens.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from jinja2.exceptions import TemplateSyntaxError

from radixserve.errors import BadRequest, ModelRefused, first_line
from radixserve.text.conversation import Conversation
from radixserve.text.templates import ChatTemplate
from radixserve.text.tool_forms import SHORT_ID_CHARS

# Words that no template writes by itself.
_TOOL, _KEY, _VALUE = "probe_tool", "probe_key", "probe_value"
_REASONING = "probe_reasoning"

_SYSTEM = {"role": "system", "content": "a"}
_USER = {"role": "user", "content": "b"}
_ASSISTANT = {"role": "assistant", "content": "c"}
_LAST = {"role": "user", "content": "d"}
_PLAIN = ([_SYSTEM, _USER, _ASSISTANT, _LAST], [_USER, _ASSISTANT, _LAST], [_USER])
_TOOLS = [
    {
        "type": "function",
        "function": {
            "name": _TOOL,
            "description": "e",
            "parameters": {
                "type": "object",
                "properties": {_KEY: {"type": "string", "description": "f"}},
                "required": [_KEY],
            },
        },
    }
]


@dataclass(frozen=True, slots=True)
class TemplateFacts:
    """What is known of a chat template; the defaults are those of a model without one.

    Attributes:
        written: all that it wrote around the probes' words.
        has_system: it renders system messages.
        has_tools: it has a place for tools.
        wants_argument_text: it wants the arguments of tool calls as JSON text, not as objects.
        wants_short_ids: it refuses ids of calls that are longer than `SHORT_ID_CHARS`.
        drops_reasoning: it leaves the reasoning of earlier turns out of later prompts.
    """

    written: str = ""
    has_system: bool = False
    has_tools: bool = False
    wants_argument_text: bool = False
    wants_short_ids: bool = False
    drops_reasoning: bool = False


def try_template(template: ChatTemplate) -> TemplateFacts:
    """Render the probes. What a template refuses, it cannot do.

    Raises:
        ModelRefused: the template does not compile.
    """
    plain = [_try(template, messages) for messages in _PLAIN]
    with_tools = _try(template, [_USER], _TOOLS)
    with_call, as_text, has_short_id = _try_call(template)
    return TemplateFacts(
        written="".join((next(filter(None, plain), ""), with_tools, with_call)),
        has_system=bool(plain[0]),
        has_tools=_TOOL in with_tools,
        wants_argument_text=as_text,
        wants_short_ids=has_short_id,
        drops_reasoning=drops_reasoning(template),
    )


def drops_reasoning(template: ChatTemplate) -> bool:
    """Whether the reasoning of an earlier turn is absent from later prompts, although the template
    knows reasoning.

    A prompt then differs from the previous one and its answer at the place where that answer began
    to reason, so that what is cached beyond it cannot be used.
    """
    reasoned = {**_ASSISTANT, "reasoning_content": _REASONING}
    rendered = _try(template, [_USER, reasoned, _LAST])
    return template.has_reasoning and bool(rendered) and _REASONING not in rendered


def _try_call(template: ChatTemplate) -> tuple[str, bool, bool]:
    """A conversation with a call in the first form that the template renders, "" if there is none;
    whether its arguments are text, and whether its id is a short one.
    """
    for call_id in ("call_0123456789abcdef", "abcdefghi"):
        for arguments in ({_KEY: _VALUE}, json.dumps({_KEY: _VALUE})):
            rendered = _try(template, _with_call(call_id, arguments), _TOOLS)
            if _is_rendered(rendered):
                return rendered, isinstance(arguments, str), len(call_id) == SHORT_ID_CHARS
    return "", False, False


def _with_call(call_id: str, arguments: Any) -> list[dict[str, Any]]:
    function = {"name": _TOOL, "arguments": arguments}
    call = {"id": call_id, "type": "function", "function": function}
    return [
        _USER,
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "g", "name": _TOOL, "tool_call_id": call_id},
        _ASSISTANT,
        _LAST,
    ]


def _is_rendered(text: str) -> bool:
    """Whether the arguments are in `text`, but not as Python writes them."""
    return _KEY in text and f"{{'{_KEY}'" not in text


def _try(
    template: ChatTemplate,
    messages: list[dict[str, Any]],
    tools: list[dict[str, Any]] | None = None,
) -> str:
    """The rendered conversation; "" if the template refuses it."""
    try:
        return template.render(Conversation(messages, tools or [], ending="closed"))
    except BadRequest as refusal:
        if isinstance(cause := refusal.__cause__, TemplateSyntaxError):
            raise ModelRefused(
                f"the chat template does not compile: {first_line(cause)}"
            ) from cause
        return ""
