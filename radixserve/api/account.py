"""The account of one request: whoever counts requests or shows them is told of its beginning and of
its end, exactly once, however it ends.
"""

from __future__ import annotations

from types import TracebackType

from aiohttp import web

from radixserve.api.access import tenant_of
from radixserve.api.context import api_of
from radixserve.api.request_id import request_id_of
from radixserve.front.generation import Generation, outcome_of
from radixserve.metrics import RequestRecord
from radixserve.telemetry.asked import Asked


class Account:
    """Tells the tenant's limits, the page, the metrics and the traces; a context manager around all
    work on a request.
    """

    def __init__(self, request: web.Request, endpoint: str, arrived: float) -> None:
        self._api = api_of(request)
        self._tenant = tenant_of(request)
        self._asked = Asked(
            request.headers, request_id_of(request), endpoint, self._api.model_name, arrived
        )
        self._generation: Generation | None = None

    def open(self, generation: Generation) -> None:
        """The body passed all checks and became `generation`, which is run from now on."""
        self._generation = generation
        self._api.limits.use_tokens(self._tenant, generation.counts().prompt)
        self._api.ui.live.begin(generation)

    def __enter__(self) -> Account:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        if self._generation is not None:
            if error is not None:
                self._generation.fail(error)
            self._close(self._generation)
        elif error is not None:
            self._refuse(error)

    def _close(self, generation: Generation) -> None:
        """Tell how the generation ended. A prompt that the engine refused costs nothing."""
        record, counts = generation.close(), generation.counts()
        refused = record.outcome == "rejected"
        api = self._api
        api.limits.use_tokens(self._tenant, -counts.prompt if refused else counts.generated)
        api.ui.live.end(generation, record.outcome)
        api.metrics.record(record)
        if api.traces is not None:
            api.traces.answered(self._asked, generation, record)

    def _refuse(self, error: BaseException) -> None:
        """Tell that the body was refused, or its client gone, before anything was run."""
        outcome = outcome_of(error)
        self._api.metrics.record(RequestRecord(self._asked.endpoint, outcome))
        if self._api.traces is not None:
            self._api.traces.refused(self._asked, outcome, getattr(error, "code", None))
