from __future__ import annotations

import itertools
import json
import os
from pathlib import Path

import pytest

from radixserve.errors import StartupError
from radixserve.front import traffic_log
from radixserve.front.traffic_log import BLOCK_TOKENS, TrafficLog, block_hashes
from radixserve.loadtest import trace
from radixserve.prefix import Prefix
from radixserve.request import Request, Sampling
from radixserve.simulate.replay import Traffic, replay

PROMPT = list(range(1000, 1000 + 2 * BLOCK_TOKENS + 6))


def request(name: str, ids: list[int] = PROMPT, namespace: str = "public") -> Request:
    sampling = Sampling(max_tokens=5, seed=1)
    return Request(id=name, prompt_ids=ids, sampling=sampling, namespace=namespace)


def test_the_simulator_reads_what_was_recorded(tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    log = TrafficLog(file, None)
    for name, ids in (("a", PROMPT), ("b", [*PROMPT[:BLOCK_TOKENS], 7]), ("c", PROMPT)):
        log.arrived(request(name, ids))
        log.ended(name, 9)
    log.close()
    lines = list(trace.read(file))
    assert [(each.input_length, each.output_length) for each in lines] == [
        (134, 9),
        (65, 9),
        (134, 9),
    ]
    traffic = Traffic.of(lines)
    assert (traffic.block_tokens, traffic.num_blocks, traffic.num_distinct) == (64, 8, 4)
    assert replay(traffic, "lru", 9, lambda: None).hits == 4 / 8


def test_lines_stand_in_the_order_of_arrival_and_each_is_written_once_its_request_has_ended(
    tmp_path: Path,
) -> None:
    file = tmp_path / "log.jsonl"
    log = TrafficLog(file, "key")
    for name in "abc":
        log.arrived(request(name))
    log.ended("b", 2)
    assert file.read_text() == ""
    log.ended("a", 1)
    log.ended("a", 100)
    log.close()
    assert [json.loads(line)["output_length"] for line in file.read_text().splitlines()] == [
        1,
        2,
        0,
    ]


def test_a_request_that_never_ends_holds_back_a_bounded_number_of_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(traffic_log, "MOST_WAITING", 10)
    file = tmp_path / "log.jsonl"
    log = TrafficLog(file, None)
    log.arrived(request("endless"))
    for number in range(10):
        log.arrived(request(f"{number}"))
        log.ended(f"{number}", 3)
    assert len(file.read_text().splitlines()) == 11


def test_time_never_goes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([5_000_000, 3_000_000])
    monkeypatch.setattr("time.time_ns", lambda: next(clock))
    file = tmp_path / "log.jsonl"
    log = TrafficLog(file, None)
    for name in "ab":
        log.arrived(request(name))
        log.ended(name, 0)
    log.close()
    assert [json.loads(line)["timestamp"] for line in file.read_text().splitlines()] == [5, 5]


def test_hashes_cover_all_tokens_before_and_the_namespace_and_depend_on_the_key() -> None:
    base = block_hashes(b"k", Prefix.of("public", PROMPT))
    assert len(base) == 3
    assert all(0 <= each < 1 << 63 for each in base)
    assert block_hashes(b"k", Prefix.of("public", PROMPT[:BLOCK_TOKENS])) == base[:1]
    others = [
        block_hashes(b"k", Prefix.of("other", PROMPT)),
        block_hashes(b"l", Prefix.of("public", PROMPT)),
        block_hashes(b"k", Prefix.of("public", [9, *PROMPT[1:]])),
    ]
    every = [set(each) for each in (base, *others)]
    assert all(one.isdisjoint(two) for one, two in itertools.combinations(every, 2))


def test_blocks_of_public_tokens_have_the_same_hashes_for_all() -> None:
    base = block_hashes(b"k", Prefix.of("public", PROMPT))
    one, two = (
        block_hashes(b"k", Prefix.of(name, PROMPT, num_public=BLOCK_TOKENS)) for name in "ab"
    )
    assert one[0] == two[0] == base[0]
    assert set(one[1:]).isdisjoint({*two[1:], *base})


def test_only_the_user_can_read_the_file_and_runs_add_to_it(tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    for name in "ab":
        log = TrafficLog(file, "key")
        log.arrived(request(name))
        log.close()
    assert file.stat().st_mode & 0o777 == 0o600
    hashes = [json.loads(line)["hash_ids"] for line in file.read_text().splitlines()]
    assert hashes[0] == hashes[1]


def test_a_request_that_does_not_use_the_cache_is_left_out(tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    log = TrafficLog(file, None)
    sampling = Sampling(max_tokens=5, seed=1)
    log.arrived(Request(id="a", prompt_ids=PROMPT, sampling=sampling, reads_cache=False))
    log.close()
    assert file.read_text() == ""


def test_a_file_that_cannot_be_written_is_a_refused_start(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="cannot record to"):
        TrafficLog(tmp_path / "no" / "log.jsonl", None)


def test_a_full_disk_ends_the_recording_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    log = TrafficLog(tmp_path / "log.jsonl", None)

    def full(descriptor: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    for name in "ab":
        log.arrived(request(name))
        log.ended(name, 1)
    log.close()
    assert caplog.text.count("nothing is recorded") == 1


def test_of_a_line_that_did_not_fit_nothing_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, write = tmp_path / "log.jsonl", os.write
    log = TrafficLog(file, None)
    for name in "abc":
        log.arrived(request(name))
    log.ended("b", 2)
    log.ended("c", 2)
    monkeypatch.setattr(os, "write", lambda where, lines: write(where, lines[:-7]))
    log.ended("a", 2)
    monkeypatch.undo()
    assert len(list(trace.read(file))) == 2
    after = TrafficLog(file, None)
    after.arrived(request("d"))
    after.close()
    assert len(list(trace.read(file))) == 3


def test_a_pipe_that_nobody_reads_is_a_refused_start(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(StartupError):
        TrafficLog(tmp_path / "pipe", None)
