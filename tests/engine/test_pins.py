"""Pins: what they hold while others need room, when they end, and when they give way."""

from __future__ import annotations

import logging

import msgspec
import pytest

from radixserve.cache.survey import drop_unused
from radixserve.engine.core import EngineCore
from radixserve.engine.pins import MAX_PINS, Pins
from radixserve.engine.scheduler import Limits
from radixserve.prefix import Prefix, pack
from radixserve.questions import (
    Drop,
    Explain,
    Explanation,
    Failed,
    ListPins,
    Pin,
    PinList,
    Pinned,
    PinState,
    ShowTree,
    Summarize,
    Summary,
    Tree,
    Unpin,
    Unpinned,
)
from tests.engine.content_model import expected
from tests.engine.harness import Harness, request

SYSTEM = list(range(1, 21))
OTHER = list(range(101, 121))


class Clocked(Harness):
    """An engine of few slots, of which pins may hold a half, and a clock that tests turn."""

    def __init__(
        self, *, ahead: bool, cache: bool = True, share: float = 0.5, slots: int = 80
    ) -> None:
        super().__init__(num_slots=slots, cache=cache, ahead=ahead)
        self.now = 1000.0
        self.core = EngineCore(self.model, self.cache, Limits(4, 16), ahead=ahead)
        pins = Pins(self.cache, int(slots * share), share / 2, lambda: self.now)
        self.core.pins = self.core.scheduler.pins = self.core.answering._pins = pins
        self.pins = pins

    def pin(
        self, tokens: list[int], name: str = "a", seconds: float = 60, *, renews: bool = True
    ) -> Pinned:
        packed = pack(tokens)
        question = Pin(id=name, seconds=seconds, renews=renews, namespace="public", packed=packed)
        answer = self.answer_to(question)
        assert isinstance(answer, Pinned)
        return answer

    def listed(self) -> list[PinState]:
        answer = self.answer_to(ListPins())
        assert isinstance(answer, PinList)
        return answer.pins

    def ends(self) -> dict[str, float]:
        """What the front is told of the ends of pins."""
        told = self.core.pins.changes()
        return {} if told is None else told.seconds

    def held(self) -> dict[str, int]:
        return {each.id: each.tokens for each in self.listed()}

    def compute(self, *prompts: list[int], max_tokens: int = 1) -> None:
        """Run the prompts one after the other, and check their answers."""
        for prompt in prompts:
            name = f"r{len(self.events)}"
            self.submit(request(name, prompt, max_tokens))
            self.run()
            assert self.tokens(name) == expected(prompt, max_tokens)

    def fill(self) -> None:
        """Compute enough for everything that is not held to be evicted."""
        for first in range(200, 900, 100):
            self.compute(list(range(first, first + 30)))

    def cached(self, tokens: list[int]) -> int:
        return self.cache.match(Prefix.of("public", tokens))

    def pinned_tokens(self) -> float:
        return self.core.stats().numbers[("radixserve_pinned_tokens",)]


@pytest.fixture(params=[False, True], ids=["in turn", "ahead"])
def engine(request: pytest.FixtureRequest) -> Clocked:
    return Clocked(ahead=request.param)


def test_what_is_pinned_stays_while_everything_else_is_evicted(engine: Clocked) -> None:
    engine.compute([*SYSTEM, 50, 51], OTHER)
    assert engine.pin(SYSTEM) == Pinned(
        id="a", status="accepted", tokens=20, wanted=20, seconds_left=60
    )
    engine.fill()
    assert engine.cached([*SYSTEM, 50, 51]) == 20
    assert engine.cached(OTHER) == 0
    assert engine.pinned_tokens() == 20
    assert engine.answer_to(Unpin(id="a")) == Unpinned(20)
    engine.fill()
    assert engine.cached(SYSTEM) == 0
    assert isinstance(engine.answer_to(Unpin(id="a")), Failed)
    engine.assert_drained()


def test_a_pin_ends_with_its_time_and_a_hit_renews_it(engine: Clocked) -> None:
    engine.compute(SYSTEM)
    engine.pin(SYSTEM, "renewed")
    engine.pin(SYSTEM[:10], "fixed", renews=False)
    told = engine.core.pins.changes()
    assert told is not None
    assert [(each.id, each.seconds_left, each.renews) for each in told.made] == [
        ("renewed", 60, True),
        ("fixed", 60, False),
    ]
    assert told.made[1].packed == pack(SYSTEM[:10])
    engine.now += 50
    engine.compute([*SYSTEM, 60])
    assert engine.ends() == {"renewed": 60.0}
    assert [(each.id, each.seconds_left, each.ttl, each.hits) for each in engine.listed()] == [
        ("fixed", 10, None, 1),
        ("renewed", 60, 60, 1),
    ]
    assert engine.core.patience == 10
    engine.now += 10
    engine.compute(OTHER)
    assert engine.ends() == {"fixed": 0.0}
    assert engine.held() == {"renewed": 20}
    engine.now += 50
    engine.step()
    assert engine.listed() == []
    assert engine.core.patience is None
    assert engine.pinned_tokens() == 0
    engine.assert_drained()


