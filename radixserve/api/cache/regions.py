"""Which part of a conversation a token of its prompt belongs to.

The beginning of a conversation is rendered as well: where its tokens leave those of the whole, its
part of the prompt ends. A bisection over the messages needs few renderings. Within a message, the
text of the prompt is compared with the content. A template that renders beginnings otherwise, or
refuses them, makes the answer less precise, never wrong: then the region is the template.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal

import msgspec

from radixserve.api.context import Api
from radixserve.api.openai.beginnings import num_tokens_in
from radixserve.text.conversation import Conversation

Kind = Literal["prompt", "tools", "system", "message", "template", "generation_prompt"]


class Region(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A part of a request. `message` and `block` count from 0, in the body's own order."""

    kind: Kind
    message: int | None = None
    role: str | None = None
    block: int | None = None  # of a system prompt in blocks
    words: str = ""  # the same for people


async def region_of(
    api: Api, conversation: Conversation, ids: Sequence[int], position: int, blocks: Sequence[str]
) -> Region:
    """The region of token `position` of the prompt `ids` that `conversation` became. `blocks` are
    the texts of the system prompt's blocks, if it has several. Some renderings.
    """
    messages = conversation.messages
    ends = _Ends(api, conversation, ids)
    if conversation.ending == "answer" and position >= await ends.end(len(messages)):
        return Region(kind="generation_prompt", words="the generation prompt, behind all messages")
    low, high = 0, len(messages) - 1
    while low < high:
        middle = (low + high) // 2
        if await ends.end(middle + 1) > position:
            high = middle
        else:
            low = middle + 1
    start = await ends.end(low) if low else 0
    parts = (ids[start:position], ids[position : position + 64])
    decode = partial(api.tokenizer.decode, skip_special_tokens=False)
    text, behind = await api.threads.run(lambda: [decode(each) for each in parts])
    return _within(conversation, low, text, behind, blocks)


class _Ends:
    """Where the first messages of a conversation end in its prompt."""

    def __init__(self, api: Api, conversation: Conversation, ids: Sequence[int]) -> None:
        self._api, self._conversation, self._ids = api, conversation, ids

    async def end(self, num_messages: int) -> int:
        """How many tokens of the prompt the first messages make; 0 if they cannot be rendered."""
        if num_messages == 0:
            return 0
        beginning = msgspec.structs.replace(
            self._conversation,
            messages=self._conversation.messages[:num_messages],
            ending="closed",
        )
        return await num_tokens_in(self._api, beginning, self._ids)


def _within(
    conversation: Conversation, index: int, text: str, behind: str, blocks: Sequence[str]
) -> Region:
    """The region in message `index`, of whose part of the prompt `text` comes before the place and
    `behind` follows it.
    """
    message = conversation.messages[index]
    role, content = str(message.get("role")), str(message.get("content") or "").strip()
    whole = text + behind
    at = whole.find(content[:64]) if content else -1
    inside = at if at >= 0 and at <= len(text) < at + max(1, len(content)) else None
    if role in ("system", "developer") and inside is not None:
        return _system(index, len(text) - inside, blocks)
    if conversation.tools and index == 0 and inside is None and len(text) > 16:
        return Region(kind="tools", words="the tools")
    if inside is None and not message.get("tool_calls") and not message.get("reasoning_content"):
        words = f"what the template writes around message {index} ({role})"
        return Region(kind="template", message=index, role=role, words=words)
    return Region(kind="message", message=index, role=role, words=f"message {index} ({role})")


def _system(index: int, offset: int, blocks: Sequence[str]) -> Region:
    """The region at `offset` characters of the system prompt in message `index`."""
    for number, block in enumerate(blocks):
        if offset < len(block):
            words = f"block {number} of the system prompt"
            return Region(kind="system", message=index, role="system", block=number, words=words)
        offset -= len(block)
    return Region(kind="system", message=index, role="system", words="the system prompt")
