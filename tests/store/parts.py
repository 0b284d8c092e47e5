"""A tiny shape, K/V whose content says what it belongs to, and disks that fail, die or lose what
was not synced.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from radixserve.prefix import PUBLIC, Prefix
from radixserve.store.folder.disk import Disk
from radixserve.store.folder.disk_store import DiskStore
from radixserve.store.format.layout import TEMPORARY
from radixserve.tensors.kv import KV, KVShape

SHAPE = KVShape(layers=2, kv_heads=1, k_dim=3, v_dim=2, dtype=torch.float32)
WIDE = KVShape(layers=2, kv_heads=1, k_dim=512, v_dim=512, dtype=torch.float32)  # 8 KiB per token
MODEL = "model-a"
PLENTY = 1 << 30


def content(
    namespace: str,
    tokens: Sequence[int],
    start: int = 0,
    shape: KVShape = SHAPE,
    num_public: int = 0,
) -> KV:
    """K/V of positions `start` on that no other namespace, prefix or position has."""
    size = shape.layers * shape.kv_heads
    k = torch.empty(
        shape.layers, len(tokens) - start, shape.kv_heads, shape.k_dim, dtype=shape.dtype
    )
    v = torch.empty(
        shape.layers, len(tokens) - start, shape.kv_heads, shape.v_dim, dtype=shape.dtype
    )
    for position in range(start, len(tokens)):
        where = PUBLIC if position < num_public else namespace
        seed = hashlib.sha256(repr((where, tuple(tokens[: position + 1]))).encode()).digest()
        value = int.from_bytes(seed[:3], "little") + torch.arange(size, dtype=torch.float32)
        k[:, position - start] = value.view(shape.layers, shape.kv_heads, 1).to(shape.dtype)
        v[:, position - start] = -value.view(shape.layers, shape.kv_heads, 1).to(shape.dtype)
    return k, v


def put(
    store: DiskStore, namespace: str, tokens: Sequence[int], start: int = 0, num_public: int = 0
) -> int:
    kv = content(namespace, tokens, start, store.shape, num_public)
    return store.put(Prefix.of(namespace, tokens, num_public), start, *kv)


def loads(
    store: DiskStore,
    namespace: str,
    tokens: Sequence[int],
    start: int = 0,
    stop: int | None = None,
    num_public: int = 0,
) -> int:
    """How many positions from `start` on come back, all of them right."""
    prefix = Prefix.of(namespace, tokens, num_public)
    kv = store.load(prefix, start, len(tokens) if stop is None else stop)
    if kv is None:
        return 0
    count = kv[0].shape[1]
    expected = content(namespace, tokens[: start + count], start, store.shape, num_public)
    assert torch.equal(kv[0], expected[0]), "K of something else"
    assert torch.equal(kv[1], expected[1]), "V of something else"
    return count


def opened(
    folder: Path, budget: int = PLENTY, disk: Disk | None = None, model: str = MODEL
) -> DiskStore:
    return DiskStore(folder, budget, model, SHAPE, disk=disk)


def wide(folder: Path, budget: int = PLENTY, disk: Disk | None = None) -> DiskStore:
    """A store whose runs are large against its index."""
    return DiskStore(folder, budget, MODEL, WIDE, disk=disk)


def files(folder: Path) -> list[Path]:
    return sorted((folder / "runs").iterdir())


def on_disk(folder: Path) -> int:
    """Bytes of all files, but of those that are written to take the place of another one."""
    lasting = (path for path in folder.rglob("*") if path.suffix != TEMPORARY)
    return sum(path.stat().st_size for path in lasting if path.is_file())


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


class QuickDisk(Disk):
    """Does not wait for the disk."""

    def sync(self, path: Path) -> None:
        pass

    def execute(
        self, connection: sqlite3.Connection, statement: str, values: Sequence[Any] = ()
    ) -> list[Any]:
        statement = (
            "PRAGMA synchronous = OFF" if statement.startswith("PRAGMA synchronous") else statement
        )
        return super().execute(connection, statement, values)


class CountingDisk(QuickDisk):
    """Calls `reached` before every step that can fail; a subclass raises or dies there."""

    def __init__(self) -> None:
        self.steps: list[str] = []

    def reached(self, step: str) -> None:
        self.steps.append(step)

    def error(self) -> Exception:
        return OSError(28, "No space left on device")

    def write(self, path: Path, parts: Sequence[bytes | memoryview]) -> None:
        self.reached("write")
        super().write(path, parts)
        self.reached("written")

    def sync(self, path: Path) -> None:
        self.reached("sync")
        super().sync(path)

    def rename(self, source: Path, target: Path) -> None:
        self.reached("rename")
        super().rename(source, target)

    def unlink(self, path: Path) -> None:
        self.reached("unlink")
        super().unlink(path)

    def size(self, path: Path) -> int:
        self.reached("size")
        return super().size(path)

    def sizes(self, folder: Path) -> dict[str, int]:
        self.reached("sizes")
        return super().sizes(folder)

    def read(self, path: Path, offset: int, target: memoryview) -> int:
        self.reached("read")
        return super().read(path, offset, target)

    def connect(self, path: Path, *, read_only: bool = False) -> sqlite3.Connection:
        self.reached("connect")
        return super().connect(path, read_only=read_only)

    def execute(
        self, connection: sqlite3.Connection, statement: str, values: Sequence[Any] = ()
    ) -> list[Any]:
        self.reached(f"sql {statement.split()[0]}")
        return super().execute(connection, statement, values)


class FailingDisk(CountingDisk):
    """Fails at the `at`-th step from `arm` on: that one only, or all from there on."""

    def __init__(self) -> None:
        super().__init__()
        self.at, self.persistent, self.fired = 0, False, 0

    def arm(self, at: int, *, persistent: bool) -> None:
        self.steps, self.at, self.persistent, self.fired = [], at, persistent, 0

    def heal(self) -> None:
        self.at = 0

    def reached(self, step: str) -> None:
        super().reached(step)
        if self.at and (
            len(self.steps) == self.at or (self.persistent and len(self.steps) > self.at)
        ):
            self.fired += 1
            if step.startswith(("sql", "connect")):
                raise sqlite3.OperationalError("disk I/O error")
            raise OSError(5, "Input/output error")


class DyingDisk(CountingDisk):
    """Ends the process, as kill -9 would, at the `at`-th step."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at

    def reached(self, step: str) -> None:
        super().reached(step)
        if len(self.steps) == self.at:
            os._exit(137)


