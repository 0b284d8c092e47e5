"""Every step on the disk fails once, and from there on; the process dies at every step; the power
goes at every step.

Which steps there are nobody has to know: a script is run again and again, the k-th step failing,
until it has no k-th. After each run the folder must open with a real disk, hold nothing that the
index does not know, keep its budget, and give no wrong byte (`loads` compares every one).
"""

from __future__ import annotations

import itertools
import random
import subprocess
import sys
from pathlib import Path

import pytest

from radixserve.errors import StartupError
from radixserve.prefix import Prefix
from radixserve.store.folder.disk import TEMPORARY, Disk  # type: ignore[attr-defined]
from radixserve.store.folder.disk_store import DiskStore
from tests.store.parts import (
    FailingDisk,
    LossyDisk,
    PowerCut,
    QuickDisk,
    files,
    loads,
    on_disk,
    put,
    wide,
)

pytestmark = pytest.mark.slow

BUDGET = 700 << 10  # room for about ten tokens
PROMPTS = [
    ("a", [1, 2, 3, 4]),
    ("a", [1, 2, 3, 4, 5, 6]),
    ("b", [1, 2, 3]),
    ("a", [1, 2, 9]),
    ("c", [7, 7, 7, 7, 7]),
]


def use(store: DiskStore) -> None:
    """Puts, loads, hits, misses and evictions."""
    for namespace, tokens in PROMPTS:
        put(store, namespace, tokens)
        loads(store, namespace, tokens)
    loads(store, *PROMPTS[0])
    put(store, "d", [4, 4, 4])


def script(folder: Path, disk: Disk) -> None:
    """Open, use, open again with what is there, clear; the folder may refuse to open, nothing else
    may be raised.
    """
    for after in (use, use, DiskStore.clear):
        try:
            store = wide(folder, BUDGET, disk)
        except StartupError:
            continue
        after(store)
        store.stats()
        store.close()
        assert on_disk(folder) <= BUDGET


def sound(folder: Path) -> None:
    """The folder opens, nothing is left over, all that it has is right, and it can be used."""
    store = wide(folder, BUDGET, QuickDisk())
    assert {path.name for path in files(folder)} == {row.name for row in store._folder.index.rows()}
    assert list(folder.rglob(f"*{TEMPORARY}")) == []
    assert on_disk(folder) <= BUDGET
    for namespace, tokens in PROMPTS:
        assert loads(store, namespace, tokens) == store.match(Prefix.of(namespace, tokens))
    assert store.stats().verify_failures_total == 0
    use(store)
    assert loads(store, "d", [4, 4, 4]) == 3
    assert on_disk(folder) <= BUDGET
    store.close()


@pytest.mark.parametrize("persistent", [False, True], ids=["once", "from there on"])
def test_whatever_step_fails_nothing_is_raised_and_the_folder_stays_sound(
    tmp_path: Path, persistent: bool
) -> None:
    for k in itertools.count(1):
        folder, disk = tmp_path / str(k), FailingDisk()
        disk.arm(k, persistent=persistent)
        script(folder, disk)
        sound(folder)
        if not disk.fired:
            break
    assert k > 200, "the script has fewer steps than it had"


def test_power_lost_at_any_step_leaves_no_wrong_byte(tmp_path: Path) -> None:
    """Once for every step, what was not synced drawn anew each time."""
    for k in itertools.count(1):
        folder, after = tmp_path / f"before-{k}", tmp_path / f"after-{k}"
        disk = LossyDisk(k, folder, after, random.Random(k).choice)
        try:
            script(folder, disk)
        except PowerCut:
            sound(after)
        else:
            break
    assert k > 200, "the script has fewer steps than it had"


@pytest.mark.parametrize(
    ("how", "least"),
    [("at-every-step", 200), ("at-every-step-of-an-errand", 80), ("at-random", 10)],
)
def test_kill_9_at_any_step_and_at_any_moment_leaves_the_folder_sound(
    tmp_path: Path, how: str, least: int
) -> None:
    """In processes forked from one that has everything imported; tests/store/folder/crashes.py."""
    root = Path(__file__).parents[3]
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "tests.store.folder.crashes",
        how,
        str(tmp_path),
    ]
    done = subprocess.run(command, cwd=root, timeout=280, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= least
