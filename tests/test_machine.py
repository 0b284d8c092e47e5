"""Limits of cores and memory, read from made-up /proc and /sys/fs/cgroup trees."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from radixserve.machine import THIS, Machine

GIB = 1 << 30
V1_UNLIMITED = 9223372036854771712
V2 = "36 35 0:30 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n"

Tree = Callable[[dict[str, object]], Machine]


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tree:
    """A machine of eight cores and 32 GiB, 20 GiB of them free, with these files besides."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))

    def build(files: dict[str, object]) -> Machine:
        meminfo = f"MemTotal: {32 << 20} kB\nMemFree: 5 kB\nMemAvailable: {20 << 20} kB\n"
        for name, content in {"proc/meminfo": meminfo, **files}.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{content}\n")
        return Machine(tmp_path)

    return build


def facts(machine: Machine) -> tuple[int, float, float]:
    """Cores, free GiB and limit in GiB."""
    return machine.cores(), machine.free_bytes() / GIB, machine.memory_limit() / GIB


def v2(path: str, **files: object) -> dict[str, object]:
    """A process in the group `path` of version 2; `files` by their path with __ for /, _ for '.'"""
    named = {
        "sys/fs/cgroup/" + name.replace("__", "/").replace("_", "."): content
        for name, content in files.items()
    }
    return {"proc/self/mountinfo": V2, "proc/self/cgroup": f"0::{path}", **named}


def test_without_groups_the_machine_is_the_limit(tree: Tree) -> None:
    assert facts(tree({})) == (8, 20, 32)


def test_a_container_of_version_2_sees_its_group_at_the_mount_point(tree: Tree) -> None:
    stat = f"anon {GIB}\ninactive_file {GIB // 4}\nactive_file {GIB // 4}\nslab 7"
    files = v2(
        "/",
        memory_max=3 * GIB,
        memory_current=2 * GIB,
        memory_stat=stat,
        cpu_max="150000 100000",
    )
    assert facts(tree(files)) == (1, 1.5, 3)


def test_no_limit_in_words_is_no_limit(tree: Tree) -> None:
    files = v2("/", memory_max="max", memory_current=GIB, cpu_max="max 100000")
    assert facts(tree(files)) == (8, 20, 32)


def test_the_tightest_of_nested_groups_counts_wherever_it_is(tree: Tree) -> None:
    files = v2(
        "/user/app/inner",
        user__memory_max=1 * GIB,
        user__memory_current=GIB // 2,
        user__app__memory_max=2 * GIB,
        user__app__memory_current=GIB // 4,
        user__app__inner__memory_max="max",
        user__app__inner__memory_current=0,
        user__cpu_max="600000 100000",
        user__app__cpu_max="350000 100000",
        user__app__inner__cpu_max="max 100000",
    )
    assert facts(tree(files)) == (3, 0.5, 1)


def test_a_soft_limit_of_systemd_counts_too(tree: Tree) -> None:
    files = v2("/a", a__memory_high=GIB, a__memory_max=2 * GIB, a__memory_current=0)
    assert tree(files).free_bytes() == GIB


def test_a_group_over_its_limit_leaves_nothing(tree: Tree) -> None:
    files = v2("/", memory_max=GIB, memory_current=2 * GIB)
    assert tree(files).free_bytes() == 0


@pytest.mark.parametrize(
    ("quota", "cores"),
    [("50000 100000", 1), ("100000 100000", 1), ("199999 100000", 1), ("990000 100000", 8)],
)
def test_a_quota_is_rounded_down_to_whole_cores_and_to_one_at_least(
    tree: Tree, quota: str, cores: int
) -> None:
    assert tree(v2("/", cpu_max=quota)).cores() == cores


def v1(mounts: str, groups: str, files: dict[str, object]) -> dict[str, object]:
    return {"proc/self/mountinfo": mounts, "proc/self/cgroup": groups, **files}


