"""Warms the prompts of a file when the server starts, and again after each death of the engine.

A line is a body as POST /cache/warm takes it. One that is refused or fails is a warning that names
file and line, and is left out from then on, so that a prompt that kills the engine does not do so
to every engine.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from radixserve.api.cache.bodies import known_tenant
from radixserve.api.cache.warm import Warmed, computed, prompt_only
from radixserve.api.context import Api
from radixserve.api.refusals import missing
from radixserve.body_file import FileBody
from radixserve.errors import ApiError, Unavailable
from radixserve.front.generation import Generation
from radixserve.progress import long_stage
from radixserve.tenants import DEFAULT

log = logging.getLogger(__name__)

_TELL_SECONDS: Final = 10.0  # between two lines of the log about the progress
_TRIES: Final = 5  # of a body while the server is busy, each after the time that it tells
_TRY_AGAIN_SECONDS: Final = 1.0  # if it tells none


class Warmup:
    """The prompts of one file. Nothing is warmed before `run`."""

    def __init__(
        self,
        api: Api,
        path: str,
        bodies: Sequence[FileBody],
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._api, self._path, self._pause = api, path, pause
        self._bodies = list(bodies)
        self._engine_is_new = asyncio.Event()
        self.done_once = asyncio.Event()  # all of the file was tried

    def engine_is_ready(self) -> None:
        """A new engine has nothing on the device."""
        self._engine_is_new.set()

    async def run(self) -> None:
        """Warm, and warm again whenever there is another engine, until it is cancelled."""
        while True:
            self._engine_is_new.clear()
            await self._warm_all()
            self.done_once.set()
            await self._engine_is_new.wait()

    async def _warm_all(self) -> None:
        began, num_bodies = time.monotonic(), len(self._bodies)
        done: list[Warmed] = []
        what = f"warming the prompts of {self._path}"
        with long_stage(what, num_bodies, lambda: len(done), _TELL_SECONDS):
            for body in list(self._bodies):
                warmed = await self._warmed(body)
                if warmed is not None:
                    done.append(warmed)
        log.info(
            "warmed %d of %d prompts of %s in %.1f s: %d tokens, %d of them were cached",
            *(len(done), num_bodies, self._path, time.monotonic() - began),
            *(sum(each.prompt_tokens for each in done), sum(each.cached_tokens for each in done)),
        )

    async def _warmed(self, body: FileBody) -> Warmed | None:
        """What warming a body took; None, after a warning, if it cannot be warmed."""
        for _ in range(_TRIES):
            try:
                return await computed(self._api, await self._generation(body))
            except Unavailable as error:
                reason: Exception = error
                await self._pause(error.retry_after or _TRY_AGAIN_SECONDS)
            except Exception as error:
                reason = error
                self._bodies.remove(body)
                break
        trace = None if isinstance(reason, ApiError) else reason
        where = f"{self._path}, line {body.line}"
        log.warning("%s is not warmed: %s", where, reason, exc_info=trace)
        return None

    async def _generation(self, body: FileBody) -> Generation:
        """The generation of a body, for the tenant that it names. Raises the refusal."""
        fields = dict(body.fields)
        name, tenant = fields.pop("tenant", None), DEFAULT
        if name is not None:
            tenant = known_tenant(self._api, name)
        elif self._api.keys.has_file:
            raise missing("tenant")  # without one nobody would find what is warm
        return await prompt_only(self._api, fields, tenant)