def test_a_pin_holds_what_is_cached_and_grows_with_requests(engine: Clocked) -> None:
    answer = engine.pin([*SYSTEM, *OTHER[:5]])
    assert (answer.status, answer.tokens, answer.wanted) == ("accepted", 0, 25)
    assert "25 tokens are not cached" in answer.why
    engine.compute(SYSTEM[:8])
    assert engine.held() == {"a": 8}
    engine.compute([*SYSTEM, 70])
    engine.fill()
    assert engine.held() == {"a": 20}
    engine.compute([*SYSTEM, *OTHER[:5], 71])
    engine.fill()
    assert engine.held() == {"a": 25}
    assert engine.cached([*SYSTEM, *OTHER[:5]]) == 25


def test_pins_together_hold_their_share_and_what_they_have_in_common_counts_once(
    engine: Clocked,
) -> None:
    engine.compute([*SYSTEM, *OTHER], [*SYSTEM, *range(60, 75)])
    assert engine.pin([*SYSTEM, *range(60, 75)]).tokens == 35
    clipped = engine.pin([*SYSTEM, *OTHER], "b")
    assert (clipped.status, clipped.tokens) == ("clipped", 25)
    assert "may hold 40 tokens" in clipped.why
    assert engine.pinned_tokens() == 40
    refused = engine.pin(OTHER, "c")
    assert (refused.status, refused.id) == ("refused", "")
    assert engine.pin([*SYSTEM, *OTHER], "d", seconds=90).id == "b", "it is pinned already"
    engine.answer_to(Unpin(id="a"))
    engine.compute([*SYSTEM, *OTHER, 5])
    assert engine.held() == {"b": 40}


