"""The soak of benchmarks/soak.py, shortened: every row of its table is as it should be. Its clients
notice faults.
"""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from radixserve.loadtest.target import Target, base_url, connect
from tests.fake_openai import FakeOpenAI

ROOT = Path(__file__).parent.parent.parent
PATIENCE_SECONDS = 480  # a busy machine takes several times as long as the 50 s of an idle one
SHORT = ("--minutes", "0.4", "--kill-every", "7", "--conversations", "8")
sys.path.append(str(ROOT / "benchmarks"))  # its modules are found from there, as when it is run

from soak_clients import KILLED_TWICE, WRONG, Client, Full, Tally, references  # noqa: E402
from soak_readings import sizes  # noqa: E402
from soak_requests import conversations  # noqa: E402


@pytest.mark.model
@pytest.mark.timeout(PATIENCE_SECONDS + 60)
def test_nothing_is_wrong_lost_or_left_behind_after_a_short_soak() -> None:
    code, output = run([sys.executable, str(ROOT / "benchmarks" / "soak.py"), *SHORT])
    assert code == 0, output
    rows = [line.split(" | ") for line in output.splitlines() if line.startswith("| ")]
    assert len(rows) > 30
    assert {row[-1] for row in rows[1:]} == {"yes |"}, output


def run(command: list[str]) -> tuple[int, str]:
    """Exit code and output; terminated if it takes too long, so that it ends what it
    has started.
    """
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            output = process.communicate(timeout=PATIENCE_SECONDS)[0]
        except subprocess.TimeoutExpired:
            process.terminate()
            output = process.communicate()[0]
    return process.returncode, output


async def soaked(before: str | None, after: str | None) -> Tally:
    """What clients counted against a stand-in with one fault while it gave the references, and with
    another later.
    """
    fake, pool = FakeOpenAI(before), conversations(6, seed=3)
    async with fake.serve() as url, connect(Target(base_url(url))) as http:
        expected = await references(http, pool, "fake", lambda: None)
        fake.fault = after
        tally = Tally()
        await Client(http, expected, "fake", tally).run(random.Random(1), lambda: tally.sent < 60)
    return tally


async def test_clients_of_a_sound_server_find_nothing_wrong() -> None:
    tally = await soaked(None, None)
    assert tally.right > 20
    assert tally.failures[WRONG] == 0
    assert tally.right + tally.left + tally.refused + tally.failures.total() == tally.sent


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ("depends on the batch", WRONG),
        ("cut", "incomplete answer"),
        ("error in stream", "error in answer"),
        ("overloaded", "http 503"),
    ],
)
async def test_clients_notice_what_is_wrong_or_lost(fault: str, kind: str) -> None:
    tally = await soaked(None, fault)
    assert tally.failures[kind] > 0
    assert kind in tally.examples
    assert tally.lost == tally.failures.total() - tally.failures[WRONG]


def answer(*messages: dict[str, Any]) -> Full:
    made = Full()
    for message in messages:
        made.take(message)
    return made


def piece(text: str, logprob: float, reason: str | None = None) -> dict[str, Any]:
    logprobs = {"content": [{"token": text, "logprob": logprob}]}
    return {
        "choices": [
            {"index": 0, "delta": {"content": text}, "logprobs": logprobs, "finish_reason": reason}
        ]
    }


def test_a_digest_tells_all_but_the_cuts_of_a_stream() -> None:
    usage: dict[str, Any] = {
        "choices": [],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
    }
    whole = answer(piece("a", -1.0), piece("b", -2.0, "stop"), usage)
    joined = piece("ab", 0.0, "stop")
    joined["choices"][0]["logprobs"]["content"] = [
        {"token": "a", "logprob": -1.0},
        {"token": "b", "logprob": -2.0},
    ]
    assert answer(joined, usage).digest == whole.digest
    others = [
        answer(piece("a", -1.0), piece("b", -2.1, "stop"), usage),
        answer(piece("a", -1.0), piece("b", -2.0, "length"), usage),
        answer(piece("a", -1.0), piece("c", -2.0, "stop"), usage),
        answer(piece("a", -1.0), piece("b", -2.0, "stop")),
    ]
    assert whole.digest not in [each.digest for each in others]
    assert answer(piece("a", -1.0)).begins(whole)
    assert not answer(piece("b", -1.0)).begins(whole)


def test_a_folder_is_counted_without_what_is_just_being_renamed(tmp_path: Path) -> None:
    for name in ("a", "a.tmp", "b.tmp"):
        (tmp_path / name).write_bytes(b"1234")
    assert sizes(tmp_path) == {"a": 4, "b.tmp": 4}


def test_the_blame_of_two_deaths_is_counted_by_itself() -> None:
    tally = Tally()
    tally.fail(KILLED_TWICE, "x" * 5000)
    tally.fail("timeout", "y")
    assert tally.lost == 1
    assert len(tally.examples[KILLED_TWICE]) < 2000
