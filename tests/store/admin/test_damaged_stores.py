"""Whole stores that are damaged at random, several files at a time: they open or are refused in one
sentence, give no wrong byte, and are mended by `cache check --fix`.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from radixserve.errors import StartupError
from radixserve.store.admin import transfer
from tests.store.parts import QuickDisk, loads, on_disk, put, wide

STORES = 300
PROMPTS = [("a", [1, 2, 3]), ("a", [1, 2, 3, 4]), ("a", [1, 9]), ("b", [5, 6, 7])]


def intact(folder: Path) -> None:
    store = wide(folder, disk=QuickDisk())
    for namespace, tokens in PROMPTS:
        put(store, namespace, tokens)
    store.close()


def emptied(path: Path, draw: random.Random) -> None:
    path.write_bytes(b"")


def cut(path: Path, draw: random.Random) -> None:
    os.truncate(path, draw.randrange(path.stat().st_size + 1))


def flipped(path: Path, draw: random.Random) -> None:
    data = bytearray(path.read_bytes() or b"\0")
    for _ in range(draw.choice([1, 1, 20])):
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    path.write_bytes(data)


def overwritten(path: Path, draw: random.Random) -> None:
    data = bytearray(path.read_bytes())
    at = draw.randrange(len(data) + 1)
    data[at : at + 4096] = draw.randbytes(4096)
    path.write_bytes(data)


def longer(path: Path, draw: random.Random) -> None:
    path.write_bytes(path.read_bytes() + draw.randbytes(draw.randrange(1, 5000)))


def gone(path: Path, draw: random.Random) -> None:
    path.unlink()


def copied(path: Path, draw: random.Random) -> None:
    """Another file's content under this name."""
    path.write_bytes(draw.choice(files_in(path.parent)).read_bytes())


def exchanged(path: Path, draw: random.Random) -> None:
    other = draw.choice(files_in(path.parent))
    ours, theirs = path.read_bytes(), other.read_bytes()
    path.write_bytes(theirs)
    other.write_bytes(ours)


def renamed(path: Path, draw: random.Random) -> None:
    path.rename(path.with_name("f" * 64 + ".safetensors"))


def unfinished(path: Path, draw: random.Random) -> None:
    path.rename(path.with_name(path.name + ".tmp"))


def a_folder(path: Path, draw: random.Random) -> None:
    """Among the runs it would stay, being none of ours, and with it the run could not be stored."""
    path.unlink()
    if path.parent.name != "runs":
        path.mkdir()


def a_link(path: Path, draw: random.Random) -> None:
    target = path.parent.parent / "moved"
    path.rename(target)
    path.symlink_to(target)


def garbage(path: Path, draw: random.Random) -> None:
    """Files of ours that ought not to be there."""
    name = draw.choice(["index.sqlite-wal", "index.sqlite-journal", "fingerprints.json", "lock"])
    (path.parent / name).write_bytes(draw.randbytes(3000))


DAMAGE = (
    *(emptied, cut, flipped, overwritten, longer, gone, copied, exchanged, renamed, unfinished),
    *(a_folder, a_link, garbage),
)


def files_in(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.iterdir()) if path.is_file() and not path.is_symlink()]


def damage(folder: Path, draw: random.Random) -> None:
    for _ in range(draw.randrange(1, 4)):
        paths = files_in(folder) + 2 * files_in(folder / "runs")
        how: Callable[[Path, random.Random], None] = draw.choice(DAMAGE)
        if paths:
            how(draw.choice(paths), draw)


def used(folder: Path) -> bool:
    """Everything that it gives is right, whatever it lacks is stored anew; False if refused."""
    try:
        store = wide(folder, disk=QuickDisk())
    except StartupError as refusal:
        return not is_one_sentence(refusal, folder)
    for _ in range(2):  # the put that meets damage of the index mends it, and is lost itself
        for namespace, tokens in PROMPTS:
            loads(store, namespace, tokens)
            put(store, namespace, tokens)
    for namespace, tokens in PROMPTS:
        assert loads(store, namespace, tokens) == len(tokens)
    assert store.stats().bytes <= on_disk(folder)
    store.close()
    return True


def is_one_sentence(refusal: StartupError, folder: Path) -> bool:
    assert str(folder) in str(refusal)
    assert "\n" not in str(refusal)
    return True


@pytest.mark.parametrize("tenth", range(10))
def test_a_damaged_store_opens_or_is_refused_and_gives_no_wrong_byte(
    tmp_path: Path, tenth: int
) -> None:
    intact(tmp_path / "intact")
    refused = 0
    for seed in range(tenth * STORES // 10, (tenth + 1) * STORES // 10):
        folder, draw = tmp_path / str(seed), random.Random(seed)
        shutil.copytree(tmp_path / "intact", folder)
        damage(folder, draw)
        if draw.random() < 0.3:
            try:
                transfer.fix(folder)
                assert transfer.check(folder).problems == [], seed
            except StartupError as refusal:
                is_one_sentence(refusal, folder)
        refused += not used(folder)
        shutil.rmtree(folder)
    assert refused < STORES / 10 * 0.5, "most of them can be used"
