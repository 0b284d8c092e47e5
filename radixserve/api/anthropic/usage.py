"""Counts the tokens of a request in Anthropic's terms.

Every prompt token is in exactly one count: read from the cache, written to it, or plain input. All
of a prompt is stored whether or not the client asks for it. As at Anthropic, tokens count as
written only if the body has a `cache_control` breakpoint.
"""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import UNSET

from radixserve.api.anthropic.answers import (
    CacheCreation,
    DeltaUsage,
    OutputTokensDetails,
    Usage,
)
from radixserve.api.anthropic.blocks import CacheControl, ToolResultBlock
from radixserve.api.anthropic.wire import CountTokensBody
from radixserve.front.generation import Counts


def last_breakpoint(body: CountTokensBody) -> CacheControl | None:
    """The `cache_control` that stands last in the prompt: tools come before the system prompt, and
    that before the messages.
    """
    return next((each for each in _from_the_end(body) if each is not None), None)


def _from_the_end(body: CountTokensBody) -> Iterator[CacheControl | None]:
    yield body.cache_control
    for message in reversed(body.messages):
        for block in reversed(message.content) if isinstance(message.content, list) else ():
            yield block.cache_control
            if isinstance(block, ToolResultBlock) and isinstance(block.content, list):
                yield from (each.cache_control for each in reversed(block.content))
    if isinstance(body.system, list):
        yield from (block.cache_control for block in reversed(body.system))
    for tool in reversed(body.tools or ()):
        if isinstance(given := tool.get("cache_control"), dict):
            yield CacheControl(type="ephemeral", ttl="1h" if given.get("ttl") == "1h" else None)


def usage_of(counts: Counts, breakpoint_: CacheControl | None) -> Usage:
    """The usage of a whole message; `breakpoint_` is the last one of the body."""
    rest = counts.prompt - counts.cached
    written = 0 if breakpoint_ is None else rest
    pinned = bool(counts.pins)
    is_long = breakpoint_ is not None and breakpoint_.ttl == "1h"
    return Usage(
        input_tokens=rest - written,
        cache_creation_input_tokens=written,
        cache_read_input_tokens=counts.cached,
        output_tokens=counts.generated,
        output_tokens_details=OutputTokensDetails(counts.reasoning),
        cache_creation=CacheCreation(0 if is_long else written, written if is_long else 0),
        prompt_cache=counts.pin_status if pinned else UNSET,
        pinned_tokens=counts.pinned if pinned else UNSET,
    )


def delta_usage_of(counts: Counts, breakpoint_: CacheControl | None) -> DeltaUsage:
    """The usage at the end of a stream."""
    usage = usage_of(counts, breakpoint_)
    return DeltaUsage(
        usage.input_tokens,
        usage.cache_creation_input_tokens,
        usage.cache_read_input_tokens,
        usage.output_tokens,
        usage.output_tokens_details,
        usage.prompt_cache,
        usage.pinned_tokens,
    )
