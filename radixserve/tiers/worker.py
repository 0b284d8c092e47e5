"""A worker thread that does jobs for the engine while steps run, one at a time.

Urgent jobs (loads, for which a request waits) go before patient ones (writes), also between two
parts of a patient one. The engine learns of finished jobs by a readable file descriptor and
collects them on its own thread. Knows nothing of what a job does, and never waits for one that does
not end.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

log = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class Job:
    """`work` is called on the worker thread again and again until it returns True; then `then` is
    called on the engine's thread.
    """

    work: Callable[[], bool]
    then: Callable[[], None]


class Worker:
    """The worker thread and its two queues."""

    def __init__(self, name: str, at_end: Callable[[], None]) -> None:
        """`at_end` is called on the worker thread before it ends."""
        self._at_end = at_end
        self._urgent: deque[Job] = deque()
        self._patient: deque[Job] = deque()
        self._done: deque[Job] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._told, self._tell = socket.socketpair()
        for end in (self._told, self._tell):
            end.setblocking(False)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def fileno(self) -> int:
        """A file descriptor that is readable when a job may be done."""
        return self._told.fileno()

    @property
    def num_patient(self) -> int:
        return len(self._patient)

    def submit(self, job: Job, *, urgent: bool) -> None:
        """Queue a job."""
        with self._changed:
            (self._urgent if urgent else self._patient).append(job)
            self._changed.notify()

    def withdraw(self) -> list[Job]:
        """Take back and return the patient jobs that have not begun."""
        with self._changed:
            jobs = list(self._patient)
            self._patient.clear()
        return jobs

    def settle(self) -> None:
        """Call `then` of every job that is done."""
        with contextlib.suppress(BlockingIOError):
            while self._told.recv(4096):
                pass
        while self._done:
            self._done.popleft().then()

    def close(self, seconds: float) -> bool:
        """Do the queued jobs, for at most `seconds`, and end the thread; False if it still works
        then.
        """
        until = time.monotonic() + seconds
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(max(0.0, until - time.monotonic()))
        if self._thread.is_alive():
            return False
        self._told.close()
        self._tell.close()
        return True

    def _run(self) -> None:
        current: Job | None = None  # a patient job that has begun
        while (job := self._next(current)) is not None:
            if self._finished(job):
                current = None if job is current else current
                self._done.append(job)
                with contextlib.suppress(
                    OSError
                ):  # its buffer is full, so the engine has been woken anyway
                    self._tell.send(b"\0")
            else:
                current = job
        self._at_end()

    def _next(self, current: Job | None) -> Job | None:
        """Wait for the next job to work on; None at the end."""
        with self._changed:
            while not (self._urgent or current or self._patient or self._closing):
                self._changed.wait()
            if self._urgent:
                return self._urgent.popleft()
            return current or (self._patient.popleft() if self._patient else None)

    def _finished(self, job: Job) -> bool:
        try:
            return job.work()
        except Exception:
            log.exception("a job beside the step failed")
            return True