class PowerCut(BaseException):
    """Nothing runs after it."""


class LossyDisk(CountingDisk):
    """Loses power at the `at`-th step: `after` becomes a mix of what was written and what is safe.

    Bytes of a file are safe after its sync, names after the sync of their folder. The index is as
    it was after some commit, and the end of its log may be missing.
    """

    def __init__(
        self, at: int, folder: Path, after: Path, draw: Callable[[Sequence[Any]], Any]
    ) -> None:
        super().__init__()
        self.at, self.folder, self.after, self.draw = at, folder, after, draw
        self.unsynced: set[Path] = set()
        self.changes: list[
            tuple[str, Path, Path | bytes]
        ] = []  # changes of names not yet on the disk, oldest first
        self.snapshots: list[dict[str, bytes]] = []

    def write(self, path: Path, parts: Sequence[bytes | memoryview]) -> None:
        self.unsynced.add(path)
        super().write(path, parts)

    def sync(self, path: Path) -> None:
        super().sync(path)
        if path.is_dir():
            self.changes = [each for each in self.changes if each[1].parent != path]
        self.unsynced.discard(path)

    def rename(self, source: Path, target: Path) -> None:
        super().rename(source, target)
        if source in self.unsynced:
            self.unsynced.remove(source)
            self.unsynced.add(target)
        self.changes.append(("rename", target, source))

    def unlink(self, path: Path) -> None:
        if path.exists():
            self.changes.append(("unlink", path, path.read_bytes()))
        super().unlink(path)

    def execute(
        self, connection: sqlite3.Connection, statement: str, values: Sequence[Any] = ()
    ) -> list[Any]:
        result = super().execute(connection, statement, values)
        if statement.startswith(("COMMIT", "UPDATE")):
            self.snapshots.append(
                {name: (self.folder / name).read_bytes() for name in self.index_files()}
            )
        return result

    def index_files(self) -> list[str]:
        return [
            f"index.sqlite{end}"
            for end in ("", "-wal")
            if (self.folder / f"index.sqlite{end}").exists()
        ]

    def reached(self, step: str) -> None:
        super().reached(step)
        if len(self.steps) == self.at:
            self.lose_power(self.after, self.draw)
        if len(self.steps) >= self.at:
            raise PowerCut

    def lose_power(self, copy: Path, draw: Callable[[Sequence[Any]], Any]) -> None:
        """A copy of the folder as it may be after power came back."""
        shutil.copytree(self.folder, copy)
        moved = {path: copy / path.relative_to(self.folder) for path in self.unsynced}
        for path in moved.values():
            if path.exists():
                _spoil(path, draw(["zero", "truncate", "keep"]))
        for kind, path, other in reversed(self.changes):
            target = copy / path.relative_to(self.folder)
            if draw(["lost", "kept"]) == "lost":
                if kind == "unlink":
                    assert isinstance(other, bytes)
                    target.write_bytes(other)
                elif target.exists():
                    assert isinstance(other, Path)
                    target.rename(copy / other.relative_to(self.folder))
        self._older_index(copy, draw)

    def _older_index(self, copy: Path, draw: Callable[[Sequence[Any]], Any]) -> None:
        """Commits of the last moments may be lost."""
        if not self.snapshots:
            return
        for name in ("index.sqlite", "index.sqlite-wal", "index.sqlite-shm"):
            (copy / name).unlink(missing_ok=True)
        snapshot = self.snapshots[-1 - draw(range(min(len(self.snapshots), 6)))]
        for name, data in snapshot.items():
            kept = draw([1.0, 0.9, 0.5]) if name.endswith("-wal") else 1.0
            (copy / name).write_bytes(data[: int(kept * len(data))])


def _spoil(path: Path, how: str) -> None:
    size = path.stat().st_size
    if how == "zero":
        path.write_bytes(bytes(size))
    elif how == "truncate":
        path.write_bytes(path.read_bytes()[: size // 2])
