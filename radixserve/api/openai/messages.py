"""Chat messages in the form that chat templates take: role and text only.

Other roles and content parts are refused by name. Knows no template.
"""

from __future__ import annotations

from radixserve.api.openai.wire import Message
from radixserve.api.refusals import shown, unsupported
from radixserve.errors import BadRequest

_UNSERVED = tuple(
    name for name in Message.__struct_fields__ if name not in ("role", "content", "name")
)


def render_messages(messages: list[Message]) -> list[dict[str, str]]:
    """Role and text of each message, for the chat template; text parts are joined. Raises
    BadRequest.
    """
    if not messages:
        raise BadRequest("'messages' must not be empty.", param="messages", code="empty_array")
    return [_render_message(message, f"messages[{i}]") for i, message in enumerate(messages)]


def _render_message(message: Message, path: str) -> dict[str, str]:
    role = "system" if message.role == "developer" else message.role
    if role in ("tool", "function"):
        raise unsupported(f"{path}.role", f"messages of role '{role}'")
    if role not in ("system", "user", "assistant"):
        known = "system, developer, user, assistant"
        text = f"'{shown(role)}' is not a role; known roles: {known}."
        raise BadRequest(text, param=f"{path}.role", code="invalid_value")
    for name in _UNSERVED:
        if getattr(message, name) not in (None, "", []):
            raise unsupported(f"{path}.{name}")
    return {"role": role, "content": _text_of(message, path)}


def _text_of(message: Message, path: str) -> str:
    if isinstance(message.content, str):
        return message.content
    if not message.content and message.role == "assistant":
        return ""  # clients send this for an answer without text
    if message.content is None:
        text = f"Missing required field '{path}.content'."
        raise BadRequest(text, param=f"{path}.content", code="missing_required_parameter")
    if not message.content:
        raise BadRequest(
            "'content' must not be an empty list.", param=f"{path}.content", code="empty_array"
        )
    texts = []
    for i, part in enumerate(message.content):
        here = f"{path}.content[{i}]"
        if part.type != "text":
            raise unsupported(f"{here}.type", f"content parts of type '{shown(part.type)}'")
        for name in part.__struct_fields__[2:]:
            if getattr(part, name) is not None:
                raise unsupported(f"{here}.{name}")
        if part.text is None:
            text = f"Missing required field '{here}.text'."
            raise BadRequest(text, param=f"{here}.text", code="missing_required_parameter")
        texts.append(part.text)
    return "".join(texts)
