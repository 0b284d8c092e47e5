"""What the front keeps of pins, by a clock that the tests turn."""

from __future__ import annotations

import msgspec

from radixserve.front.pins import KeptPins
from radixserve.messages import PinChanges
from radixserve.prefix import pack
from radixserve.questions import Pin


def test_what_is_kept_is_what_the_engine_has_not_ended() -> None:
    now = [100.0]
    kept = KeptPins(lambda: now[0])
    made = Pin(
        id="a",
        seconds=60.0,
        seconds_left=60.0,
        renews=True,
        namespace="public",
        packed=pack([1, 2]),
    )
    other = msgspec.structs.replace(made, id="b", renews=False, packed=pack([3]), tenant="t")
    kept.note(PinChanges(made=[made, other], seconds={}))
    now[0] += 30
    kept.note(PinChanges(made=[], seconds={"a": 60.0, "unknown": 9.0}))
    assert kept.again() == [made, msgspec.structs.replace(other, seconds_left=30.0)]
    now[0] += 31
    assert [each.id for each in kept.again()] == ["a"]
    kept.note(PinChanges(made=[], seconds={"a": 0.0}))
    assert kept.again() == []


def test_what_pins_held_is_known_until_they_end_or_give_way() -> None:
    kept = KeptPins(lambda: 0.0)

    def tell(*made: Pin, ends: dict[str, float] | None = None, **held: int) -> dict[str, int]:
        kept.note(PinChanges(made=[*made], seconds=ends or {}, held=held))
        return {each.pin.id: each.held.num_tokens for each in kept.holding()}

    a, b, c = (
        Pin(id=name, seconds=9, seconds_left=9, renews=True, packed=pack(range(8)))
        for name in "abc"
    )
    assert tell(a, b, c) == {}
    assert tell(a=8, b=5, unknown=3) == {"a": 8, "b": 5}
    assert tell(a, b, c) == {"a": 8, "b": 5}, "a new engine has made them again"
    assert tell(a=2, b=6) == {"a": 8, "b": 6}, "a part is there again"
    ends, gives_way, fails = kept.holding()[0], kept.holding()[1], tell(c=4)["c"]
    assert not ends.is_over.is_set()
    assert tell(b=0, ends={"a": 0.0}) == {"c": fails}
    assert ends.is_over.is_set()
    assert gives_way.is_over.is_set()
    assert tell(b=1) == {"b": 1, "c": 4}, "it holds again what a request has computed"
    assert not gives_way.is_over.is_set()
