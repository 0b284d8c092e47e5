"""`AsyncLLM`: the engine for programs that have an event loop."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

from radixserve.api.context import Api
from radixserve.api.openai.endpoints import prepare_chat, prepare_completion
from radixserve.api.openai.wire import ChatBody, CompletionBody
from radixserve.assembly import Assembly, find
from radixserve.config_sources import from_arguments
from radixserve.each_model import each_model
from radixserve.errors import BadRequest, ConfigError, StartupError, Unavailable
from radixserve.front.generation import Generation
from radixserve.front.stream import Delta, Stream
from radixserve.llm.arguments import body_of, fields_of, listed
from radixserve.llm.output import Output, output_of
from radixserve.llm.params import SamplingParams

Messages = Sequence[dict[str, Any]]
"""Messages as the chat endpoint takes them."""

_DEFAULTS = {"log_level": "warning", "spare_engine": "off"}
_OF_CHAT = "a list of messages, each a dict"


class AsyncLLM:
    """A model that is loaded in a process of its own, with its prefix cache.

        async with AsyncLLM("PATH_OR_HUB_NAME") as llm:
            output = await llm.chat([{"role": "user", "content": "Hello"}])

    Requests may be made at any time and run together; if the task that waits for an answer is
    cancelled, the engine stops working on it. Every method that makes a request raises BadRequest
    for a wrong value, Unavailable if too many wait or the engine does not start, ServerError if the
    request fails, and StartupError before `start`.
    """

    def __init__(self, model: str | os.PathLike[str] | None = None, **settings: Any) -> None:
        """Nothing is loaded yet.

        Args:
            model: a folder, a GGUF file or a hub name; None for the embedded model.
            settings: those of docs/settings.md under the same names. Sizes are bytes or text such
                as "2GiB". Environment variables are not read. Two have other defaults: `log_level`
                is "warning", and `spare_engine` "off", because a script ends soon.

        Raises:
            ConfigError: there is no such setting, its value is wrong, two contradict each other, or
                it is `warm`.
        """
        one, *others = each_model(from_arguments(_DEFAULTS | settings | {"model": model}))
        if others:
            raise ConfigError("several models are for servers; here, make an object for each")
        self._settings = one
        if self._settings.warm is not None:
            raise ConfigError("warm is for servers; here, generate one token for each prompt")
        self._process: int | None = None  # that has started it
        self._loop: asyncio.AbstractEventLoop | None = None  # the one that it runs on
        self._assembly: Assembly | None = None
        self._api: Api | None = None

    async def start(self) -> None:
        """Start the processes and load the model; seconds for a small one. After a failure it may
        be called again.

        Raises:
            StartupError: the model or the store's folder cannot be used, or it was started before.
        """
        if self._process is not None:
            raise StartupError("it was started already; one that was closed stays closed")
        self._process, self._loop = os.getpid(), asyncio.get_running_loop()
        try:
            self._api = await self._started()
        except BaseException:
            await self.close()
            self._process = self._assembly = None
            raise

    async def _started(self) -> Api:
        source = await asyncio.to_thread(find, self._settings)
        self._assembly = Assembly(self._settings, source)
        api = await self._assembly.start()
        assert self._assembly.loading is not None, "started above"
        await self._assembly.loading
        return api

    async def close(self) -> None:
        """End all processes. Requests that run end with Unavailable. It can be called again. In a
        forked process it does nothing, because the processes are those of the parent.
        """
        if self._process != os.getpid():
            return
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
        """Continue `prompt`, a text or token ids, without a chat template."""
        return await self._run(await self._completion(prompt, params))

    async def chat(
        self, messages: Messages, params: SamplingParams | None = None, **fields: Any
    ) -> Output:
        """Answer a conversation. `fields` are further fields of the chat endpoint (docs/api.md),
        such as `tools`; they win over those of `params`.
        """
        return await self._run(await self._chat(messages, params, fields))

    def stream_generate(
        self, prompt: str | list[int], params: SamplingParams | None = None
    ) -> AsyncIterator[Delta]:
        """As `generate`, but gives the additions to the first answer as they come. An iterator
        that is left early ends the request when it is closed.
        """
        return self._stream(lambda: self._completion(prompt, params))

    def stream_chat(
        self, messages: Messages, params: SamplingParams | None = None, **fields: Any
    ) -> AsyncIterator[Delta]:
        """As `chat`, but gives the additions to the first answer as they come."""
        return self._stream(lambda: self._chat(messages, params, fields))

    async def _completion(
        self, prompt: str | list[int], params: SamplingParams | None
    ) -> Generation:
        body = body_of(CompletionBody, fields_of(params) | {"prompt": prompt})
        return await prepare_completion(self._ready(), body)

    async def _chat(
        self, messages: Messages, params: SamplingParams | None, more: dict[str, Any]
    ) -> Generation:
        fields = fields_of(params)
        if (logprobs := fields.pop("logprobs", None)) is not None:
            fields |= {"logprobs": True, "top_logprobs": logprobs}
        if more.get("stream"):
            message = "'stream' is not taken here: AsyncLLM.stream_chat gives a stream."
            raise BadRequest(message, param="stream", code="invalid_value")
        conversation = {"messages": listed(messages, "messages", _OF_CHAT)}
        body = body_of(ChatBody, fields | more | conversation)
        return await prepare_chat(self._ready(), body)

    def _ready(self) -> Api:
        if self._api is None:
            raise StartupError("it is not started: use `async with`, or call `start`")
        refuse_forked(self._process)
        if self._loop is not asyncio.get_running_loop():
            message = "It belongs to the event loop that started it, which is another one."
            raise Unavailable(message, code="server_not_ready")
        return self._api

    async def _run(self, generation: Generation) -> Output:
        return output_of(generation, await generation.collect(self._ready().engine))

    async def _stream(self, prepare: Callable[[], Awaitable[Generation]]) -> AsyncIterator[Delta]:
        generation = await prepare()
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


def refuse_forked(process: int | None) -> None:
    """Raises Unavailable unless this is `process`. A fork has copies of its parent's sockets, and
    none of the threads that read them, so a request would never be answered.
    """
    if process != os.getpid():
        raise Unavailable(
            "It belongs to the process that forked this one: make one here, or start processes "
            "by 'spawn'.",
            code="server_not_ready",
        )
