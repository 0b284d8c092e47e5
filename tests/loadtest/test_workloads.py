"""Workloads, traces and load shapes: data in, a schedule of sessions out, the same every time."""

from __future__ import annotations

import ast
import itertools
import json
from pathlib import Path
from statistics import mean

import pytest

from radixserve.loadtest import trace
from radixserve.loadtest.load import arrivals
from radixserve.loadtest.prose import prose
from radixserve.loadtest.session import WorkloadError
from radixserve.loadtest.workload import FOLDER, load_workload, names

ROOT = Path(__file__).parent.parent.parent


def test_loadtest_imports_nothing_of_the_server() -> None:
    for path in sorted((ROOT / "radixserve" / "loadtest").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            found = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            found += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            ours = [name for name in found if name.split(".")[0] == "radixserve"]
            assert all(name.startswith("radixserve.loadtest") for name in ours), path


def test_prose_depends_on_its_key_only_and_has_the_words_asked_for() -> None:
    assert prose(300, 1, "a") == prose(300, 1, "a") != prose(300, 1, "b")
    assert [len(prose(n, "x").split()) for n in (1, 9, 300)] == [1, 9, 300]


# -- prompts
# --------------------------------------------------------------------------------------------------


def test_every_workload_of_the_issue_is_there() -> None:
    assert names() == sorted(
        [
            "agent",
            "chat",
            "document",
            "few_shot",
            "flood",
            "mixed",
            "random",
            "shared_system",
            "trace",
        ]
    )


@pytest.mark.parametrize("name", names())
def test_a_workload_is_the_same_every_time_and_another_with_another_seed(name: str) -> None:
    assert load_workload(name) == load_workload(name)
    ours, theirs = load_workload(name), load_workload(name, ["seed=12345"])
    assert {str(session.turns[0].text) for session in ours.sessions}.isdisjoint(
        str(session.turns[0].text) for session in theirs.sessions
    )
    assert len({session.name for session in ours.sessions}) == len(ours.sessions)


def test_shared_system_is_64_chat_requests_over_4_system_prompts() -> None:
    workload = load_workload("shared_system")
    assert workload.num_requests == 64
    assert len({str(session.opening) for session in workload.sessions}) == 4
    assert {len(session.turns) for session in workload.sessions} == {2}


def test_random_prompts_share_nothing() -> None:
    texts = [session.turns[0].text for session in load_workload("random").sessions]
    assert not [
        pair for pair in itertools.combinations(texts, 2) if str(pair[0])[:40] == str(pair[1])[:40]
    ]


def test_few_shot_prompts_open_with_worked_examples() -> None:
    opening = load_workload("few_shot").sessions[0].opening
    assert [message["role"] for message in opening] == ["system", *["user", "assistant"] * 8]


def test_the_parts_of_a_flood_have_tenants_and_times_of_their_own() -> None:
    sessions = load_workload("flood").sessions
    flood = [session for session in sessions if session.turns[0].kind == "flood"]
    assert (len(flood), {session.at for session in flood}) == (60, {10.0})
    assert {session.turns[0].body["user"] for session in sessions} == {"quiet", "flood"}
    assert [session.at for session in sessions] == sorted(session.at or 0.0 for session in sessions)


def test_lengths_are_numbers_or_ranges_and_everything_can_be_set() -> None:
    changes = [
        "groups=2",
        "users=3",
        "turns=1",
        "user_words=[5, 9]",
        "body.max_tokens=7",
        "load.clients=2",
    ]
    workload = load_workload("shared_system", changes)
    turns = [session.turns[0] for session in workload.sessions]
    lengths = {len(str(turn.text).split()) for turn in turns}
    assert workload.num_requests == 6
    assert lengths <= set(range(5, 10))
    assert len(lengths) > 1
    assert (turns[0].body["max_tokens"], workload.load.clients) == (7, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed = 1": "seed = true"}, "seed must be of type int, not True"),
        ({"users = 8": "users = 0"}, r"\[chat\]: users must be at least 1, not 0"),
        ({"user_words = 16": ""}, "user_words must be a number of words or"),
        ({"turns = 2": "turns = 2\nspeed = 3"}, "unknown field speed"),
        ({"[chat": "[other"}, "exactly one of the tables chat, parts, mixed, trace is needed"),
        ({"seed = 1": "seed ="}, "is not TOML"),
        ({"clients = 8": 'shape = "poisson"'}, "the shape poisson needs rate"),
        (
            {"clients = 8": 'shape = "wave"'},
            "shape must be one of closed, poisson, ramp, burst, schedule, not 'wave'",
        ),
        ({"clients = 8": 'shape = "schedule"'}, "no times of its own"),
        ({"clients = 8": "leave = 0.6\nslow = 0.6"}, "make more than 1"),
        ({"clients = 8": "leave = 1.5"}, "leave must lie between 0 and 1"),
        (
            {"clients = 8": 'shape = "burst"\nburst = 0.5\nperiod_seconds = 1'},
            "burst must be a whole number, not 0.5",
        ),
        ({"clients = 8": "rate = -1"}, "rate must be a number of at least 0"),
    ],
)
def test_a_wrong_workload_is_refused_by_field(
    tmp_path: Path, change: dict[str, str], message: str
) -> None:
    text = (FOLDER / "shared_system.toml").read_text()
    for old, new in change.items():
        text = text.replace(old, new)
    path = tmp_path / "w.toml"
    path.write_text(text)
    with pytest.raises(WorkloadError, match=message):
        load_workload(str(path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("users", "must be key=value"),
        ("user=3", "unknown field user"),
        ("seed.x=3", "x is not in a table"),
        ("parts.7.users=1", "there is no 7"),
    ],
)
def test_a_change_that_does_not_fit_is_refused(change: str, message: str) -> None:
    with pytest.raises(WorkloadError, match=message):
        load_workload("flood" if change.startswith("parts") else "shared_system", [change])


