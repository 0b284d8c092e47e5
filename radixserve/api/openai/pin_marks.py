"""Which beginning of its prompt a body wants to stay cached, and for how long.

A body says so by `prompt_cache_options.ttl`, and by marks with a `ttl` in its messages and tools. A
mark stands behind the text that is to be kept, so its place in the prompt is found by rendering the
conversation up to it. Knows no engine.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import msgspec

from radixserve.api.cache.query import seconds
from radixserve.api.context import Api
from radixserve.api.openai.beginnings import num_tokens_in
from radixserve.api.openai.wire import ChatBody, GenerationBody, Message
from radixserve.errors import BadRequest
from radixserve.front.generation import Generation
from radixserve.request import PinWish
from radixserve.text.conversation import Conversation

MOST_SECONDS = 30 * 86400.0


class Mark(NamedTuple):
    """Up to `num_chars` characters of message `message` the prompt is to be kept."""

    message: int
    num_chars: int
    seconds: float


def ttl_of(given: Any, path: str) -> float | None:
    """The seconds of a `ttl` such as 5m or 1h in an object; None without one. Raises BadRequest."""
    ttl = given.get("ttl") if isinstance(given, dict) else None
    if ttl is None:
        return None
    if not isinstance(ttl, str):
        text = f"'{path}.ttl' must be a duration such as 5m or 1h."
        raise BadRequest(text, param=f"{path}.ttl", code="invalid_type")
    return seconds(ttl, f"{path}.ttl", most=MOST_SECONDS)


def ttl_of_options(body: GenerationBody) -> float | None:
    """The seconds of `prompt_cache_options.ttl`. Raises BadRequest."""
    options = body.prompt_cache_options
    if options is None or options.ttl is None:
        return None
    return ttl_of({"ttl": options.ttl}, "prompt_cache_options")


def marks_of(body: ChatBody) -> list[Mark]:
    """The marks that have a time, in the order of the prompt; those without one have that of
    `prompt_cache_options`. One on a tool stands behind the system prompt, because some templates
    write tools behind it. Raises BadRequest.
    """
    usual = ttl_of_options(body)
    marks: list[Mark] = []
    for i, tool in enumerate(body.tools or ()):
        if tool.cache_control is not None:
            lasting = ttl_of(tool.cache_control, f"tools[{i}].cache_control") or usual
            marks += [behind_tools(body.messages, lasting)] if lasting else []
    for i, message in enumerate(body.messages):
        for path, num_chars, given in _marked(message, f"messages[{i}]"):
            lasting = ttl_of(given, path) or usual
            marks += [Mark(i, num_chars, lasting)] if lasting else []
    return marks


def behind(messages: Sequence[Message], lasting: float) -> Mark:
    """The mark behind the last of some messages."""
    return Mark(len(messages) - 1, _num_chars(messages[-1]), lasting)


def behind_tools(messages: Sequence[Message], lasting: float) -> Mark:
    """The mark of a tool."""
    if messages and messages[0].role in ("system", "developer"):
        return behind(messages[:1], lasting)
    return Mark(0, 0, lasting)


def _marked(message: Message, path: str) -> Iterator[tuple[str, int, Any]]:
    """The marks of a message: where they stand, behind how many characters, and what they are."""
    parts, num_chars = message.content if isinstance(message.content, list) else [], 0
    for i, part in enumerate(parts):
        num_chars += len(part.text or "")
        for name in ("cache_control", "prompt_cache_breakpoint"):
            if (given := getattr(part, name)) is not None:
                yield f"{path}.content[{i}].{name}", num_chars, given
    for name in ("cache_control", "prompt_cache_breakpoint"):
        if (given := getattr(message, name)) is not None:
            yield f"{path}.{name}", _num_chars(message), given


def _num_chars(message: Message) -> int:
    content = message.content
    if isinstance(content, list):
        return sum(len(part.text or "") for part in content)
    return len(content or "")


async def wish_pins(
    api: Api, generation: Generation, body: GenerationBody, marks: Sequence[Mark] = ()
) -> None:
    """Give the first choice of each prompt the pins that the body wishes: up to the last mark, and
    up to the last one of the longest time if that is another; the whole prompt if there is no mark
    but a time. A rendering for each mark.
    """
    lasting = ttl_of_options(body)
    if not marks and lasting is None:
        return
    for stream in generation.streams[:: generation.num_choices]:
        ids = stream.request.prompt_ids
        if marks and generation.conversation is not None:
            kept = [
                (await _num_tokens_to(api, mark, generation.conversation, ids), mark.seconds)
                for mark in _chosen(marks)
            ]
        else:
            kept = [(len(ids), lasting or 0.0)]
        wishes = (_wish(num_tokens, seconds) for num_tokens, seconds in kept)
        stream.request = msgspec.structs.replace(stream.request, pins=tuple(wishes))


def _chosen(marks: Sequence[Mark]) -> list[Mark]:
    longest = max(mark.seconds for mark in marks)
    last_of_longest = next(mark for mark in reversed(marks) if mark.seconds == longest)
    return list(dict.fromkeys((last_of_longest, marks[-1])))


def _wish(num_tokens: int, lasting: float) -> PinWish:
    return PinWish(id=f"pin_{secrets.token_hex(8)}", num_tokens=num_tokens, seconds=lasting)


async def _num_tokens_to(api: Api, mark: Mark, whole: Conversation, ids: Sequence[int]) -> int:
    """How many tokens of the prompt `ids` stand before the mark."""
    last = whole.messages[mark.message]
    if mark.num_chars < len(last["content"]):
        last = {"role": last["role"], "content": last["content"][: mark.num_chars]}
    messages = api.volatile.removed([*whole.messages[: mark.message], last])
    beginning = msgspec.structs.replace(whole, messages=messages, ending="closed")
    return await num_tokens_in(api, beginning, ids)
