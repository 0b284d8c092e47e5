"""Every question of an operator, while a request is preempted and while K/V comes from the disk: it
is answered in a bounded number of steps, and no request gets a wrong token then or later.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from radixserve.prefix import Prefix, pack
from radixserve.questions import (
    AnyQuestion,
    Drop,
    Explain,
    Failed,
    ListPins,
    Pin,
    ShowTree,
    Summarize,
    Unpin,
)
from radixserve.store.folder.disk_store import DiskStore
from tests.engine.content_model import expected
from tests.engine.harness import request
from tests.tiers.parts import Tiered, forget

pytestmark = pytest.mark.usefixtures("few_are_worth_it")

LONG = [i % 7 for i in range(40)]

PIN = Pin(id="p", seconds=60.0, renews=True, namespace="public", packed=pack(LONG[:8]))
QUESTIONS: dict[str, AnyQuestion] = {
    "explain": Explain(namespace="public", tokens=LONG),
    "pin": PIN,
    "unpin": Unpin(id="p"),
    "pins": ListPins(),
    "tree": ShowTree(),
    "summary": Summarize(),
    "flush": Drop(),
    "drop a prefix": Drop(prefix=LONG[:20]),
    "drop what is old": Drop(older_than=1e-9),
}
every_question = pytest.mark.parametrize("question", QUESTIONS.values(), ids=QUESTIONS.keys())


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Tiered]:
    """An engine whose disk has LONG, of which the device has a pinned beginning only."""
    engine = Tiered(130, folder=tmp_path / "s")
    engine.ask(request("first", LONG))
    asked(engine, PIN)
    forget(engine.cache)
    yield engine
    engine.settle()
    engine.close()


def asked(engine: Tiered, question: AnyQuestion) -> Any:
    answer = engine.answer_to(question)
    assert not isinstance(answer, Failed), answer
    return answer


def assert_right(engine: Tiered, **prompts: tuple[list[int], int]) -> None:
    """All of these requests, and one that comes now, have the right tokens."""
    engine.settle()
    engine.ask(request("next", LONG))
    for name, (prompt, count) in {"next": (LONG, 4), **prompts}.items():
        assert engine.tokens(name) == expected(prompt, count)
        assert engine.events[name][-1].finish == "length"


@every_question
def test_while_a_request_is_preempted(engine: Tiered, question: AnyQuestion) -> None:
    prompts = {name: ([i] * 20, 70) for i, name in enumerate("ab")}
    engine.submit(*(request(name, *each) for name, each in prompts.items()))
    while engine.core.has_work and not engine.core.scheduler.totals.preemptions:
        engine.step()
    asked(engine, question)
    assert engine.core.has_work, "they had ended before"
    assert_right(engine, **prompts)


@every_question
def test_while_a_prefix_is_loaded_from_the_disk(
    engine: Tiered, question: AnyQuestion, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads, go_on, load = threading.Event(), threading.Event(), DiskStore.load

    def slow(self: DiskStore, prefix: Prefix, start: int, stop: int) -> object:
        loads.set()
        go_on.wait(10.0)
        return load(self, prefix, start, stop)

    monkeypatch.setattr(DiskStore, "load", slow)
    engine.submit(request("waits", LONG))
    engine.take(engine.core.step())
    assert loads.wait(10.0)
    threading.Timer(0.05, go_on.set).start()  # a drop waits for the disk, which has one thread
    asked(engine, question)
    go_on.wait()
    assert_right(engine, waits=(LONG, 4))
