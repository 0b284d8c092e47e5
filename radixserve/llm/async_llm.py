"""`AsyncLLM`: the engine for programs that have an event loop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any, TypeVar

import msgspec

from radixserve.api.context import Api
from radixserve.api.openai.endpoints import prepare_chat, prepare_completion
from radixserve.api.openai.wire import ChatBody, CompletionBody, GenerationBody
from radixserve.assembly import Assembly
from radixserve.config import Settings
from radixserve.errors import BadRequest, ConfigError, StartupError
from radixserve.front.generation import Generation
from radixserve.front.stream import Delta, Stream
from radixserve.llm.output import Output, output_of
from radixserve.llm.params import SamplingParams
from radixserve.model.source import find_model

Messages = Sequence[dict[str, Any]]
"""Messages as the chat endpoint takes them."""

B = TypeVar("B", bound=GenerationBody)


class AsyncLLM:
    """A model that is loaded in a process of its own, with its prefix cache.

        async with AsyncLLM("PATH_OR_HUB_NAME") as llm:
            output = await llm.chat([{"role": "user", "content": "Hello"}])

    Requests may be made at any time and run together. Every method that makes one raises BadRequest
    for a wrong value, Unavailable if too many wait, and ServerError if it fails.
    """

    def __init__(self, model: str | None = None, **settings: Any) -> None:
        """`model` is a folder, a GGUF file or a hub name, None for the embedded model; `settings`
        are those of docs/settings.md under the same names.

        Raises:
            ConfigError: there is no such setting, or its value is wrong.
        """
        try:
            given = {"log_level": "warning"} | settings | {"model": model}
            self._settings = msgspec.convert(given, Settings)
        except msgspec.ValidationError as error:
            raise ConfigError(str(error)) from None
        self._assembly: Assembly | None = None
        self._api: Api | None = None

    async def start(self) -> None:
        """Load the model; seconds for a small one.

        Raises:
            StartupError: it cannot be loaded.
        """
        if self._assembly is not None:
            raise StartupError("it was started already")
        source = await asyncio.to_thread(find_model, self._settings)
        self._assembly = Assembly(self._settings, source)
        try:
            api = await self._assembly.start()
            assert self._assembly.loading is not None, "started above"
            await self._assembly.loading
        except BaseException:
            await self.close()
            raise
        self._api = api

    async def close(self) -> None:
        """End all processes; requests that run are refused."""
        if self._assembly is not None:
            await self._assembly.close()
        if self._api is not None:
            self._api.threads.close()

    async def __aenter__(self) -> AsyncLLM:
        await self.start()
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    async def generate(
        self, prompt: str | list[int], params: SamplingParams | None = None
    ) -> Output:
        """Continue a text, or token ids."""
        return await self._run(await self._completion(prompt, params))

    async def chat(
        self, messages: Messages, params: SamplingParams | None = None, **fields: Any
    ) -> Output:
        """Answer a conversation; `fields` are others of the chat endpoint, such as `tools`."""
        return await self._run(await self._chat(messages, params, fields))

    def stream_generate(
        self, prompt: str | list[int], params: SamplingParams | None = None
    ) -> AsyncIterator[Delta]:
        """As `generate`, but gives the additions to the first answer as they come."""
        return self._stream(self._completion(prompt, params))

    def stream_chat(
        self, messages: Messages, params: SamplingParams | None = None, **fields: Any
    ) -> AsyncIterator[Delta]:
        """As `chat`, but gives the additions to the first answer as they come."""
        return self._stream(self._chat(messages, params, fields))

    async def _completion(
        self, prompt: str | list[int], params: SamplingParams | None
    ) -> Generation:
        fields = {} if params is None else params.fields()
        body = _body(CompletionBody, fields | {"prompt": prompt})
        return await prepare_completion(self._ready(), body)

    async def _chat(
        self, messages: Messages, params: SamplingParams | None, more: dict[str, Any]
    ) -> Generation:
        fields = {} if params is None else params.fields()
        if (logprobs := fields.pop("logprobs", None)) is not None:
            fields |= {"logprobs": True, "top_logprobs": logprobs}
        body = _body(ChatBody, fields | more | {"messages": list(messages)})
        return await prepare_chat(self._ready(), body)

    def _ready(self) -> Api:
        if self._api is None:
            raise StartupError("it is not started: use `async with`, or call `start`")
        return self._api

    async def _run(self, generation: Generation) -> Output:
        return output_of(generation, await generation.collect(self._ready().engine))

    async def _stream(self, preparing: Any) -> AsyncIterator[Delta]:
        generation = await preparing
        deltas: asyncio.Queue[Delta | None] = asyncio.Queue()

        async def sink(stream: Stream, delta: Delta) -> None:
            if stream.index == 0:
                deltas.put_nowait(delta)

        running = asyncio.create_task(generation.run(self._ready().engine, sink))
        running.add_done_callback(lambda _: deltas.put_nowait(None))
        try:
            while (delta := await deltas.get()) is not None:
                yield delta
            await running
        finally:
            running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await running


def _body(body_type: type[B], fields: dict[str, Any]) -> B:
    """The request body with `fields`. Raises BadRequest that names a wrong one."""
    try:
        return msgspec.convert(fields, body_type, strict=True)
    except msgspec.ValidationError as error:
        raise BadRequest(str(error), code="invalid_type") from None
