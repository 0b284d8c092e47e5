"""Work that may only use processor time which nothing else wants.

A thread of low priority (nice 19) still takes turns: Linux lets it finish a slice of some
milliseconds when a thread of the engine wakes up, and every kernel of a step waits for its slowest
thread. A thread under the policy SCHED_IDLE is put off the core at once. Knows nothing of what the
work is.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading


def yield_to_others() -> None:
    """Let the calling thread run only on cores that nothing else wants, from now on. Threads that
    it starts inherit that. There is no way back without privileges. A system that has no such
    policy leaves the thread as it is.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            thread = threading.get_native_id()
            os.sched_setscheduler(thread, os.SCHED_IDLE, os.sched_param(0))
