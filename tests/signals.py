"""Signals as a child process of a test gets them, whatever shell the tests run in.

`nohup` and a shell's `&` start what they start with SIGHUP or SIGINT ignored, and a child inherits
that. A test that sends such a signal starts its child inside `usual_signals`.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

USUAL = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM)


@contextlib.contextmanager
def usual_signals() -> Iterator[None]:
    """Within the block no signal of `USUAL` is ignored; afterwards those are that were before."""
    ignored = [each for each in USUAL if signal.getsignal(each) == signal.SIG_IGN]
    for each in ignored:
        signal.signal(each, signal.SIG_DFL)
    try:
        yield
    finally:
        for each in ignored:
            signal.signal(each, signal.SIG_IGN)
