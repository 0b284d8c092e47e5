"""Pins that requests ask for: their share, what they displace, and what they answer."""

from __future__ import annotations

import msgspec
import pytest

from radixserve.engine.pins import MAX_OF_TENANT, MAX_PINS
from radixserve.prefix import pack
from radixserve.questions import Pin
from radixserve.request import PinWish, Request
from radixserve.step import PinOutcome
from tests.engine.content_model import expected
from tests.engine.harness import request
from tests.engine.test_pins import OTHER, SYSTEM, Clocked

THIRD = list(range(301, 321))


def wishing(
    name: str, prompt: list[int], num_tokens: int = 20, seconds: float = 60, **more: object
) -> Request:
    wish = PinWish(id=name, num_tokens=num_tokens, seconds=seconds)
    return msgspec.structs.replace(request(name, prompt, 2), pins=(wish,), **more)


class Wishing(Clocked):
    """Of 160 slots pins may hold 80, and those of one tenant's requests 40."""

    def __init__(self, *, ahead: bool = False) -> None:
        super().__init__(ahead=ahead, slots=160)

    def wish(self, *requests: Request) -> list[PinOutcome]:
        """Run requests one after the other; what became of their wishes."""
        for each in requests:
            self.submit(each)
            self.run()
            assert self.tokens(each.id) == expected(each.prompt_ids, 2)
        return [outcome for each in requests for outcome in self.events[each.id][0].pins]


@pytest.fixture(params=[False, True], ids=["in turn", "ahead"])
def engine(request: pytest.FixtureRequest) -> Wishing:
    return Wishing(ahead=request.param)


def test_the_beginning_of_a_prompt_stays_and_a_hit_renews_it(engine: Wishing) -> None:
    assert engine.wish(wishing("a", [*SYSTEM, 50])) == [PinOutcome("accepted", 20)]
    (state,) = engine.listed()
    assert (state.id, state.tenant, state.ttl, state.tokens) == ("a", "default", 60, 20)
    told = engine.pins.changes()
    assert told is not None
    assert [(each.id, each.packed, each.tenant) for each in told.made] == [
        ("a", pack(SYSTEM), "default")
    ]
    engine.now += 50
    engine.fill()
    assert engine.cached([*SYSTEM, 50]) == 20
    engine.compute([*SYSTEM, 60])
    assert engine.listed()[0].seconds_left == 60
    engine.now += 60
    engine.fill()
    assert engine.cached(SYSTEM) == 0
    engine.assert_drained()


def test_a_request_without_a_wish_pins_nothing(engine: Wishing) -> None:
    assert engine.wish(request("a", SYSTEM, 2)) == []
    assert engine.listed() == []
    assert engine.pins.changes() is None


def test_the_least_recently_used_pin_of_the_same_tenant_gives_way(engine: Wishing) -> None:
    engine.wish(wishing("a", [*SYSTEM, 50]), wishing("b", [*OTHER, 50]))
    engine.compute([*SYSTEM, 51])
    assert engine.wish(wishing("c", [*THIRD, 50])) == [PinOutcome("accepted", 20)]
    assert engine.held() == {"a": 20, "c": 20}
    other = wishing("d", [*range(401, 421), 50], tenant="other")
    assert engine.wish(other) == [PinOutcome("accepted", 20)]
    assert engine.held() == {"a": 20, "c": 20, "d": 20}


def test_what_is_beyond_the_share_is_clipped_or_refused(engine: Wishing) -> None:
    long = list(range(500, 560))
    assert engine.wish(wishing("a", long, 60)) == [PinOutcome("clipped", 40)]
    assert engine.wish(wishing("b", long, 60)) == [PinOutcome("clipped", 40)]
    assert engine.held() == {"b": 40}, "the longer wish takes the place of what was clipped"
    assert [(each.tokens, each.wanted) for each in engine.core.scheduler.pins.states()] == [
        (40, 60)
    ]
    engine.compute(OTHER)
    engine.pin([*range(600, 680)], "none of it is cached")
    engine.compute([*range(600, 680)])
    assert engine.held() == {"none of it is cached": 80}
    assert engine.wish(wishing("c", [*THIRD, 50])) == [PinOutcome("refused", 0)]
    assert list(engine.held()) == ["none of it is cached"]