def v1_mount(controllers: str, root: str = "/") -> str:
    point = f"/sys/fs/cgroup/{controllers}"
    return f"40 35 0:33 {root} {point} rw,nosuid master:9 - cgroup cgroup rw,{controllers}\n"


def test_version_1_has_a_hierarchy_for_each_controller(tree: Tree) -> None:
    base, cpu = "sys/fs/cgroup/memory/docker/abc", "sys/fs/cgroup/cpu,cpuacct/docker/abc"
    stat = f"inactive_file 5\ntotal_inactive_file {GIB // 2}\ntotal_active_file 0"
    files = v1(
        v1_mount("memory") + v1_mount("cpu,cpuacct"),
        "4:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n1:name=systemd:/x",
        {
            f"{base}/memory.limit_in_bytes": V1_UNLIMITED,
            f"{base}/../memory.limit_in_bytes": 4 * GIB,
            f"{base}/../memory.usage_in_bytes": 3 * GIB,
            f"{base}/../memory.stat": stat,
            f"{cpu}/cpu.cfs_quota_us": 250000,
            f"{cpu}/cpu.cfs_period_us": 100000,
            f"{cpu}/../cpu.cfs_quota_us": -1,
            f"{cpu}/../cpu.cfs_period_us": 100000,
        },
    )
    assert facts(tree(files)) == (2, 1.5, 4)


def test_a_container_of_version_1_that_knows_its_path_outside(tree: Tree) -> None:
    """Docker without a namespace of groups: the path is the host's, the mount begins at it."""
    files = v1(
        v1_mount("memory", "/docker/abc"),
        "4:memory:/docker/abc/deeper",
        {
            "sys/fs/cgroup/memory/memory.limit_in_bytes": 2 * GIB,
            "sys/fs/cgroup/memory/memory.usage_in_bytes": GIB,
            "sys/fs/cgroup/memory/deeper/memory.limit_in_bytes": GIB // 2,
            "sys/fs/cgroup/memory/deeper/memory.usage_in_bytes": 0,
        },
    )
    assert facts(tree(files)) == (8, 0.5, 0.5)


@pytest.mark.parametrize("path", ["/../outside", "/kubepods/pod1/gone"])
def test_a_path_that_is_not_seen_from_here_stands_for_the_mount_point(
    tree: Tree, path: str
) -> None:
    files = v2(path, memory_max=GIB, memory_current=0, cpu_max="200000 100000")
    assert facts(tree(files)) == (2, 1, 1)


def test_a_hybrid_machine_limits_by_both_versions(tree: Tree) -> None:
    files = v1(
        "36 35 0:30 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n" + v1_mount("memory"),
        "0::/service\n4:memory:/service",
        {
            "sys/fs/cgroup/memory/service/memory.limit_in_bytes": GIB,
            "sys/fs/cgroup/memory/service/memory.usage_in_bytes": 0,
            "sys/fs/cgroup/unified/service/cpu.max": "300000 100000",
        },
    )
    assert facts(tree(files)) == (3, 1, 1)


def test_a_mount_point_with_a_space_is_found(tree: Tree) -> None:
    files = v1(
        "36 35 0:30 / /my\\040groups rw - cgroup2 cgroup2 rw\n",
        "0::/",
        {"my groups/memory.max": GIB, "my groups/memory.current": 0},
    )
    assert tree(files).free_bytes() == GIB


def test_files_that_make_no_sense_are_no_limit(tree: Tree) -> None:
    mounts = "nonsense\n36 35 0:30 /\n" + V2
    files = {"sys/fs/cgroup/memory.max": "x", "sys/fs/cgroup/cpu.max": "1 0"}
    assert facts(tree(v1(mounts, "broken\n0::/", files))) == (8, 20, 32)  # type: ignore[arg-type]


def test_this_machine_can_be_read() -> None:
    assert 1 <= THIS.cores() <= len(os.sched_getaffinity(0))
    assert 1 << 20 < THIS.free_bytes() <= THIS.memory_limit() < 1 << 62
