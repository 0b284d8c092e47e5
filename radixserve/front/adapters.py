"""The adapters that a server serves, by name. They belong to the front: every engine that is
started loads those that are served then.

A name stands for the content that was loaded under it. When an engine finds other content at the
path, the name is not served any more. Knows no HTTP.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

from radixserve.adapters import MOST_ADAPTERS, AdapterInfo, AdapterSource
from radixserve.errors import BadRequest, NotFound, Unavailable
from radixserve.questions import LoadAdapter, Question, UnloadAdapter

T = TypeVar("T")

log = logging.getLogger(__name__)


class Ask(Protocol):
    """Asks the engine (`front.questions.Questions.ask`)."""

    async def __call__(self, question: Question[T], seconds: float | None) -> T: ...


class Adapters:
    """The adapters of one model."""

    def __init__(
        self, sources: Sequence[AdapterSource], ask: Ask, on_change: Callable[[], None]
    ) -> None:
        """`sources` are those of the start; `on_change` is called after each change."""
        self._sources = tuple(sources)
        self._ask, self._on_change = ask, on_change
        self._served: dict[str, AdapterInfo] = {}
        self._changing = asyncio.Lock()
        self._tasks: set[asyncio.Task[AdapterInfo]] = set()

    def __iter__(self) -> Iterator[AdapterInfo]:
        return iter(self._served.values())

    @property
    def names(self) -> tuple[str, ...]:
        """The names, those of a model that still loads included."""
        return tuple(each.name for each in self._sources)

    def get(self, name: str | None) -> AdapterInfo | None:
        """The adapter of this name; None if there is none."""
        return None if name is None else self._served.get(name)

    def with_kv(self, kv_digest: str) -> AdapterInfo | None:
        """An adapter that changes K/V in this way; None if none is served."""
        return next((each for each in self if each.kv_digest == kv_digest), None)

    @property
    def sources(self) -> tuple[AdapterSource, ...]:
        """What the next engine has to load."""
        return self._sources

    @property
    def num_bytes(self) -> int:
        """That they take in memory; two with the same content take it once."""
        return sum({each.digest: each.num_bytes for each in self}.values())

    def take_engine(self, loaded: Sequence[AdapterInfo]) -> None:
        """An engine is ready, which has loaded these."""
        lost = self._served.keys() - {each.name for each in loaded}
        for name in sorted(lost):
            log.error("the adapter %s is not served any more", name)
        self._set({each.name: each for each in loaded})

    def _set(self, served: dict[str, AdapterInfo]) -> None:
        self._served = served
        self._sources = tuple(each.source for each in served.values())
        self._on_change()

    async def load(self, source: AdapterSource) -> AdapterInfo:
        """Serve an adapter from now on. It is loaded even if the caller is cancelled.

        Raises:
            BadRequest: its name is taken, there are too many, or it cannot be served.
            Unavailable: there is no engine, or it ended before the adapter was loaded.
        """
        if len(self._tasks) >= MOST_ADAPTERS:
            raise Unavailable("Too many adapters wait to be loaded.")
        task = asyncio.create_task(self._load(source))
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return await asyncio.shield(task)

    def _ended(self, task: asyncio.Task[AdapterInfo]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.warning("an adapter was not loaded: %s", error)

    async def _load(self, source: AdapterSource) -> AdapterInfo:
        async with self._changing:
            if source.name in self._served:
                text = f"An adapter '{source.name}' is loaded already; unload it first."
                raise BadRequest(text, param="lora_name", code="invalid_value")
            if len(self._served) >= MOST_ADAPTERS:
                text = f"{MOST_ADAPTERS} adapters are loaded, the most that are served."
                raise BadRequest(text, param="lora_name", code="invalid_value")
            info = (await self._ask(LoadAdapter(source=source), None)).info
            self._set({**self._served, info.name: info})
            return info

    async def unload(self, name: str) -> int:
        """Serve no further request with this adapter; returns how many still run with it. Raises
        NotFound if there is none.
        """
        async with self._changing:
            info = self._served.get(name)
            if info is None:
                text = f"There is no adapter '{name}'."
                raise NotFound(text, param="lora_name", code="model_not_found")
            self._set({other: each for other, each in self._served.items() if other != name})
            if any(each.digest == info.digest for each in self):
                return 0
            try:
                return (await self._ask(UnloadAdapter(digest=info.digest), None)).num_running
            except Unavailable:  # the next engine does not load it
                return 0
