"""Logs the progress of long stages of the start: one line when a stage begins, then one every few
seconds.

A stage may begin inside another, as compiling a kernel does inside packing. Then only the inner one
is told until it ends.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator

log = logging.getLogger(__name__)

EVERY_SECONDS = 3.0

_running: list[object] = []  # the stages that have begun, the innermost last


@contextlib.contextmanager
def long_stage(
    what: str, total: int = 0, done: Callable[[], int] = lambda: 0, every: float = EVERY_SECONDS
) -> Iterator[None]:
    """Log `what` now, and every `every` seconds until the block ends how much is done. `done`
    returns how many of `total` parts are done. Stages begin and end on one thread.
    """
    log.info("%s", what)
    ended, began, stage = threading.Event(), time.monotonic(), object()

    def tell() -> None:
        while not ended.wait(every):
            if _running[-1] is stage:
                parts = f"{done():,} of {total:,}, " if total else ""
                log.info("%s: %s%.0f s", what, parts, time.monotonic() - began)

    teller = threading.Thread(target=tell, name="progress", daemon=True)
    _running.append(stage)
    teller.start()
    try:
        yield
    finally:
        ended.set()
        teller.join()
        _running.remove(stage)