# -- load shapes
# --------------------------------------------------------------------------------------------------


def times(shape: str, count: int, **numbers: float) -> list[float]:
    return [at or 0.0 for at in itertools.islice(arrivals(shape, numbers, 1), count)]


def test_poisson_arrivals_have_the_rate_and_the_spread() -> None:
    made = times("poisson", 4000, rate=4.0)
    gaps = [b - a for a, b in itertools.pairwise(made)]
    assert made == times("poisson", 4000, rate=4.0)
    assert mean(gaps) == pytest.approx(0.25, rel=0.05)
    assert mean((gap - 0.25) ** 2 for gap in gaps) == pytest.approx(0.25**2, rel=0.15)


def test_a_ramp_goes_from_one_rate_to_the_other_and_stays() -> None:
    made = times("ramp", 3000, rate=2.0, to_rate=10.0, ramp_seconds=100.0)
    counts = [sum(low <= at < low + 20 for at in made) for low in (0, 40, 80, 120, 200)]
    assert counts == pytest.approx([56, 120, 184, 200, 200], rel=0.25)


def test_bursts_come_together() -> None:
    assert times("burst", 5, burst=2, period_seconds=3.0) == [0, 0, 3, 3, 6]


# -- traces
# --------------------------------------------------------------------------------------------------


def write_trace(path: Path, *lines: object) -> Path:
    path.write_text(
        "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    )
    return path


def line(timestamp: int, length: int, ids: list[int], output: int = 10) -> dict[str, object]:
    return {
        "timestamp": timestamp,
        "input_length": length,
        "output_length": output,
        "hash_ids": ids,
    }


def test_equal_blocks_of_a_trace_become_equal_text_of_the_scaled_length(tmp_path: Path) -> None:
    path = write_trace(
        tmp_path / "t", line(1000, 1100, [0, 1, 2]), line(3000, 1500, [0, 1, 3], 500)
    )
    changes = [
        f"file={path}",
        "length_scale=0.5",
        "speed=4",
        "tokens_per_word=1.0",
        "most_output=100",
    ]
    first, second = load_workload("trace", changes).sessions
    assert (first.at, second.at) == (0.0, 0.5)
    one, two = (str(session.turns[0].text).split() for session in (first, second))
    assert (len(one), len(two)) == (550, 750)
    assert one[:512] == two[:512]
    assert one[512:520] != two[512:520]
    assert [session.turns[0].body["max_tokens"] for session in (first, second)] == [5, 100]


def test_a_trace_becomes_token_ids_of_exactly_its_lengths(tmp_path: Path) -> None:
    path = write_trace(tmp_path / "t", line(0, 600, [7, 8]), line(0, 1030, [7, 9, 10]))
    changes = [f"file={path}", "length_scale=1", "blocks=ids", "lowest_id=5", "highest_id=50"]
    one, two = (session.turns[0].text for session in load_workload("trace", changes).sessions)
    assert (len(one), len(two)) == (600, 1030)
    assert one[:512] == two[:512] != two[512:1024]
    assert set(one) <= set(range(5, 51))


def test_a_slice_of_a_trace_starts_at_its_own_time(tmp_path: Path) -> None:
    path = write_trace(tmp_path / "t", *(line(n * 1000, 10, [n]) for n in range(10)))
    sessions = load_workload("trace", [f"file={path}", "skip=4", "requests=3"]).sessions
    assert [(session.name, session.at) for session in sessions] == [
        ("line 5", 0.0),
        ("line 6", 1.0),
        ("line 7", 2.0),
    ]


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ('{"timestamp": 5, "input', "line 3 is not JSON"),
        ("[1, 2]", "line 3: must be an object"),
        ({"timestamp": 5}, "line 3: input_length is missing or of the wrong type: None"),
        (line(5, 10, ["a"]), "line 3: hash_ids must be whole numbers"),  # type: ignore[list-item]
        (line(5, 1030, [1]), "line 3: 1030 tokens need 3 hash_ids of 512 tokens, not 1"),
        (line(5, 0, []), "line 3: a negative time, an empty prompt"),
        (line(True, 10, [1]), "line 3: timestamp is missing or of the wrong type"),
    ],
)
def test_a_broken_line_of_a_trace_is_named_by_its_number(
    tmp_path: Path, broken: object, message: str
) -> None:
    path = write_trace(tmp_path / "t.jsonl", line(1, 10, [0]), "", broken)
    with pytest.raises(WorkloadError, match=message):
        list(trace.read(path))


def test_a_trace_whose_times_go_back_is_not_replayed(tmp_path: Path) -> None:
    path = write_trace(tmp_path / "t.jsonl", line(1, 10, [0]), "", line(0, 10, [1]))
    with pytest.raises(WorkloadError, match="line 3: the timestamp is before that of the line"):
        load_workload("trace", [f"file={path}"])


def test_a_trace_that_is_not_there_or_not_text_or_too_short_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match="cannot read the trace"):
        load_workload("trace", ["file=/no/such/trace"])
    (tmp_path / "b").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(WorkloadError, match="is not text"):
        load_workload("trace", [f"file={tmp_path / 'b'}"])
    with pytest.raises(WorkloadError, match="no requests after skipping 1000"):
        load_workload("trace", ["skip=1000"])