def test_a_pin_that_holds_all_of_its_share_is_left_alone(
    engine: Clocked, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = list(range(1, 61))
    engine.compute(prompt)
    assert engine.pin(prompt[:50]).tokens == 40, "a half of 80 slots"
    monkeypatch.setattr(engine.pins, "_hold", lambda pin: pytest.fail("held again"))
    engine.compute(prompt)
    assert engine.held() == {"a": 40}


def test_a_drop_ends_the_pins_on_what_it_drops(engine: Clocked) -> None:
    engine.compute([*SYSTEM, 50], OTHER)
    engine.pin(SYSTEM[:10], "above")
    engine.pin([*SYSTEM, 50], "dropped")
    engine.pin([*SYSTEM, 50, 51, 52], "longer")
    engine.pin(OTHER[:5], "beside")
    engine.answer_to(Drop(prefix=SYSTEM[:15]))
    assert engine.held() == {"above": 10, "beside": 5}
    assert engine.cached(SYSTEM) == 10
    assert engine.ends() == {"dropped": 0, "longer": 0}
    for _ in drop_unused(engine.cache, None, lambda last_use: True):
        engine.cache.check()
    assert engine.cached(OTHER) == 5
    engine.answer_to(Drop())
    assert engine.held() == {}
    assert engine.cached(SYSTEM) == engine.cached(OTHER) == 0
    engine.assert_drained()


def test_pins_give_way_to_a_request_that_fits_only_without_them(
    engine: Clocked, caplog: pytest.LogCaptureFixture
) -> None:
    engine.compute(SYSTEM, OTHER)
    engine.pin(SYSTEM, "later", seconds=90)
    engine.pin(OTHER, "sooner", seconds=60)
    with caplog.at_level(logging.WARNING):
        engine.compute(list(range(200, 255)), max_tokens=2)
    assert "pin sooner of 20 tokens gives way" in caplog.text
    assert engine.held() == {"sooner": 0, "later": 20}
    engine.compute(list(range(300, 379)), max_tokens=2)
    assert engine.held() == {"sooner": 0, "later": 0}
    engine.compute([*SYSTEM, 5])
    assert engine.held() == {"sooner": 0, "later": 20}, "it holds again what a request computed"


def test_pins_give_way_to_a_request_that_grows(engine: Clocked) -> None:
    engine.compute(SYSTEM, OTHER)
    engine.pin(SYSTEM)
    engine.pin(OTHER, "b", seconds=90)
    engine.compute(list(range(200, 205)), max_tokens=75)
    assert engine.held()["a"] == 0


def test_preempted_requests_beside_pins_give_the_same_answers() -> None:
    engine = Clocked(ahead=True, slots=90)
    engine.compute(SYSTEM)
    engine.pin(SYSTEM)
    prompts = {name: [*SYSTEM, start] for name, start in (("x", 60), ("y", 70))}
    engine.submit(*(request(name, prompt, 50) for name, prompt in prompts.items()))
    engine.run()
    assert engine.core.scheduler.totals.preemptions > 0
    for name, prompt in prompts.items():
        assert engine.tokens(name) == expected(prompt, 50)
    assert engine.held() == {"a": 20}
    engine.answer_to(Unpin(id="a"))
    engine.assert_drained()


def test_a_node_is_pinned_with_all_above_it_and_the_tree_says_so(engine: Clocked) -> None:
    engine.compute([*SYSTEM, 50, 51], [*SYSTEM, 60])
    tree = engine.answer_to(ShowTree())
    assert isinstance(tree, Tree)
    assert not any(each.pinned for each in tree.nodes)
    leaf = next(each for each in tree.nodes if each.depth == 20 and each.tokens == 2)
    answer = engine.answer_to(Pin(id="a", seconds=9, renews=True, node=leaf.id))
    assert isinstance(answer, Pinned)
    told = engine.core.pins.changes()
    assert told is not None
    (made,) = told.made
    assert (answer.tokens, made.namespace, made.packed, made.node) == (
        *(22, "public", pack([*SYSTEM, 50, 51])),
        None,
    )
    tree = engine.answer_to(ShowTree())
    assert isinstance(tree, Tree)
    assert [each.pinned for each in tree.nodes if each.depth == 20] == [True, False]
    assert isinstance(engine.answer_to(Pin(id="b", seconds=9, renews=True, node=10**9)), Failed)


def test_there_may_be_many_pins_but_not_more(engine: Clocked) -> None:
    for number in range(MAX_PINS):
        assert engine.pin([number], str(number)).status == "accepted"
    assert engine.pin([1, 2], "more").status == "refused"
    engine.now += 60
    assert engine.pin([1, 2], "more").status == "accepted"


@pytest.mark.parametrize(("cache", "share"), [(False, 0.5), (True, 0.0)])
def test_without_a_cache_or_a_share_nothing_is_pinned(cache: bool, share: float) -> None:
    engine = Clocked(ahead=False, cache=cache, share=share)
    engine.compute(SYSTEM)
    assert engine.pin(SYSTEM).status == "refused"
    assert engine.listed() == []


def test_what_is_evicted_after_its_pin_has_ended_is_told_as_expired(engine: Clocked) -> None:
    engine.compute([*SYSTEM, *OTHER])
    engine.pin(SYSTEM, "short", seconds=10)
    engine.pin(SYSTEM[:10], "long", seconds=99)
    engine.now += 10
    engine.fill()
    assert engine.cached(SYSTEM) == 10
    asked = Explain(namespace="public", tokens=[*SYSTEM, *OTHER, 5])
    answer = engine.answer_to(asked)
    assert isinstance(answer, Explanation)
    assert next(iter(answer.lost)) == "expired"
    engine.compute([*SYSTEM, 50])
    losses = engine.core.stats().numbers
    assert losses["radixserve_prefix_loss_tokens_total", "expired"] > 0
    engine.pin(SYSTEM, "again")
    engine.answer_to(Unpin(id="again"))
    engine.fill()
    answer = engine.answer_to(asked)
    assert isinstance(answer, Explanation)
    assert next(iter(answer.lost)) == "evicted", "nobody waited for the end of the second pin"


def test_the_tree_and_the_summary_tell_pinned_and_leased_apart(engine: Clocked) -> None:
    engine.compute(SYSTEM)
    engine.pin(SYSTEM[:10])
    summary, tree = engine.answer_to(Summarize()), engine.answer_to(ShowTree())
    assert isinstance(summary, Summary)
    assert isinstance(tree, Tree)
    device = summary.tiers[0]
    assert (device.leased_tokens, device.pinned_tokens) == (0, 10)
    told = [(each.tokens, each.leased, each.pinned) for each in tree.nodes if each.tokens]
    assert told[0] == (10, False, True)
    engine.submit(request("runs", [*SYSTEM, 50], 40))
    for _ in range(3):
        engine.step()
    summary, tree = engine.answer_to(Summarize()), engine.answer_to(ShowTree())
    assert isinstance(summary, Summary)
    assert isinstance(tree, Tree)
    assert (summary.tiers[0].leased_tokens or 0) >= 20
    assert next(each.leased for each in tree.nodes if each.tokens == 10)
    engine.run()


def test_the_front_is_told_what_pins_hold_but_not_that_a_new_one_holds_nothing(
    engine: Clocked,
) -> None:
    def told() -> dict[str, int]:
        changes = engine.core.pins.changes()
        return {} if changes is None else changes.held

    engine.pin(SYSTEM)
    engine.pin(OTHER, "b")
    assert told() == {}
    engine.compute(SYSTEM[:8])
    assert told() == {"a": 8}
    engine.compute([*SYSTEM, 5], [*OTHER, 6])
    assert told() == {"a": 20, "b": 20}
    assert engine.core.pins.relent()
    assert told() == {"a": 0}
    engine.compute([*SYSTEM, 5])
    engine.answer_to(Unpin(id="b"))
    assert told() == {"a": 20}
    assert told() == {}


def test_a_prompt_that_is_only_warmed_renews_no_pin(engine: Clocked) -> None:
    engine.pin(SYSTEM)
    engine.now += 50
    engine.submit(msgspec.structs.replace(request("warm", SYSTEM, 1), renews_pins=False))
    engine.run()
    (pin,) = engine.listed()
    assert (pin.tokens, pin.hits, pin.seconds_left) == (20, 0, 10)
