"""Turns a Messages body into a chat body, so that one validator serves both dialects; and turns
its refusals back into the names of the Messages API.

A conversation is the same, token by token, whichever dialect it is written in. Knows no template
and no HTTP.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from radixserve.api.anthropic.blocks import (
    TTLS,
    CacheControl,
    ContentBlock,
    RedactedThinkingBlock,
    TextBlock,
    ThinkingBlock,
    ToolResultBlock,
    ToolUseBlock,
    UnreadBlock,
)
from radixserve.api.anthropic.tools import chat_tool_choice, chat_tools
from radixserve.api.anthropic.wire import (
    AS_IF_ABSENT,
    CountTokensBody,
    KnownElsewhere,
    Message,
    MessagesBody,
    ToolChoice,
)
from radixserve.api.openai.pin_marks import Mark, behind, behind_tools
from radixserve.api.openai.wire import ChatBody
from radixserve.api.openai.wire import Message as ChatMessage
from radixserve.api.openai.wire_format import JsonSchema, ResponseFormat
from radixserve.api.openai.wire_tools import CalledFunction, ToolCall
from radixserve.api.refusals import check_range, unsupported
from radixserve.errors import ApiError, BadRequest

MIN_THINKING_TOKENS: Final = 1024
_INT64: Final = 2**63
_MESSAGE: Final = re.compile(r"messages\[(\d+)\]")
_TOOL: Final = re.compile(r"tools\[(\d+)\](?:\.function)?(.*)", re.DOTALL)
_RENAMED: Final = {
    "stop": "stop_sequences",
    "response_format": "output_config.format",
    "reasoning_effort": "output_config.effort",
    "chat_template_kwargs": "thinking",
    "parallel_tool_calls": "tool_choice.disable_parallel_tool_use",
    "tool_choice.function.name": "tool_choice.name",
}


@dataclass(slots=True)
class Translated:
    """A chat body, and where each of its messages and tools stands in the body that was given.
    `marks` are its breakpoints that have a `ttl`, in the order of the prompt.
    """

    body: ChatBody
    messages: list[str]
    tools: list[str]
    marks: list[Mark]

    def restate(self, error: ApiError) -> None:
        """Name the field of the Messages API in a refusal of the chat body."""
        param = error.param
        if param is None:
            return
        if (found := _MESSAGE.match(param)) is not None:
            error.param = self.messages[int(found[1])]
        elif (found := _TOOL.fullmatch(param)) is not None:
            member = found[2].replace(".parameters", ".input_schema")
            error.param = self.tools[int(found[1])] + member
        else:
            error.param = next(
                (new for old, new in _RENAMED.items() if re.match(rf"{old}\b", param)), param
            )
        error.message = error.message.replace(f"'{param}'", f"'{error.param}'")


def translated(body: CountTokensBody, *, ignore_unknown: bool = False) -> Translated:
    """The chat body that asks for the same as `body`. Raises BadRequest for what the OpenAI dialect
    has no words for. For `ignore_unknown` see `chat_tools`.
    """
    _refuse_unsupported(body)
    history = _History()
    if body.system:
        history.add_system_blocks(body.system, "system")
    for i, message in enumerate(body.messages):
        history.add(message, f"messages[{i}]")
    tools = chat_tools(body.tools, ignore_unknown=ignore_unknown)
    chat = ChatBody(
        model=body.model,
        messages=history.messages,
        tools=list(tools.values()) or None,
        continue_final_message=True if history.is_open else None,
    )
    _set_tool_choice(chat, body.tool_choice)
    _set_thinking(chat, body)
    _set_format(chat, body)
    if isinstance(body, MessagesBody):
        _set_sampling(chat, body)
    of_tools = [lasting for tool in body.tools or () if (lasting := _ttl_in(tool)) is not None]
    marks = [behind_tools(history.messages, lasting) for lasting in of_tools]
    history.mark(body.cache_control)
    return Translated(chat, history.origins, list(tools), marks + history.marks)


def _ttl_in(tool: dict[str, Any]) -> float | None:
    """The seconds of a tool's breakpoint; None if it has none, or no `ttl`."""
    given = tool.get("cache_control")
    ttl = given.get("ttl") if isinstance(given, dict) else None
    return TTLS.get(ttl) if isinstance(ttl, str) else None


