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
