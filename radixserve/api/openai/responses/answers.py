"""The answers of the Responses API, as structs that msgspec encodes straight to bytes.

Owns the field names and decides which may be absent. Knows neither aiohttp nor the engine.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from radixserve.api.openai.answers import ChatTokenLogprob, pinned_of
from radixserve.api.openai.responses.wire import ResponsesBody
from radixserve.front.generation import Counts
from radixserve.step import PinStatus


class OutputText(msgspec.Struct):
    text: str
    logprobs: list[ChatTokenLogprob]
    type: str = "output_text"
    annotations: list[Any] = []


class OutputMessage(msgspec.Struct):
    id: str
    status: str
    content: list[OutputText]
    type: str = "message"
    role: str = "assistant"


class ReasoningText(msgspec.Struct):
    text: str
    type: str = "reasoning_text"


class SummaryText(msgspec.Struct):
    text: str
    type: str = "summary_text"


class OutputReasoning(msgspec.Struct):
    """The reasoning is in `content`, or, if the client asked for one, in `summary`."""

    id: str
    status: str
    content: list[ReasoningText]
    summary: list[SummaryText]
    encrypted_content: str | None = None
    type: str = "reasoning"


class OutputFunctionCall(msgspec.Struct):
    id: str
    status: str
    call_id: str
    name: str
    arguments: str = ""
    type: str = "function_call"


class OutputCustomCall(msgspec.Struct):
    id: str
    status: str
    call_id: str
    name: str
    input: str = ""
    type: str = "custom_tool_call"


OutputItem = OutputMessage | OutputReasoning | OutputFunctionCall | OutputCustomCall


class InputTokensDetails(msgspec.Struct):
    cached_tokens: int
    cache_write_tokens: int  # computed for this request, and kept as long as there is room
    # where they were when the request arrived: tier -> tokens
    cached_tokens_details: dict[str, int]
    # whether it is kept for the time that the request asks for, and how many tokens are
    prompt_cache: PinStatus | UnsetType = UNSET
    pinned_tokens: int | UnsetType = UNSET


class OutputTokensDetails(msgspec.Struct):
    reasoning_tokens: int


class ResponseUsage(msgspec.Struct):
    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class IncompleteDetails(msgspec.Struct):
    reason: str


class ResponseError(msgspec.Struct):
    code: str
    message: str


class Response(msgspec.Struct, kw_only=True):
    """A response in any state; what the request said is repeated in it."""

    id: str
    object: str = "response"
    created_at: int
    status: str
    completed_at: int | None = None
    error: ResponseError | None = None
    incomplete_details: IncompleteDetails | None = None
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: int | None
    model: str
    output: list[OutputItem] = []
    parallel_tool_calls: bool
    temperature: float
    top_p: float
    top_logprobs: int
    text: dict[str, Any]
    reasoning: dict[str, Any]
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    truncation: str
    usage: ResponseUsage | None = None
    metadata: dict[str, str]
    prompt_cache_key: str | None
    safety_identifier: str | None
    user: str | None
    background: bool = False  # nothing runs in the background
    previous_response_id: None = None  # nothing is stored
    service_tier: str = "default"  # there is one
    store: bool = False


class InputTokens(msgspec.Struct):
    """The answer to a question for the size of a prompt."""

    input_tokens: int
    object: str = "response.input_tokens"


def usage_of(counts: Counts, body: ResponsesBody) -> ResponseUsage:
    """`counts` in the shape of this API."""
    details = InputTokensDetails(
        counts.cached,
        counts.prompt - counts.cached if body.stores_cache else 0,
        counts.cached_in(),
        *pinned_of(counts, body),
    )
    return ResponseUsage(
        counts.prompt,
        details,
        counts.generated,
        OutputTokensDetails(counts.reasoning),
        counts.prompt + counts.generated,
    )