def _set_sampling(chat: ChatBody, body: MessagesBody) -> None:
    chat.max_tokens, chat.stream = body.max_tokens, body.stream
    chat.temperature, chat.top_p, chat.top_k = body.temperature, body.top_p, body.top_k
    chat.stop = body.stop_sequences


def _set_tool_choice(chat: ChatBody, choice: ToolChoice | None) -> None:
    if choice is not None:
        chat.tool_choice = chat_tool_choice(choice)
        if choice.disable_parallel_tool_use:
            chat.parallel_tool_calls = False


def _set_thinking(chat: ChatBody, body: CountTokensBody) -> None:
    """Reasoning is turned on or off where the chat template can do that, under either of the two
    names that templates use. The budget is a wish: what limits an answer is `max_tokens`.
    """
    if (thinking := body.thinking) is None:
        return
    budget = "thinking.budget_tokens"
    check_range(budget, thinking.budget_tokens, MIN_THINKING_TOKENS, _INT64 - 1, "integer")
    thinks = thinking.type != "disabled"
    chat.chat_template_kwargs = {"enable_thinking": thinks, "thinking": thinks}


def _set_format(chat: ChatBody, body: CountTokensBody) -> None:
    config, wanted = body.output_config, body.output_format
    if config is not None:
        chat.reasoning_effort = config.effort
        if config.task_budget is not None:
            raise unsupported("output_config.task_budget")
        if wanted is not None and config.format is not None:
            message = "'output_format' is the older name of 'output_config.format'; give one."
            raise BadRequest(message, param="output_format", code="invalid_value")
        wanted = wanted or config.format
    if wanted is not None:
        schema = JsonSchema(name="answer", schema=wanted.schema, strict=True)
        chat.response_format = ResponseFormat(type="json_schema", json_schema=schema)


@dataclass(slots=True)
class _History:
    """The messages of the chat body, in the order in which they arose.

    Neighbouring messages of one role become one message, as at Anthropic, because many chat
    templates want the roles to alternate.
    """

    messages: list[ChatMessage] = field(default_factory=list)
    origins: list[str] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)

    def mark(self, control: CacheControl | None) -> None:
        """Keep a breakpoint with a `ttl`: it stands behind what was added last."""
        if control is not None and control.ttl is not None and self.messages:
            self.marks.append(behind(self.messages, TTLS[control.ttl]))

    @property
    def is_open(self) -> bool:
        """Whether the last message is an answer that was begun and is to be continued."""
        last = self.messages[-1] if self.messages else None
        return (
            last is not None
            and last.role == "assistant"
            and bool(last.content)
            and not last.tool_calls
        )

    def add_system_blocks(self, blocks: str | Sequence[ContentBlock], path: str) -> None:
        """Add a system prompt, each block on a line of its own."""
        self._append(ChatMessage(role="system", content=_joined(blocks, path)), path)
        given = [] if isinstance(blocks, str) else blocks
        for i, block in enumerate(given):
            if block.cache_control is not None and block.cache_control.ttl is not None:
                num_chars = len(_joined(given[: i + 1], path))
                lasting = TTLS[block.cache_control.ttl]
                self.marks.append(Mark(len(self.messages) - 1, num_chars, lasting))

    def add(self, message: Message, path: str) -> None:
        content = message.content
        if not content and isinstance(content, list) and message.role != "assistant":
            where = f"{path}.content"
            raise BadRequest(
                f"'{where}' must not be an empty list.", param=where, code="empty_array"
            )
        blocks: Sequence[ContentBlock]
        blocks = [TextBlock(text=content)] if isinstance(content, str) else content
        match message.role:
            case "system":
                self.add_system_blocks(blocks, f"{path}.content")
                self.origins[-1] = path
            case "user":
                self._add_user(blocks, path)
            case "assistant":
                self._add_assistant(blocks, path)

    def _add_user(self, blocks: Sequence[ContentBlock], path: str) -> None:
        for i, block in enumerate(blocks):
            here = f"{path}.content[{i}]"
            if isinstance(block, TextBlock):
                self._add_user_text(_text_of(block, here), path)
            elif isinstance(block, ToolResultBlock):
                message = ChatMessage(
                    role="tool", tool_call_id=block.tool_use_id, content=_result_of(block, here)
                )
                self._append(message, here)
                for inner in block.content if isinstance(block.content, list) else ():
                    self.mark(inner.cache_control)
            else:
                raise _misplaced(block, here)
            self.mark(block.cache_control)

    def _add_user_text(self, text: str, path: str) -> None:
        last = self.messages[-1] if self.messages else None
        if last is not None and last.role == "user":
            last.content = f"{last.content}\n{text}"
        else:
            self._append(ChatMessage(role="user", content=text), path)

    def _add_assistant(self, blocks: Sequence[ContentBlock], path: str) -> None:
        last = self.messages[-1] if self.messages else None
        if last is None or last.role != "assistant":
            last = ChatMessage(role="assistant", content="")
            self._append(last, path)
        for i, block in enumerate(blocks):
            _extend(last, block, f"{path}.content[{i}]")
            self.mark(block.cache_control)

    def _append(self, message: ChatMessage, path: str) -> None:
        self.messages.append(message)
        self.origins.append(path)


