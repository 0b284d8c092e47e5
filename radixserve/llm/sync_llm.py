"""`LLM`: the engine for scripts, with lists of prompts and a progress bar."""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any, TypeVar

from rich.progress import Progress

from radixserve.errors import BadRequest, Unavailable
from radixserve.llm.arguments import listed
from radixserve.llm.async_llm import AsyncLLM, Messages, refuse_forked
from radixserve.llm.output import Output
from radixserve.llm.params import SamplingParams

T = TypeVar("T")
_AT_ONCE = 64  # requests that are in the engine or wait there
_OF_PROMPTS = "a text, or a list of texts or of lists of token ids"
_OF_CONVERSATIONS = "a list of messages, each a dict, or a list of such lists"
_CANCEL_SECONDS = 10.0  # in which a call that is interrupted has to end


class LLM:
    """A model that is loaded in a process of its own, with its prefix cache.

        with LLM("PATH_OR_HUB_NAME") as llm:
            for output in llm.generate(["The capital of France is", "2 + 2 ="]):
                print(output.text)

    Prompts of one call run together, and those that begin alike share what was computed. If one of
    them is refused or fails, the call raises that error, as `AsyncLLM` does, and the others are
    cancelled. Ctrl-C cancels a call, too; the next one may follow. Its event loop runs in a thread
    of its own, so it also works where a loop runs already, as in a notebook, and in several threads
    at a time. It is ready when it is made, and ends its processes when it is closed, forgotten, or
    at the end of the program.
    """

    def __init__(self, model: str | os.PathLike[str] | None = None, **settings: Any) -> None:
        """See `AsyncLLM`. Raises ConfigError for a wrong setting, and StartupError if the model
        cannot be loaded.
        """
        self._llm = AsyncLLM(model, **settings)
        self._process = os.getpid()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="llm", daemon=True)
        self._thread.start()
        try:
            self._call(self._llm.start)
        except BaseException:
            _end(self._loop, self._thread)
            raise
        self._closing = weakref.finalize(
            self, _close, self._llm, self._loop, self._thread, self._process
        )

    def close(self) -> None:
        """End all processes. It can be called again."""
        self._closing()

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def generate(
        self,
        prompts: str | Sequence[str] | Sequence[list[int]],
        params: SamplingParams | None = None,
        *,
        progress: bool = False,
    ) -> list[Output]:
        """Continue each of `prompts`, texts or lists of token ids; one output per prompt, in
        order. `progress` shows a bar on the terminal.
        """
        each = [prompts] if isinstance(prompts, str) else listed(prompts, "prompts", _OF_PROMPTS)
        return self._all([lambda p=p: self._llm.generate(p, params) for p in each], progress)  # type: ignore[misc]

    def chat(
        self,
        conversations: Messages | Sequence[Messages],
        params: SamplingParams | None = None,
        *,
        progress: bool = False,
        **fields: Any,
    ) -> list[Output]:
        """Answer each conversation, or one; `fields` are others of the chat endpoint, such as
        `tools`.
        """
        if "messages" in fields:
            message = "'messages' is the first argument, without a name."
            raise BadRequest(message, param="messages", code="invalid_value")
        given: list[Any] = listed(conversations, "conversations", _OF_CONVERSATIONS)
        each = [given] if given and isinstance(given[0], Mapping) else given
        return self._all(
            [lambda m=m: self._llm.chat(m, params, **fields) for m in each],  # type: ignore[misc]
            progress,
        )

    def _all(self, calls: list[Callable[[], Awaitable[Output]]], progress: bool) -> list[Output]:
        with Progress(disable=not progress) as bar:
            task = bar.add_task("prompts", total=len(calls))
            return self._call(lambda: _gather(calls, lambda: bar.advance(task)))

    def _call(self, call: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run `call` on the loop's thread. If the caller is interrupted it is cancelled, and has
        ended when the interrupt is raised.
        """
        refuse_forked(self._process)
        if not self._thread.is_alive():
            raise Unavailable("It was closed.", code="server_not_ready")
        ended = threading.Event()
        future = asyncio.run_coroutine_threadsafe(_told(call(), ended), self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            ended.wait(_CANCEL_SECONDS)
            raise


def _close(
    llm: AsyncLLM, loop: asyncio.AbstractEventLoop, thread: threading.Thread, process: int
) -> None:
    if os.getpid() == process:  # a fork has a copy of the loop, which nothing runs
        asyncio.run_coroutine_threadsafe(llm.close(), loop).result()
        _end(loop, thread)


def _end(loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


async def _told(coroutine: Coroutine[Any, Any, T], ended: threading.Event) -> T:
    """The result of `coroutine`; `ended` is set when it has ended in any way."""
    try:
        return await coroutine
    finally:
        ended.set()


async def _gather(
    calls: list[Callable[[], Awaitable[Output]]], advance: Callable[[], None]
) -> list[Output]:
    """The results of `calls`, at most `_AT_ONCE` at a time. If one raises the others are
    cancelled.
    """
    turns = asyncio.Semaphore(_AT_ONCE)

    async def one(call: Callable[[], Awaitable[Output]]) -> Output:
        async with turns:
            output = await call()
        advance()
        return output

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(call)) for call in calls]
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]
