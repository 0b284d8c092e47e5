"""The cores and memory that this process may use, with the limits of control groups.

Containers, Kubernetes and systemd limit a process by control groups, version 1 or 2, often nested:
the group that `/proc/self/cgroup` names and every group above it count, and the tightest limit
applies. Knows nothing of models and imports no torch, because both the front and the engine use it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

NO_LIMIT = 1 << 62
"""Stands for "no limit", in bytes; version 1 writes a number of this size."""

_ESCAPE = re.compile(r"\\([0-7]{3})")  # spaces and the like in /proc/self/mountinfo


@dataclass(frozen=True, slots=True)
class _Mount:
    """A mounted hierarchy of groups."""

    kind: str  # cgroup (version 1) or cgroup2
    root: PurePosixPath  # the group that is visible at the mount point
    point: Path
    controllers: frozenset[str]  # version 1 only


class Machine:
    """The machine as this process sees it, read from the files below `root` at each call."""

    def __init__(self, root: Path = Path("/")) -> None:
        """`root` is another folder than "/" only in tests."""
        self._root = root

    def cores(self) -> int:
        """The number of threads that can compute at the same time: the cores that this process may
        run on, limited by its CPU quota; at least 1.
        """
        quotas = (quota for group in self._groups("cpu") for quota in _quotas(group))
        return max(1, int(min(len(os.sched_getaffinity(0)), *quotas, NO_LIMIT)))

    def free_bytes(self) -> int:
        """The memory that can be allocated now, in bytes. Cached file content counts as free,
        because the kernel drops it when memory is needed.
        """
        left = (max(0, limit - used) for limit, used in self._memory())
        return min(self._available_bytes(), *left, NO_LIMIT)

    def memory_limit(self) -> int:
        """The memory that this process and its group may use in total, in bytes: the tightest
        limit, or the whole memory of the machine.
        """
        total = self._meminfo("MemTotal") or os.sysconf("SC_PAGE_SIZE") * os.sysconf(
            "SC_PHYS_PAGES"
        )
        return min(total, *(limit for limit, _ in self._memory()), NO_LIMIT)

    def _available_bytes(self) -> int:
        available = self._meminfo("MemAvailable")
        if available is None:  # not Linux
            return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
        return available

    def _meminfo(self, field: str) -> int | None:
        for line in _lines(self._root / "proc/meminfo"):
            name, _, value = line.partition(":")
            if name == field:
                return int(value.split()[0]) * 1024
        return None

    def _memory(self) -> Iterator[tuple[int, int]]:
        """Limit and use, in bytes, of every group above this process that has a memory limit."""
        for group in self._groups("memory"):
            limits = ("memory.max", "memory.high", "memory.limit_in_bytes")
            limit = min((_number(group / name) for name in limits), default=NO_LIMIT)
            if limit >= NO_LIMIT:
                continue
            used = (_number(group / name) for name in ("memory.current", "memory.usage_in_bytes"))
            yield limit, max(0, min(used) - _cached_bytes(group))

    def _groups(self, controller: str) -> Iterator[Path]:
        """Folders of the groups with this controller: the process's own, then each above it."""
        paths = _paths(self._root / "proc/self/cgroup")
        for mount in self._mounts():
            name = "" if mount.kind == "cgroup2" else controller
            if mount.kind == "cgroup" and controller not in mount.controllers:
                continue
            if name in paths:
                yield from _upwards(mount, paths[name])

    def _mounts(self) -> Iterator[_Mount]:
        """Read from /proc/self/mountinfo: `36 35 98:0 ROOT POINT OPTIONS [...] - TYPE SOURCE
        SUPER`.
        """
        for line in _lines(self._root / "proc/self/mountinfo"):
            left, _, right = line.partition(" - ")
            fields, types = left.split(), right.split()
            if len(fields) < 5 or not types or types[0] not in ("cgroup", "cgroup2"):
                continue
            point = self._root / _unescaped(fields[4]).lstrip("/")
            controllers = frozenset(types[-1].split(","))
            yield _Mount(types[0], PurePosixPath(_unescaped(fields[3])), point, controllers)


def _paths(file: Path) -> dict[str, PurePosixPath]:
    """The group of this process by controller ("" for version 2), from lines such
    as `4:memory:/a`.
    """
    found = {}
    for line in _lines(file):
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        found.update(dict.fromkeys(controllers.split(","), PurePosixPath(path)))
    return found


def _upwards(mount: _Mount, path: PurePosixPath) -> Iterator[Path]:
    """From the group at `path` to the mount point. A path that is not visible here (in a namespace,
    or if only the container's group is mounted) stands for the mount point.
    """
    inside = path.relative_to(mount.root) if path.is_relative_to(mount.root) else PurePosixPath()
    folder = mount.point / inside
    if ".." in inside.parts or not folder.is_dir():
        folder = mount.point
    while folder != mount.point:
        yield folder
        folder = folder.parent
    yield folder


def _quotas(group: Path) -> Iterator[float]:
    """The cores that the CPU quota of a group allows; nothing if it has none."""
    fields = [each for line in _lines(group / "cpu.max") for each in line.split()]
    if len(fields) < 2:
        names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        fields = [line.strip() for name in names for line in _lines(group / name)]
    if len(fields) >= 2 and fields[0].isdigit() and fields[1].isdigit() and int(fields[1]):
        yield int(fields[0]) / int(fields[1])


def _number(file: Path) -> int:
    """The number in `file`; NO_LIMIT if there is none or it says "max"."""
    text = "".join(_lines(file)).strip()
    return int(text) if text.isdigit() else NO_LIMIT


def _cached_bytes(group: Path) -> int:
    """Bytes of cached file content, including that of the groups below."""
    fields = dict(line.split() for line in _lines(group / "memory.stat") if line.count(" ") == 1)
    names = ("inactive_file", "active_file")
    return sum(int(fields.get(f"total_{name}", fields.get(name, 0))) for name in names)


def _unescaped(text: str) -> str:
    return _ESCAPE.sub(lambda found: chr(int(found[1], 8)), text)


def _lines(file: Path) -> list[str]:
    """The lines of a file; empty if it is missing or cannot be read."""
    try:
        return file.read_text().splitlines()
    except OSError:
        return []


THIS = Machine()
"""The machine that this process runs on."""
