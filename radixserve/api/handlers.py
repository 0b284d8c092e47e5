"""The two generation endpoints: one handler, and one description per endpoint.

Every body takes the same path (read, validate, tokenise, generate, render), for chat and
completions, streamed or not, so that no check exists for one of them only.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import msgspec
from aiohttp import web

from radixserve.api import validate
from radixserve.api.account import Account
from radixserve.api.answers import Usage
from radixserve.api.body import read_body
from radixserve.api.chat import ChatRenderer
from radixserve.api.completions import CompletionRenderer
from radixserve.api.context import API, Api
from radixserve.api.envelope import as_api_error, note_error, title
from radixserve.api.generation import Choice, Delta, run, usage_of
from radixserve.api.prompts import Prompt, chat_prompt, completion_prompts
from radixserve.api.settings import ApiSettings
from radixserve.api.sse import EventStream
from radixserve.api.validate import Generation, Wanted
from radixserve.api.wire import ChatBody, CompletionBody, GenerationBody
from radixserve.step import EngineInfo

if TYPE_CHECKING:
    from radixserve.text.client import TokenizerClient

B = TypeVar("B", bound=GenerationBody)


class Renderer(Protocol):
    """Renders the answers of one endpoint. `usage` is the usage so far, if every chunk carries
    it.
    """

    def opening(self, choice: Choice, usage: Usage | None) -> msgspec.Struct | None: ...
    def chunk(self, choice: Choice, delta: Delta, usage: Usage | None) -> msgspec.Struct: ...
    def usage_chunk(self, usage: Usage) -> msgspec.Struct: ...
    def whole(self, choices: list[Choice], usage: Usage) -> msgspec.Struct: ...


@dataclass(frozen=True, slots=True)
class Endpoint(Generic[B]):
    """The parts that differ between the two endpoints."""

    name: str
    body_type: type[B]
    wanted: Callable[[B, ApiSettings], Wanted]
    prompts: Callable[[Api, B, EngineInfo], Awaitable[list[Prompt]]]
    renderer: Callable[[Generation, str, TokenizerClient], Renderer]


async def _chat_prompts(api: Api, body: ChatBody, info: EngineInfo) -> list[Prompt]:
    return [await chat_prompt(api, body, info)]


CHAT = Endpoint("chat", ChatBody, validate.chat_wanted, _chat_prompts, ChatRenderer)
COMPLETIONS = Endpoint(
    "completions",
    CompletionBody,
    validate.completion_wanted,
    completion_prompts,
    CompletionRenderer,
)


async def chat_completions(request: web.Request) -> web.StreamResponse:
    """POST /v1/chat/completions."""
    return await _serve(request, CHAT)


async def completions(request: web.Request) -> web.StreamResponse:
    """POST /v1/completions."""
    return await _serve(request, COMPLETIONS)


async def _serve(request: web.Request, endpoint: Endpoint[Any]) -> web.StreamResponse:
    api, account = request.app[API], Account(endpoint.name)
    try:
        body = await read_body(request, endpoint.body_type)
        generation, prompts = await _prepare(api, endpoint, body)
        account.generation, account.choices = generation, _choices(api, generation, prompts)
        renderer = endpoint.renderer(generation, api.model_name, api.tokenizer)
        answer = _answer_streamed if generation.stream else _answer_whole
        return await answer(request, account.choices, generation, renderer, account)
    except BaseException as error:
        account.fail(error)
        raise
    finally:
        api.metrics.record(account.close())


async def _prepare(api: Api, endpoint: Endpoint[B], body: B) -> tuple[Generation, list[Prompt]]:
    """Make all checks, cheap ones first, and raise the refusal."""
    validate.check_model(body.model, api.model_names)
    validate.check_fields(body, api.settings, has_reasoning=api.tokenizer.has_reasoning)
    wanted = endpoint.wanted(body, api.settings)
    info = api.info()
    prompts = await endpoint.prompts(api, body, info)
    return validate.resolve(
        body, wanted, [prompt.ids for prompt in prompts], info, api.settings
    ), prompts


def _choices(api: Api, generation: Generation, prompts: list[Prompt]) -> list[Choice]:
    choices = []
    for i, request in enumerate(generation.requests):
        prompt = prompts[i // generation.num_choices]
        text_stream = api.tokenizer.stream(
            generation.stops,
            continues=prompt.continues,
            min_tokens=request.sampling.min_tokens,
        )
        echo_text = prompt.text if generation.echo else ""
        choices.append(Choice(i, request, text_stream, echo_text, generation.prompt_only))
    return choices


async def _answer_whole(
    request: web.Request,
    choices: list[Choice],
    generation: Generation,
    renderer: Renderer,
    account: Account,
) -> web.StreamResponse:
    async def sink(choice: Choice, delta: Delta) -> None:
        choice.collect(delta)

    await run(request.app[API].engine, choices, sink)
    whole = renderer.whole(choices, usage_of(choices, generation.num_choices))
    return web.Response(body=msgspec.json.encode(whole), content_type="application/json")


async def _answer_streamed(
    request: web.Request,
    choices: list[Choice],
    generation: Generation,
    renderer: Renderer,
    account: Account,
) -> web.StreamResponse:
    """Send the answer as a stream. A failure after the first event or comment is sent as an event,
    because the status has been sent.
    """
    api = request.app[API]
    stream = EventStream(request, api.settings.client_write_seconds)
    opened = [False] * len(choices)

    async def sink(choice: Choice, delta: Delta) -> None:
        usage = usage_of(choices, generation.num_choices) if generation.continuous_usage else None
        opening = None if opened[choice.index] else renderer.opening(choice, usage)
        opened[choice.index] = True
        chunk = renderer.chunk(choice, delta, usage)
        await (stream.send(chunk) if opening is None else stream.send(opening, chunk))

    try:
        async with stream.kept_alive(api.settings.stream_comment_seconds):
            await run(api.engine, choices, sink)
        if generation.include_usage:
            await stream.send(renderer.usage_chunk(usage_of(choices, generation.num_choices)))
        await stream.done()
    except Exception as error:
        if not stream.started or isinstance(error, ConnectionError):
            raise  # becomes an HTTP error, unless the client is gone
        account.fail(error)
        failure = as_api_error(error, request)
        note_error(failure, title(request), api.metrics)
        await stream.fail(failure)
    return stream.response
