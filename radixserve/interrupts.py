"""Ctrl-C reaches every process of a terminal's group. The front decides when the others end, so
they must not see it, not even while Python starts in them and cannot ignore it yet.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator


@contextlib.contextmanager
def hidden_from_children() -> Iterator[None]:
    """Processes started in this block never get SIGINT. This process gets it when the block ends or
    earlier. Blocks of several coroutines may overlap if each starts its process at once.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        if signal.SIGINT not in before:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