def _extend(message: ChatMessage, block: ContentBlock, path: str) -> None:
    """Add a block to an assistant's message. The pieces of its text follow each other directly,
    because they are pieces of one answer.
    """
    match block:
        case TextBlock():
            message.content = f"{message.content}{_text_of(block, path)}"
        case ThinkingBlock():
            message.reasoning_content = (message.reasoning_content or "") + block.thinking
        case RedactedThinkingBlock():
            pass
        case ToolUseBlock():
            message.tool_calls = [*(message.tool_calls or ()), _call(block, path)]
        case _:
            raise _misplaced(block, path)


def _call(block: ToolUseBlock, path: str) -> ToolCall:
    if block.caller not in (None, {"type": "direct"}):
        raise unsupported(f"{path}.caller")
    if block.toolset_name is not None:
        raise unsupported(f"{path}.toolset_name")
    arguments = msgspec.json.encode(block.input).decode()
    function = CalledFunction(name=block.name, arguments=arguments)
    return ToolCall(id=block.id, type="function", function=function)


def _result_of(block: ToolResultBlock, path: str) -> str:
    """The text of a tool's answer. Templates have no mark for a failed call, so the text says
    it.
    """
    if block.toolset_name is not None:
        raise unsupported(f"{path}.toolset_name")
    text = _joined(block.content or "", f"{path}.content")
    return f"Error: {text}" if block.is_error else text


def _joined(content: str | Sequence[ContentBlock | UnreadBlock], path: str) -> str:
    """The text of blocks, each on a line of its own."""
    if isinstance(content, str):
        return content
    return "\n".join([_text_of(block, f"{path}[{i}]") for i, block in enumerate(content)])


def _text_of(block: ContentBlock | UnreadBlock, path: str) -> str:
    if not isinstance(block, TextBlock):
        raise _misplaced(block, path)
    if block.citations not in (None, []):
        raise unsupported(f"{path}.citations")
    return block.text


def _misplaced(block: ContentBlock | UnreadBlock, path: str) -> BadRequest:
    """The refusal of a block that this server cannot read, or not in this place."""
    kind = block.__struct_config__.tag
    if isinstance(block, UnreadBlock):
        return unsupported(f"{path}.type", f"content blocks of type '{kind}'")
    message = f"A block of type '{kind}' has no place here."
    return BadRequest(message, param=f"{path}.type", code="invalid_value")


def _refuse_unsupported(body: CountTokensBody) -> None:
    for name in KnownElsewhere.__struct_fields__:
        value = getattr(body, name)
        if value is not None and value not in AS_IF_ABSENT.get(name, ()):
            raise unsupported(name)