def test_the_share_is_one_of_the_tenants_quota(engine: Wishing) -> None:
    asked = wishing("a", [*SYSTEM, 50], tenant="t", namespace="t/x", kv_quota=0.25)
    assert engine.wish(asked) == [PinOutcome("clipped", 10)]


@pytest.mark.parametrize("first", ["operator", "request"])
def test_an_operators_pin_ends_for_no_request_but_requests_pins_for_it(
    engine: Wishing, first: str
) -> None:
    def operate() -> None:
        engine.compute([*SYSTEM, *OTHER, *THIRD])
        assert engine.pin([*SYSTEM, *OTHER, *THIRD], "operator").tokens == 60

    if first == "operator":
        operate()
    engine.wish(wishing("a", [*range(401, 431), 50], 30))
    if first == "request":
        operate()
        assert engine.held() == {"operator": 60}
    else:
        assert engine.held() == {"operator": 60, "a": 20}


def test_the_same_prefix_is_pinned_by_both(engine: Wishing) -> None:
    engine.wish(wishing("a", [*SYSTEM, 50], seconds=10))
    engine.pin(SYSTEM, "operator", seconds=500)
    assert engine.held() == {"a": 20, "operator": 20}
    assert engine.pinned_tokens() == 20
    engine.now += 10
    assert engine.held() == {"operator": 20}
    engine.wish(wishing("b", [*SYSTEM, 50], seconds=10))
    assert engine.listed()[1].seconds_left == 500


def test_a_conversation_has_one_pin_for_each_time(engine: Wishing) -> None:
    turns = [[*SYSTEM[:n], 7] for n in (5, 10, 15)]
    for i, turn in enumerate(turns):
        engine.wish(wishing(str(i), turn, len(turn) - 1))
    assert engine.held() == {"2": 15}
    engine.wish(wishing("sooner", [*SYSTEM, 7], 20, 30))
    assert engine.held() == {"sooner": 20, "2": 15}
    two = (PinWish(id="x", num_tokens=15, seconds=60), PinWish(id="y", num_tokens=21, seconds=30))
    asked = msgspec.structs.replace(request("two", [*SYSTEM, 7, 8], 2), pins=two)
    assert engine.wish(asked) == [PinOutcome("accepted", 15), PinOutcome("accepted", 21)]
    assert engine.held() == {"y": 21, "2": 15}


def test_what_a_request_does_not_keep_or_has_no_tokens_is_refused(engine: Wishing) -> None:
    assert (
        engine.wish(wishing("a", [*SYSTEM, 50], keeps_cache=False), wishing("b", [*SYSTEM, 50], 0))
        == [PinOutcome("refused", 0)] * 2
    )
    assert engine.listed() == []


def test_a_flood_of_wishes_is_bounded_in_number(engine: Wishing) -> None:
    engine.pin([1, 2], "operator")
    for number in range(MAX_OF_TENANT + 3):
        packed = pack([number, number])
        pin = Pin(
            id=f"t{number}",
            seconds=9,
            renews=True,
            namespace="public",
            packed=packed,
            tenant="t",
        )
        engine.answer_to(pin)
    held = engine.held()
    assert len(held) == MAX_OF_TENANT + 1
    assert {"operator", "t3"} <= held.keys()
    assert "t2" not in held
    for number in range(MAX_PINS):
        engine.pin([number], str(number))
    assert len(engine.held()) == MAX_PINS, "pins of requests end for those of operators"
    assert not any(each.tenant for each in engine.listed())


def test_pins_of_requests_give_way_to_a_request_before_those_of_operators(
    engine: Wishing,
) -> None:
    engine.wish(wishing("a", [*SYSTEM, 50], seconds=900))
    engine.compute(OTHER)
    engine.pin(OTHER, "operator", seconds=60)
    engine.compute(list(range(700, 836)))
    assert engine.held() == {"operator": 20, "a": 0}
    engine.compute([*SYSTEM, 50])
    assert engine.held() == {"operator": 20, "a": 20}
