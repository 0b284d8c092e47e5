"""What is pinned is kept in the tiers below while the device needs its room, when the engine dies
and when the server starts again.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from radixserve.cache.kvcache import KVCache
from radixserve.prefix import Prefix, pack
from radixserve.questions import (
    Asked,
    Configure,
    Drop,
    ListPins,
    Pin,
    PinList,
    Pinned,
    RestorePins,
    Unpin,
    Unpinned,
)
from radixserve.tiers.kept import KeptPrefixes
from tests.engine.content_model import expected
from tests.engine.harness import request
from tests.tiers.parts import Tiered

pytestmark = pytest.mark.usefixtures("few_are_worth_it")

LONG = [i % 7 for i in range(40)]
OTHER = [5 - i % 5 for i in range(50)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "s"


@pytest.fixture
def engine(folder: Path) -> Iterator[Tiered]:
    engine = Tiered(200, host_slots=200, folder=folder)
    yield engine
    engine.close()


def ask(engine: Tiered, question: Pin | Unpin | Drop | ListPins | RestorePins) -> object:
    answer: object = engine.answer_to(question)
    engine.tell_tiers_of_pins()
    return answer


def pin(name: str, tokens: list[int], seconds: float = 500.0) -> Pin:
    return Pin(id=name, seconds=seconds, renews=True, namespace="public", packed=pack(tokens))


def held(engine: Tiered) -> dict[str, int]:
    answer = ask(engine, ListPins())
    assert isinstance(answer, PinList)
    return {each.id: each.tokens for each in answer.pins}


def flood(engine: Tiered, name: str, num: int = 12) -> None:
    for number in range(num):
        prompt = [10 + number] * 120
        engine.ask(request(f"{name}{number}", prompt, 2))
        assert engine.tokens(f"{name}{number}") == expected(prompt, 2)


def test_what_gives_way_on_the_device_stays_in_host_memory(engine: Tiered) -> None:
    engine.ask(request("a", LONG), request("b", OTHER))
    assert isinstance(ask(engine, pin("p", LONG)), Pinned)
    assert engine.core.pins.relent()
    flood(engine, "x")
    assert engine.host is not None
    assert engine.cache.match(Prefix.of("public", LONG)) == 0
    assert engine.host.cache.match(Prefix.of("public", LONG)) == 40
    assert engine.host.cache.match(Prefix.of("public", OTHER)) == 0
    engine.ask(request("again", [*LONG, 3]))
    assert engine.cached("again") == (0, 40, 0)
    assert held(engine) == {"p": 40}
    ask(engine, Unpin(id="p"))
    flood(engine, "y", 30)
    assert engine.host.cache.match(Prefix.of("public", LONG)) == 0
    engine.assert_drained()


def test_host_memory_keeps_pins_within_their_share() -> None:
    engine = Tiered(200, host_slots=120)
    engine.ask(request("a", LONG))
    ask(engine, pin("p", LONG))
    assert engine.core.pins.relent()
    flood(engine, "x")
    assert engine.host is not None
    assert engine.host.cache.match(Prefix.of("public", LONG)) == 0, "30 slots do not hold 40"
    engine.assert_drained()


def test_a_pin_without_room_is_looked_at_again_only_when_more_of_it_came(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cache = KVCache(200)
    kept = KeptPrefixes(cache, 30)
    long, related = (Prefix.of("public", tokens) for tokens in (LONG, [*LONG[:10], 9]))
    publish(cache, long.first(35))
    kept.keep([long])
    looks = []
    monkeypatch.setattr(KeptPrefixes, "keep", lambda self, prefixes: looks.append(prefixes))
    publish(cache, related)
    kept.came(related)
    assert looks == kept.leases() == []
    publish(cache, long)
    kept.came(long)
    assert looks == [[long]]


def publish(cache: KVCache, prefix: Prefix) -> None:
    with cache.receive(prefix) or pytest.fail("there is room") as lease:
        lease.publish(prefix)


def test_a_smaller_budget_of_host_memory_keeps_less(engine: Tiered) -> None:
    engine.ask(request("a", LONG))
    ask(engine, pin("p", LONG))
    assert engine.core.pins.relent()
    flood(engine, "x")
    assert engine.host is not None
    engine.core.ask(Asked(1, Configure(host_budget=120 * 1024)))
    engine.step()
    while not engine.core.answers():
        engine.step()
    assert engine.host.cache.stats().pinned == 0
    flood(engine, "y")
    assert engine.host.cache.match(Prefix.of("public", LONG)) == 0


def test_without_room_on_the_device_and_in_host_memory_the_disk_has_it(folder: Path) -> None:
    engine = Tiered(200, folder=folder)
    engine.ask(request("a", LONG))
    ask(engine, pin("p", LONG))
    assert engine.core.pins.relent()
    flood(engine, "x")
    engine.ask(request("again", [*LONG, 3]))
    assert engine.cached("again") == (0, 0, 40)
    engine.close()


def test_what_is_pinned_is_offered_again_to_a_disk_that_lost_it(engine: Tiered) -> None:
    engine.ask(request("a", LONG))
    assert engine.store is not None
    ask(engine, Drop(namespaces=["nobody"]))
    engine.store.clear()
    assert engine.store.match(Prefix.of("public", LONG)) == 0
    ask(engine, pin("p", LONG))
    engine.settle()
    assert engine.store.match(Prefix.of("public", LONG)) == 40


@pytest.mark.parametrize("death", [True, False])
def test_pins_and_what_they_hold_survive_a_death_and_a_restart(folder: Path, death: bool) -> None:
    engine = Tiered(200, folder=folder)
    engine.ask(request("a", LONG))
    ask(engine, pin("p", LONG))
    ask(engine, pin("ended", OTHER))
    told = engine.core.pins.changes()
    assert told is not None
    assert ask(engine, Unpin(id="ended")) == Unpinned(0)
    engine.close()
    engine = Tiered(200, folder=folder)
    if death:  # the front asks for what it was told
        ask(engine, told.made[0])
    else:
        ask(engine, RestorePins())
    assert held(engine) == {"p": 0}
    (again,) = ask(engine, ListPins()).pins  # type: ignore[attr-defined]
    assert again.seconds_left == pytest.approx(500, abs=60)
    assert engine.store is not None
    assert engine.store.folder.pinned
    engine.ask(request("again", [*LONG, 3]))
    assert engine.cached("again") == (0, 0, 40)
    assert held(engine) == {"p": 40}
    engine.close()


def test_a_drop_ends_pins_in_all_tiers(engine: Tiered, folder: Path) -> None:
    engine.ask(request("a", LONG))
    ask(engine, pin("p", LONG))
    assert engine.core.pins.relent()
    flood(engine, "x")
    ask(engine, Drop())
    assert held(engine) == {}
    engine.settle()
    assert engine.store is not None
    assert engine.store.folder.pinned == {}
    assert engine.store.pins_left() == []
    engine.assert_drained()


def test_tiers_are_told_at_most_once_a_second(engine: Tiered) -> None:
    pins = engine.core.pins
    assert pins.patience is None
    engine.ask(request("a", LONG))
    asked = pin("p", LONG)
    pins.add(asked, Prefix.of("public", LONG))
    first = pins.for_tiers()
    assert first is not None
    assert [each.id for each in first] == ["p"]
    pins.remove("p")
    assert pins.for_tiers() is None
    assert pins.patience is not None
    assert 0 < pins.patience <= 1
    assert pins.for_tiers(at_once=True) == []
    assert pins.patience is None
