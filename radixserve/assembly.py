"""Puts the parts of one model together, without HTTP: the engine and the tokenizer with their
processes, and what handlers need to know of them.

The server and the Python interface both stand on it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from radixserve.api.access import is_loopback
from radixserve.api.context import Api
from radixserve.api.settings import ApiSettings
from radixserve.checkpoints.embedded import EMBEDDED_DEFAULTS, EMBEDDED_NAME
from radixserve.checkpoints.source import ModelSource, find_model
from radixserve.config import Settings
from radixserve.defaults import Defaults, load_defaults
from radixserve.errors import ConfigError, StartupError
from radixserve.front.auto_budget import AutoBudget
from radixserve.front.child import Child
from radixserve.front.client import ProcessEngine
from radixserve.front.kv_events import KVEvents
from radixserve.front.traffic_log import TrafficLog
from radixserve.metrics import Metrics
from radixserve.preparations import check_folders, for_engine
from radixserve.step import EngineInfo
from radixserve.text.client import ProcessTokenizer, TokenizerProcesses
from radixserve.text.messages import Start

log = logging.getLogger(__name__)

_LOAD_SECONDS = 120.0  # time for a tokenizer process to import its libraries and read a local model


def find(settings: Settings) -> ModelSource:
    """The model that `settings` name, downloaded or converted if need be, after `check_folders`.

    Raises:
        StartupError: the store's folder or the model cannot be used.
    """
    check_folders(settings)
    return find_model(settings)


def find_each(each: Sequence[Settings]) -> list[ModelSource]:
    """The models that the settings of `each_model` name, downloaded or converted if need be.

    Raises:
        StartupError: one of them cannot be used, or two have the same name.
    """
    if len(each) == 1:
        return [find_model(each[0])]
    sources: list[ModelSource] = []
    taken: dict[str, str] = {}  # the model that has a name
    for settings in each:
        model = "".join(settings.model) or EMBEDDED_NAME
        try:
            sources.append(find_model(settings))
        except StartupError as error:
            raise StartupError(f"{model}: {error}") from error
        for name in sources[-1].names:
            if name in taken:
                raise ConfigError(
                    f"{taken[name]} and {model} would both be called {name!r}: give each a name "
                    "of its own, as NAME=MODEL"
                )
            taken[name] = model
    return sources


class Assembly:
    """The parts of one model. `start` them, and `close` them in every case."""

    def __init__(
        self,
        settings: Settings,
        source: ModelSource,
        first: Child | None = None,
        *,
        is_one_of_several: bool = False,
    ) -> None:
        """`first` is the process of the engine if it was begun, with settings `for_engine`. One of
        several models shares the K/V budget with the others, and is named when it is refused.

        Raises:
            StartupError: a setting cannot be used.
        """
        model, name = str(source.folder), source.names[0]
        self.metrics = Metrics(name, aliases=settings.metric_aliases)
        self.settings = settings
        self._names = source.names
        self._is_one_of_several = is_one_of_several
        self._limits = ApiSettings.of(settings, _defaults(settings, source))
        self._processes = TokenizerProcesses(
            _tokenizer_start(settings, model),
            settings.tokenizer_processes,
            self._limits.max_tokenizing,
            self.metrics.tokenizer_restarted,
        )
        metrics = self.metrics
        on_events = (metrics.observe_steps, metrics.engine_restarted, metrics.request_resumed)
        self.engine = ProcessEngine(for_engine(settings), model, *on_events, first)
        self.engine.live_settings.shares_budget = is_one_of_several
        self.engine.traffic = _traffic_log(settings)
        self.loading: asyncio.Task[EngineInfo] | None = None
        self._moving: asyncio.Task[None] | None = None  # budgets that move by themselves

    @property
    def name(self) -> str:
        """The name of the model in answers."""
        return self._names[0]

    async def start(self) -> Api:
        """Start both kinds of processes, and wait for the tokenizer. The model loads meanwhile:
        `loading` ends when the engine is ready.

        Raises:
            StartupError: the tokenizer cannot be loaded.
        """
        return self.api(await self.begin())

    async def begin(self) -> ProcessTokenizer:
        """As `start`, and return the tokenizer, for `api`."""
        self.engine.kv_events = _kv_events(self.settings)
        # Both import libraries for seconds, so they start at the same time.
        self.loading = asyncio.create_task(self._load())
        moves = self.settings.kv_budget_max or self.settings.host_budget_max
        if moves and not self._is_one_of_several:
            auto = AutoBudget(self.engine, self.settings, self.budget_moved)
            self._moving = asyncio.create_task(auto.run())
        with self._named_if_refused():
            return await self._processes.start()

    async def _load(self) -> EngineInfo:
        with self._named_if_refused():
            return await self.engine.start()

    @contextlib.contextmanager
    def _named_if_refused(self) -> Iterator[None]:
        try:
            yield
        except StartupError as error:
            if self._is_one_of_several:
                raise StartupError(f"{self.name}: {error}") from error
            raise

    def api(self, tokenizer: ProcessTokenizer, beside: Api | None = None) -> Api:
        """What handlers use for this model, `beside` that of another one if there are several.
        Raises ConfigError if the file of keys or of the secret cannot be used.
        """
        limits = _with_end_of_text(self._limits, tokenizer.eos_token_id, self.settings)
        make = Api.of if beside is None else beside.beside
        return make(self.engine, tokenizer, self.metrics, limits, self._names)

    def budget_moved(self, setting: str) -> None:
        """Count that a budget has moved by itself."""
        self.metrics.setting_changed(setting, "auto")

    async def close(self) -> None:
        """End all processes; requests that run end with "abort"."""
        if self._moving is not None:
            self._moving.cancel()
            await asyncio.wait([self._moving])
        if self.loading is not None:
            self.loading.cancel()
            await asyncio.gather(self.loading, self.engine.stop(), return_exceptions=True)
        await self._processes.close()
        if self.engine.traffic is not None:
            self.engine.traffic.close()
        if self.engine.kv_events is not None:
            await self.engine.kv_events.close()


def _traffic_log(settings: Settings) -> TrafficLog | None:
    """Raises StartupError if the file cannot be written."""
    if settings.record is None:
        return None
    return TrafficLog(Path(settings.record), settings.record_key)


def _kv_events(settings: Settings) -> KVEvents | None:
    """Raises StartupError if an address cannot be used, or pyzmq is missing."""
    if settings.kv_events is None:
        return None
    events = KVEvents(
        settings.kv_events,
        settings.kv_events_replay,
        settings.kv_events_topic,
        settings.kv_events_block,
    )
    for address in filter(None, (events.address, events.replay_address)):
        if not _is_local(address):
            log.warning("KV events at %s: who can connect can read the tokens of prompts", address)
    log.info("KV events at %s, replay at %s", events.address, events.replay_address or "no address")
    return events


def _is_local(address: str) -> bool:
    """Whether only this machine can reach a ZeroMQ address."""
    transport, _, place = address.partition("://")
    return transport != "tcp" or is_loopback(place.rpartition(":")[0])


def _tokenizer_start(settings: Settings, model: str) -> Start:
    return Start(
        model,
        _LOAD_SECONDS,
        settings.render_seconds,
        None if settings.chat_template is None else _read_template(Path(settings.chat_template)),
        settings.allow_control_tokens,
    )


def _read_template(file: Path) -> str:
    """The chat template in `file`. Raises StartupError if the file cannot be read as text."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or "it is no UTF-8 text"
        raise StartupError(f"cannot read the chat template {str(file)!r}: {reason}") from error
    if not text.strip():
        raise StartupError(f"the chat template {str(file)!r} is empty")
    return text


def _defaults(settings: Settings, source: ModelSource) -> Defaults:
    """The default values of requests. Raises ConfigError for a wrong setting."""
    shipped = None
    if not settings.model:
        shipped = {} if settings.fake_model else EMBEDDED_DEFAULTS
    return load_defaults(settings, source.folder, shipped)


def _with_end_of_text(
    limits: ApiSettings, eos_token_id: int | None, settings: Settings
) -> ApiSettings:
    """`limits` with the tokenizer's end-of-text token as a stop token; the fake model has none."""
    if eos_token_id is None or settings.fake_model:
        return limits
    return replace(limits, defaults=limits.defaults.stopping_also((eos_token_id,)))
