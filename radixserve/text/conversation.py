"""A conversation in the form that chat templates take, and which of its strings a client wrote.

Owns the value that the front sends to a tokenizer process, and the walk over its strings. Knows no
template and no tokenizer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import msgspec

Ending = Literal["answer", "closed", "open"]
"""Where a rendered conversation ends: where the assistant's answer begins, after the last message,
or within the last message, right after its text.
"""

Change = Callable[[str], str]

_ROLES = frozenset(("system", "developer", "user", "assistant", "tool", "function"))
_TYPES = frozenset(
    (
        *("function", "text", "string", "integer", "number", "boolean", "array", "object"),
        *("null", "any", "float", "int", "bool"),
    )
)
# Keys of messages, tools, schemas and documents that templates look up by name.
_WORDS = frozenset(
    (
        *("role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content"),
        *("reasoning", "thinking", "id", "type", "function", "arguments", "description"),
        *("parameters", "strict", "return", "returns", "response", "title", "text", "url"),
        *("properties", "required", "items", "enum", "const", "default", "examples", "format"),
        *("anyOf", "oneOf", "allOf", "not", "if", "then", "else", "nullable", "$ref", "$defs"),
        *("definitions", "patternProperties", "dependentSchemas", "additionalProperties"),
        *("prefixItems", "minItems", "maxItems", "uniqueItems", "contains", "pattern"),
        *("minLength", "maxLength", "minimum", "maximum", "exclusiveMinimum"),
        *("exclusiveMaximum", "multipleOf", "minProperties", "maxProperties", "$schema", "$id"),
    )
)
_NO_WORDS: frozenset[str] = frozenset()
# The keys of the objects under these are names that a client chose; words follow below them.
_NAMES_BELOW = frozenset(
    ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
)
# Below these is data, with no word at any level.
_DATA_BELOW = frozenset(("arguments", "default", "const", "enum", "examples"))


class Conversation(msgspec.Struct, frozen=True):
    """What a chat template renders, and where the rendered text ends.

    Attributes:
        messages: `role` (system, user, assistant or tool) and `content` (a string); of the
            assistant also `reasoning_content` and `tool_calls`, each `{"id", "type": "function",
            "function": {"name", "arguments"}}` with the arguments as an object (a string where
            they are not a JSON object); of a tool `tool_call_id` and `name`. A key whose value is
            None counts as absent.
        tools: OpenAI's function tools, `{"type": "function", "function": {...}}`.
        options: variables for the template, such as `enable_thinking` and `reasoning_effort`.
        documents: objects for templates that render retrieved documents.
        ending: see `Ending`.
        add_special_tokens: whether the tokenizer adds special tokens to the rendered text, which
            has those of the template already.
    """

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] = []
    options: dict[str, Any] = {}
    documents: list[dict[str, Any]] = []
    ending: Ending = "answer"
    add_special_tokens: bool = False


def changed(conversation: Conversation, change: Change) -> Conversation:
    """The same conversation with every string that the client wrote replaced by `change` of it.

    These are all strings at any depth, and the keys of objects, except for what has a fixed meaning
    to templates: roles, the keys of messages, tools and JSON schemas, type names, and the names of
    `options`. O(size). Raises RecursionError for values that are nested too deeply.
    """
    return msgspec.structs.replace(
        conversation,
        messages=_changed(conversation.messages, change),
        tools=_changed(conversation.tools, change),
        documents=_changed(conversation.documents, change),
        options={
            name: _changed(value, change, _NO_WORDS) for name, value in conversation.options.items()
        },
    )


def client_strings(conversation: Conversation) -> list[str]:
    """The strings that `changed` would change, in order."""
    found: list[str] = []

    def keep(text: str) -> str:
        found.append(text)
        return text

    changed(conversation, keep)
    return found


def uses_tools(conversation: Conversation) -> bool:
    """Whether there are tools, calls or results."""
    return bool(conversation.tools) or any(
        message.get("role") == "tool" or message.get("tool_calls")
        for message in conversation.messages
    )


def _changed(value: Any, change: Change, words: frozenset[str] = _WORDS) -> Any:
    """`value` with its strings changed; keys that are `words` stay."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [_changed(item, change, words) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        key if key in words else change(key): _changed_item(key, item, change, words)
        for key, item in value.items()
    }


def _changed_item(key: str, item: Any, change: Change, words: frozenset[str]) -> Any:
    if key not in words:
        return _changed(item, change, words)
    if key == "role" and isinstance(item, str) and item in _ROLES:
        return item
    if key == "type":
        return _changed_type(item, change)
    if key in _DATA_BELOW:
        return _changed(item, change, _NO_WORDS)
    if key in _NAMES_BELOW and isinstance(item, dict):
        return {change(name): _changed(each, change) for name, each in item.items()}
    return _changed(item, change, words)


def _changed_type(item: Any, change: Change) -> Any:
    """The value of a `type`: names of types stay, alone or in a list."""
    if isinstance(item, list):
        return [_changed_type(each, change) for each in item]
    if isinstance(item, str) and item in _TYPES:
        return item
    return _changed(item, change)
