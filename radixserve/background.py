"""Work that may only use processor time which nothing else wants.

A thread of low priority (nice 19) still takes turns: Linux lets it finish a slice of some
milliseconds when a thread of the engine wakes up, and every kernel of a step waits for its slowest
thread. A thread under the policy SCHED_IDLE is put off the core at once. This module knows nothing
of what the work is.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading


def yield_to_others() -> None:
    """From now on, let the calling thread run only on cores that nothing else wants. Threads that
    it starts inherit that. A thread needs privileges to leave this policy again. On systems without
    such a policy nothing changes.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            thread = threading.get_native_id()
            os.sched_setscheduler(thread, os.SCHED_IDLE, os.sched_param(0))
