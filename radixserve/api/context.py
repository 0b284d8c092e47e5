"""The objects and facts that every handler needs, in one value for each model, stored on the
application. `make_app` owns them; they hold no request state.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from aiohttp import web

from radixserve.api.answer_formats import AnswerFormats
from radixserve.api.keys import Keys
from radixserve.api.namespaces import Namespaces, tenant_secret
from radixserve.api.settings import ApiSettings
from radixserve.api.tenant_limits import TenantLimits
from radixserve.api.ui.state import PageState
from radixserve.api.volatile import VolatilePrefixes
from radixserve.errors import Unavailable
from radixserve.front.protocol import EngineClient
from radixserve.front.shared_budget import SharedBudget
from radixserve.places import Places, Turns
from radixserve.step import EngineInfo

if TYPE_CHECKING:
    from radixserve.metrics import Metrics
    from radixserve.telemetry.spans import Traces
    from radixserve.text.client import TokenizerClient

T = TypeVar("T")


class TokenizerThreads:
    """Runs detokenising in threads beside the event loop, with a bound on running and on waiting
    calls.
    """

    def __init__(self, settings: ApiSettings) -> None:
        self._executor = ThreadPoolExecutor(
            settings.tokenizer_threads, thread_name_prefix="tokenizer"
        )
        self._places = Places(settings.max_tokenizing, "Too many texts wait for a thread.")
        self._turns = Turns(settings.tokenizer_threads)

    async def run(self, call: Callable[[], T]) -> T:
        """Run `call` in a thread. Raises Unavailable if too many calls wait already."""
        with self._places.one():
            async with self._turns.one():
                return await asyncio.get_running_loop().run_in_executor(self._executor, call)

    def close(self) -> None:
        self._executor.shutdown(wait=False, cancel_futures=True)


@dataclass(slots=True)
class Readiness:
    """Why the server is not ready although its engine works; None: no reason."""

    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Api:
    """The collaborators and facts that handlers use for requests to one model. What models share is
    the same object in each: threads, keys, namespaces, limits, readiness, traces and
    the budget.
    """

    engine: EngineClient
    tokenizer: TokenizerClient
    metrics: Metrics
    settings: ApiSettings
    model_names: tuple[str, ...]  # answers carry the first
    created: int  # creation time of the model in answers, seconds since the epoch
    threads: TokenizerThreads
    formats: AnswerFormats
    volatile: VolatilePrefixes
    keys: Keys
    namespaces: Namespaces
    limits: TenantLimits
    ui: PageState
    readiness: Readiness
    traces: Traces | None = None  # None: none are made
    shared_budget: SharedBudget | None = None  # of several models; None: there is one

    @classmethod
    def of(
        cls,
        engine: EngineClient,
        tokenizer: TokenizerClient,
        metrics: Metrics,
        settings: ApiSettings,
        model_names: tuple[str, ...],
    ) -> Api:
        """The value for a server that starts now. Raises ConfigError if the file of keys or of
        the secret cannot be used.
        """
        formats = AnswerFormats.of(tokenizer, settings.tool_parser, settings.reasoning_parser)
        threads = TokenizerThreads(settings)
        volatile = VolatilePrefixes(settings.volatile_prefix, metrics.volatile_line_removed)
        keys, secret = Keys(settings.api_key, settings.api_key_file), None
        if keys.has_file:
            secret = tenant_secret(settings.tenant_secret, settings.disk_path)
        return cls(
            engine=engine,
            tokenizer=tokenizer,
            metrics=metrics,
            settings=settings,
            model_names=model_names,
            created=int(time.time()),
            threads=threads,
            formats=formats,
            volatile=volatile,
            keys=keys,
            namespaces=Namespaces(secret),
            limits=TenantLimits(),
            ui=PageState(engine),
            readiness=Readiness(),
        )

    def beside(
        self,
        engine: EngineClient,
        tokenizer: TokenizerClient,
        metrics: Metrics,
        settings: ApiSettings,
        model_names: tuple[str, ...],
    ) -> Api:
        """The value for another model of the same server."""
        return replace(
            self,
            engine=engine,
            tokenizer=tokenizer,
            metrics=metrics,
            settings=settings,
            model_names=model_names,
            formats=AnswerFormats.of(tokenizer, settings.tool_parser, settings.reasoning_parser),
            volatile=VolatilePrefixes(settings.volatile_prefix, metrics.volatile_line_removed),
            ui=PageState(engine),
        )

    @property
    def model_name(self) -> str:
        """The name that answers carry, whichever name a request used."""
        return self.model_names[0]

    def info(self) -> EngineInfo:
        """The engine's facts. Raises Unavailable while no request is accepted."""
        reason, info = self.engine.refusal_reason, self.engine.info
        if reason is not None or info is None:
            raise Unavailable(
                f"The server takes no requests now: {reason or 'loading'}.", code="server_not_ready"
            )
        return info

    @property
    def unready_reason(self) -> str | None:
        """Why clients should go elsewhere, even if requests are accepted; None when all is well."""
        return self.engine.unready_reason or self.readiness.reason


API = web.AppKey("api", Api)
"""Of the first model."""

CHOSEN = web.RequestKey("api", Api)
"""Of the model that a request names, where there are several."""


def api_of(request: web.Request) -> Api:
    """What handlers use for `request`."""
    return request[CHOSEN] if CHOSEN in request else request.app[API]
