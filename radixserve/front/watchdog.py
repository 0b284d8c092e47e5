"""Decides when an engine process that still exists does nothing any more and has to be killed.

An engine that has work reports after every step, and at least every second while its requests wait
for something. Two clocks run between its messages:

- `silent`: since its last message; - `quiet`: since its last message and since it last used the
processor, whichever came later.

    state      hung when
    loading    quiet for `hang_seconds`: it may be busy for any length of time
    working    quiet for `hang_seconds`, or silent for that long and for ten times its slowest step
    idle       never: an engine without work sends nothing

So a stopped process, a deadlock and a device or a disk that never answers are found after
`hang_seconds`, and so is a kernel that never ends if steps are short. A model whose steps take long
on this machine gets the time that it needs. Knows no process: the caller tells how much processor
time it has used.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from radixserve.engine.counters import STEP_SECONDS
from radixserve.messages import Report, ToFront

TICK_SECONDS = 1.0  # how often a silent engine is checked
_SLOW_STEPS = 10  # how many times as long as the slowest step before it a step may take
_FIRST_STEP = 10  # the first step may take so many times `hang_seconds`
_PROCESSOR_FIELDS = slice(11, 13)  # utime and stime in /proc/PID/stat, behind the command's name


class Watchdog:
    """Watches one engine process after another. It keeps what it learns of the length of steps."""

    def __init__(self, hang_seconds: float, has_work: Callable[[], bool]) -> None:
        """`has_work` tells whether a request is inside the engine."""
        self._hang_seconds = hang_seconds
        self._has_work = has_work
        self._slowest_step: float | None = None  # seconds, of all engines so far
        self.watch_anew()

    @property
    def silent_seconds(self) -> float:
        """How long an engine with work has sent nothing; 0 while it has none."""
        return self._silent

    def watch_anew(self) -> None:
        """Another process has begun to load."""
        self._loading = True
        self._silent = self._quiet = 0.0
        self._used: float | None = None

    def loaded(self) -> None:
        """The process is ready for work."""
        self._loading = False

    def heard(self, message: ToFront) -> None:
        """The process has sent a message."""
        self._silent = self._quiet = 0.0
        if isinstance(message, Report) and message.stats is not None:
            self._slowest_step = max(
                (*message.stats.seen(STEP_SECONDS), self._slowest_step or 0.0), default=None
            )

    def is_hung(self, elapsed: float, used: float | None) -> bool:
        """Whether the process has to be killed. To be called every `TICK_SECONDS` without a
        message.

        `elapsed` is the time since the last call in seconds; more than two ticks count as two,
        because then this process was stopped as well. `used` is the processor time in seconds that
        the engine has used so far, None if it is unknown.
        """
        if not (self._loading or self._has_work()):
            self._silent = self._quiet = 0.0
            return False
        elapsed = min(elapsed, 2 * TICK_SECONDS)
        was_busy = used is None or (self._used is not None and used != self._used)
        self._used = used
        self._silent += elapsed
        self._quiet = 0.0 if was_busy else self._quiet + elapsed
        if self._quiet >= self._hang_seconds:
            return True
        return not self._loading and self._silent >= self._patience

    @property
    def _patience(self) -> float:
        """Seconds that a step which uses the processor may take."""
        if self._slowest_step is None:
            return _FIRST_STEP * self._hang_seconds
        return max(self._hang_seconds, _SLOW_STEPS * self._slowest_step)


def processor_seconds(pid: int) -> float | None:
    """The processor time that process `pid` has used, all threads together, to a hundredth of a
    second; None if the system does not tell (it is not Linux, or the process has ended).
    """
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2]
    except OSError:
        return None
    return sum(map(int, after_name.split()[_PROCESSOR_FIELDS])) / os.sysconf("SC_CLK_TCK")
