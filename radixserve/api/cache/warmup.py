"""Warms prompts when the server starts, and again after each death of the engine: those of a file
(`warm_file`) and what pins held (`warm_pins`).

A prompt that is refused or fails is a warning that names it, and is left out from then on, so that
one that kills the engine does not do so to every engine.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

import msgspec

from radixserve.api.cache.warm import Warmed, computed
from radixserve.api.context import Api
from radixserve.errors import ApiError, Unavailable
from radixserve.front.generation import Generation
from radixserve.progress import long_stage
from radixserve.waiting import unless_set

log = logging.getLogger(__name__)

_TELL_SECONDS: Final = 10.0  # between two lines of the log about the progress
_TRIES: Final = 5  # of a prompt while the server is busy, each after the time that it tells
_TRY_AGAIN_SECONDS: Final = 1.0  # if it tells none


@dataclass(frozen=True, slots=True)
class WarmPrompt:
    """A prompt that an engine is to have."""

    name: str  # in the log
    generation: Callable[[], Awaitable[Generation]]  # raises the refusal
    leave_out: Callable[[], object]  # of what later engines are to have
    is_over: asyncio.Event = field(default_factory=asyncio.Event)  # nobody wants it any more


class Prompts(Protocol):
    """Some prompts that every engine is to have."""

    what: str  # they are, in the log

    def now(self) -> Sequence[WarmPrompt]:
        """Those that an engine which begins now is to have."""


class Warmup:
    """Prompts of several kinds. Nothing is warmed before `run`."""

    def __init__(
        self,
        api: Api,
        kinds: Sequence[Prompts],
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._api, self._kinds, self._pause = api, kinds, pause
        self._engine_is_new = asyncio.Event()
        self.done_once = asyncio.Event()  # all prompts were tried

    def engine_is_ready(self) -> None:
        """A new engine has nothing on the device."""
        self._engine_is_new.set()

    async def run(self) -> None:
        """Warm, and warm again whenever there is another engine, until it is cancelled."""
        while True:
            self._engine_is_new.clear()
            for kind in self._kinds:
                await self._warm(kind.what, kind.now())
            self.done_once.set()
            await self._engine_is_new.wait()

    async def _warm(self, what: str, prompts: Sequence[WarmPrompt]) -> None:
        """Warm `prompts` one after the other, and tell the log."""
        if not prompts:
            return
        began, num_prompts = time.monotonic(), len(prompts)
        done: list[Warmed] = []
        with long_stage(
            f"warming {num_prompts} {what}", num_prompts, lambda: len(done), _TELL_SECONDS
        ):
            for prompt in prompts:
                warmed = await unless_set(prompt.is_over, self._warmed(prompt))
                if warmed is not None:
                    done.append(warmed)
        log.info(
            "warmed %d of %d %s in %.1f s: %d tokens, %d of them were cached",
            *(len(done), num_prompts, what, time.monotonic() - began),
            *(sum(each.prompt_tokens for each in done), sum(each.cached_tokens for each in done)),
        )

    async def _warmed(self, prompt: WarmPrompt) -> Warmed | None:
        """What warming a prompt took; None, after a warning, if it cannot be warmed."""
        for _ in range(_TRIES):
            try:
                generation = await prompt.generation()
                _renew_no_pins(generation)
                return await computed(self._api, generation)
            except Unavailable as error:
                reason: Exception = error
                await self._pause(error.retry_after or _TRY_AGAIN_SECONDS)
            except Exception as error:
                reason = error
                prompt.leave_out()
                break
        trace = None if isinstance(reason, ApiError) else reason
        log.warning("%s is not warmed: %s", prompt.name, reason, exc_info=trace)
        return None


def _renew_no_pins(generation: Generation) -> None:
    """Nobody uses it, so pins do not last longer for it."""
    for stream in generation.streams:
        stream.request = msgspec.structs.replace(stream.request, renews_pins=False)
