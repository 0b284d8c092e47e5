"""The format of log lines: one line each on stderr, with time, level, process and module.

Front and engine call `configure_logging` once, at start. Each module decides what it logs; the rule
is one line per request at level info and none per step. Lines that are logged while a request is
handled carry the id that its client sees in `x-request-id`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextvars import ContextVar
from typing import Final

REQUEST_ID: Final[ContextVar[str]] = ContextVar("request_id", default="")
"""The id of the request that the current task handles; empty outside of requests."""

_FORMAT: Final = "%%(asctime)s %%(levelname)-7s %s %%(name)s:%%(request)s %%(message)s"


def configure_logging(level: str, role: str = "front") -> None:
    """Send everything from `level` ("debug" to "error") up to stderr, with the process named by its
    `role`; libraries log from warning up.
    """
    handler = logging.StreamHandler()
    handler.addFilter(_add_request)
    levels = max(logging.WARNING, _number(level))
    logging.basicConfig(format=_FORMAT % role, level=levels, handlers=[handler], force=True)
    logging.getLogger("radixserve").setLevel(_number(level))
    logging.captureWarnings(True)


def _number(level: str) -> int:
    return logging.getLevelNamesMapping()[level.upper()]


def _add_request(record: logging.LogRecord) -> bool:
    identity = REQUEST_ID.get()
    record.request = f" [{identity}]" if identity else ""
    return True


class Seldom:
    """Logs a warning at most once in `seconds`, with the number of warnings left out."""

    def __init__(
        self,
        logger: logging.Logger,
        seconds: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._logger = logger
        self._seconds = seconds
        self._clock = clock
        self._next: float | None = None
        self._left_out = 0

    def warning(self, message: str) -> None:
        """Log `message`, or count it."""
        now = self._clock()
        if self._next is not None and now < self._next:
            self._left_out += 1
            return
        more = f" ({self._left_out} more since the last such line)" if self._left_out else ""
        self._logger.warning("%s%s", message, more)
        self._next, self._left_out = now + self._seconds, 0
