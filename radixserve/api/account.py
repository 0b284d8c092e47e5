"""The outcome of one generation request: exactly one metrics record and one log line, however it
ends.

Outcomes: stop and length (of the first choice); rejected: refused before the engine accepted it;
abort: the client disconnected; error: the server could not finish an accepted request.
"""

from __future__ import annotations

import asyncio
import logging
import time

from radixserve.api.generation import Choice, usage_of
from radixserve.api.validate import Generation
from radixserve.errors import ApiError
from radixserve.metrics import RequestRecord

log = logging.getLogger("radixserve.api")


class Account:
    """Set `generation` and `choices` when they exist; call `close` exactly once."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self._arrived = time.monotonic()
        self._failure: str | None = None
        self.generation: Generation | None = None
        self.choices: list[Choice] = []

    def fail(self, error: BaseException) -> None:
        """Record the failure that ended the request; the first one counts."""
        if self._failure is not None:
            return
        if isinstance(error, (asyncio.CancelledError, ConnectionError)):
            self._failure = "abort"
        elif isinstance(error, ApiError) and not any(choice.accepted for choice in self.choices):
            self._failure = "rejected"
        else:
            self._failure = "error"

    def close(self) -> RequestRecord:
        """Log the request's line and return its record for the metrics. A refused request is not
        logged here, because its error has been.
        """
        record = self._record()
        if record.outcome == "rejected":
            return record
        generation_id = self.generation.id if self.generation is not None else "-"
        log.info(
            "%s %s %s prompt=%d cached=%d generated=%d ttft=%s e2e=%.3fs%s",
            record.endpoint,
            generation_id,
            record.outcome,
            record.prompt_tokens,
            record.cached_tokens,
            record.generated_tokens,
            "-" if record.ttft_seconds is None else f"{record.ttft_seconds:.3f}s",
            time.monotonic() - self._arrived,
            f" {self.generation.told}" if self.generation is not None else "",
        )
        return record

    def _record(self) -> RequestRecord:
        accepted = [choice for choice in self.choices if choice.accepted]
        usage = (
            usage_of(self.choices, self.generation.num_choices)
            if self.generation and accepted
            else None
        )
        firsts = [choice.first_token_at for choice in accepted if choice.first_token_at is not None]
        return RequestRecord(
            endpoint=self._endpoint,
            outcome=self._failure or self._finish(),
            prompt_tokens=usage.prompt_tokens if usage else 0,
            cached_tokens=usage.prompt_tokens_details.cached_tokens if usage else 0,
            generated_tokens=usage.completion_tokens if usage else 0,
            queue_seconds=accepted[0].queue_seconds if accepted else None,
            ttft_seconds=min(firsts) - self._arrived if firsts else None,
            e2e_seconds=time.monotonic() - self._arrived if accepted else None,
            inter_token_seconds=[gap for choice in accepted for gap in choice.inter_token_seconds],
        )

    def _finish(self) -> str:
        return self.choices[0].finish_reason or "error" if self.choices else "error"
