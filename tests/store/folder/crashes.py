"""Kills children of its own, with the signal that no process survives, and looks at what they
leave.

`python -m tests.store.folder.crashes HOW FOLDER`, HOW being one of `WAYS`; prints how many died.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from radixserve.store.admin import transfer
from tests.store.admin.test_errands import attended, exported_wide, nothing_is_left
from tests.store.folder.test_faults import BUDGET, script, sound
from tests.store.parts import DyingDisk, loads, put, wide

KILLS = 10


def child(work: Callable[[], None]) -> int:
    """Do it in a process of its own, whose id this gives; that ends with 1 if it raises."""
    pid = os.fork()
    if not pid:
        try:
            work()
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            os._exit(1)
        os._exit(0)
    return pid


def at_every_step(base: Path) -> int:
    """A script dies at its first step, at its second, ..., until it lives."""
    for k in itertools.count(1):
        folder = base / str(k)
        _, status = os.waitpid(child(lambda folder=folder, k=k: script(folder, DyingDisk(k))), 0)  # type: ignore[misc]
        sound(folder)
        if os.waitstatus_to_exitcode(status) != 137:
            assert status == 0
            return k - 1
    raise AssertionError


def at_every_step_of_an_errand(base: Path) -> int:
    """A process that does what commands ask dies at its first step, at its second, ..."""
    source = exported_wide(base)
    for k in itertools.count(1):
        folder = base / str(k)
        _, status = os.waitpid(
            child(lambda folder=folder, k=k: errands(folder, source, DyingDisk(k))),  # type: ignore[misc]
            0,
        )
        sound(folder)
        assert nothing_is_left(folder)
        if os.waitstatus_to_exitcode(status) != 137:
            assert status == 0
            return k - 1
    raise AssertionError


def errands(folder: Path, source: Path, disk: DyingDisk) -> None:
    """All of them."""
    store = wide(folder, BUDGET, disk)
    with attended(store):
        transfer.import_prefix(folder, source)
        transfer.fix(folder)
        transfer.clear(folder)
        transfer.import_prefix(folder, source)
    store.close()


def at_random(base: Path) -> int:
    """A process that writes, reads and evicts as fast as it can is killed; what it leaves is
    verified, run by run.
    """
    moments = random.Random(7)
    for kill in range(KILLS):
        pid = child(lambda kill=kill: busy(base / "s", kill))  # type: ignore[misc]
        time.sleep(moments.uniform(0.02, 0.6))
        os.kill(pid, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
        wide(base / "s", BUDGET).close()
        assert transfer.check(base / "s").problems == []
    assert transfer.check(base / "s").num_runs > 0
    return KILLS


def busy(folder: Path, seed: int) -> None:
    draw, store = random.Random(seed), wide(folder, BUDGET)
    while True:
        tokens = [draw.randrange(3) for _ in range(draw.randrange(1, 7))]
        put(store, "a", tokens)
        loads(store, "a", tokens)


WAYS = {
    "at-every-step": at_every_step,
    "at-every-step-of-an-errand": at_every_step_of_an_errand,
    "at-random": at_random,
}

if __name__ == "__main__":
    print(WAYS[sys.argv[1]](Path(sys.argv[2])))
