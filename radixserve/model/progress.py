"""Logs the progress of a long stage of the start: one line when it begins, then one every few
seconds.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator

log = logging.getLogger(__name__)

EVERY_SECONDS = 3.0


@contextlib.contextmanager
def long_stage(
    what: str, total: int = 0, done: Callable[[], int] = lambda: 0, every: float = EVERY_SECONDS
) -> Iterator[None]:
    """Log `what` now, and every `every` seconds until the block ends how much is done. `done`
    returns how many of `total` parts are done.
    """
    log.info("%s", what)
    ended, began = threading.Event(), time.monotonic()

    def tell() -> None:
        while not ended.wait(every):
            parts = f"{done():,} of {total:,}, " if total else ""
            log.info("%s: %s%.0f s", what, parts, time.monotonic() - began)

    teller = threading.Thread(target=tell, name="progress", daemon=True)
    teller.start()
    try:
        yield
    finally:
        ended.set()
        teller.join()
