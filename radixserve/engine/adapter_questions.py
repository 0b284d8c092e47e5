"""Answers the front's questions about adapters: loads them on a thread while steps go on, and gives
what they take to K/V again.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from radixserve.cache.survey import Parts
from radixserve.engine.adapters import LoadedAdapter, tell
from radixserve.engine.configuring import Configuring
from radixserve.engine.scheduler import Scheduler
from radixserve.errors import AdapterRefused
from radixserve.questions import (
    AdapterLoaded,
    AdapterUnloaded,
    AnyAnswer,
    Failed,
    LoadAdapter,
    UnloadAdapter,
)


class AdapterQuestions:
    """The questions of one engine."""

    def __init__(
        self,
        scheduler: Scheduler,
        configuring: Configuring,
        awaited: Callable[[Future[LoadedAdapter]], Parts[None]],
    ) -> None:
        """`awaited` waits for a future while steps go on."""
        self._scheduler, self._configuring, self._awaited = scheduler, configuring, awaited
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="adapters")

    def load(self, question: LoadAdapter) -> Parts[AnyAnswer]:
        """Load an adapter, and make room for it by a smaller budget of K/V."""
        adapters = self._scheduler.adapters
        loading = self._thread.submit(adapters.load, question.source)
        yield from self._awaited(loading)
        try:
            adapter = loading.result()
        except AdapterRefused as refusal:
            return Failed(message=str(refusal), refused=True)
        info = adapters.add(question.source, adapter)
        yield from self._configuring.resize_kv()
        tell(info)
        return AdapterLoaded(info)

    def unload(self, question: UnloadAdapter) -> Parts[AnyAnswer]:
        """Serve no further request with an adapter."""
        num_running = self._scheduler.adapters.retire(question.digest)
        yield from self._configuring.resize_kv()
        return AdapterUnloaded(num_running)
