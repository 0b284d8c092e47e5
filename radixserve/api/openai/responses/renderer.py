"""Responses: turns the parts of an answer into a response body, or into its stream of events. Knows
no engine and no HTTP.
"""

from __future__ import annotations

import time
from typing import Any

import msgspec

from radixserve.api.context import Api
from radixserve.api.openai.logprobs import TokenSpeller
from radixserve.api.openai.responses.answers import (
    IncompleteDetails,
    Response,
    ResponseError,
    usage_of,
)
from radixserve.api.openai.responses.events import EventWriter, ResponseEvent
from radixserve.api.openai.responses.output import Output
from radixserve.api.openai.responses.tools import custom_names
from radixserve.api.openai.responses.wire import ReasoningConfig, ResponsesBody, TextConfig
from radixserve.errors import ApiError
from radixserve.front.generation import Generation
from radixserve.front.stream import Delta, Stream


class ResponsesRenderer:
    """Builds the one response to a body."""

    def __init__(self, api: Api, generation: Generation, body: ResponsesBody) -> None:
        self._generation = generation
        self._body = body
        self._speller = TokenSpeller(api.tokenizer, as_ids=False)
        self._writer = EventWriter()
        self._output = Output(self._writer, generation.id, custom_names(body.tools))
        self._output.seals_reasoning = body.seals_reasoning
        self._output.summarises = body.summarises
        self._response = _response_to(body, generation, generation.adapter or api.model_name)

    def opening(self) -> bytes:
        """See `Renderer`."""
        return self._told("response.created") + self._told("response.in_progress")

    def delta(self, stream: Stream, delta: Delta) -> bytes:
        """See `Renderer`."""
        most = self._generation.logprobs
        logprobs = [] if most is None else self._speller.chat_logprobs(delta.logprobs, most).content
        return self._output.push(delta.parts, logprobs)

    def closing(self) -> bytes:
        """See `Renderer`."""
        events = self._finish()
        return events + self._told(f"response.{self._response.status}")

    def failure(self, error: ApiError) -> bytes:
        """See `Renderer`."""
        self._response.status = "failed"
        self._response.error = ResponseError("server_error", error.message)
        self._response.output = self._output.items
        return self._told("response.failed")

    def whole(self, answers: list[Delta]) -> bytes:
        """See `Renderer`."""
        self.delta(self._generation.streams[0], answers[0])
        self._finish()
        return msgspec.json.encode(self._response)

    def _finish(self) -> bytes:
        """Complete the items and the response, and return the events of the items."""
        response = self._response
        is_complete = self._generation.streams[0].finish_reason != "length"
        events = self._output.finish(is_complete=is_complete)
        response.output = self._output.items
        response.usage = usage_of(self._generation.counts(), self._body)
        response.status = "completed" if is_complete else "incomplete"
        if is_complete:
            response.completed_at = int(time.time())
        else:
            response.incomplete_details = IncompleteDetails("max_output_tokens")
        return events

    def _told(self, kind: str) -> bytes:
        return self._writer.write(ResponseEvent(type=kind, response=self._response))


def _response_to(body: ResponsesBody, generation: Generation, model: str) -> Response:
    """The response in progress, with what the request said and the defaults that apply."""
    sampling = generation.streams[0].request.sampling
    text, reasoning = body.text or TextConfig(), body.reasoning or ReasoningConfig()
    return Response(
        id=f"resp_{generation.id}",
        created_at=int(time.time()),
        status="in_progress",
        instructions=body.instructions,
        max_output_tokens=body.max_output_tokens,
        max_tool_calls=body.max_tool_calls,
        model=model,
        parallel_tool_calls=body.parallel_tool_calls is not False,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_logprobs=body.top_logprobs or 0,
        text=_text_of(text),
        reasoning={
            "effort": reasoning.effort,
            "summary": reasoning.summary or reasoning.generate_summary,
        },
        tool_choice=body.tool_choice or "auto",
        tools=body.tools or [],
        truncation=body.truncation or "disabled",
        metadata=body.metadata or {},
        prompt_cache_key=body.prompt_cache_key,
        safety_identifier=body.safety_identifier,
        user=body.user,
    )


def _text_of(text: TextConfig) -> dict[str, Any]:
    """`text` as a response repeats it."""
    return {"format": text.format or {"type": "text"}, "verbosity": text.verbosity or "medium"}
