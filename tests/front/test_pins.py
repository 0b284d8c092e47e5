"""What the front keeps of pins, by a clock that the tests turn."""

from __future__ import annotations

import msgspec

from radixserve.front.pins import KeptPins
from radixserve.prefix import pack
from radixserve.questions import Pin, Pinned


def test_what_is_kept_is_what_the_engine_has_not_ended() -> None:
    now = [100.0]
    kept = KeptPins(lambda: now[0])
    asked = Pin(id="a", seconds=60.0, renews=True, namespace="public", packed=pack([1, 2]))
    kept.keep(asked, Pinned(status="accepted", id="a", wanted=2, seconds_left=60.0))
    other = msgspec.structs.replace(asked, id="b", renews=False, packed=pack([3]))
    kept.keep(other, Pinned(status="clipped", id="b", wanted=1, seconds_left=60.0))
    refused = msgspec.structs.replace(asked, id="c")
    kept.keep(refused, Pinned(status="refused", wanted=2))
    now[0] += 30
    kept.note({"a": 60.0, "unknown": 9.0})
    assert kept.again() == [
        msgspec.structs.replace(asked, seconds_left=60.0),
        msgspec.structs.replace(other, seconds_left=30.0),
    ]
    now[0] += 31
    assert [each.id for each in kept.again()] == ["a"]
    kept.note({"a": 0.0})
    assert kept.again() == []


def test_a_pin_of_a_node_is_kept_as_its_tokens_under_the_id_that_it_has() -> None:
    kept = KeptPins(lambda: 0.0)
    told = Pinned(
        status="accepted",
        id="older",
        wanted=2,
        seconds_left=9.0,
        namespace="public",
        packed=pack([1, 2]),
    )
    kept.keep(Pin(id="new", seconds=9.0, renews=True, node=4), told)
    assert kept.again() == [
        Pin(
            id="older",
            seconds=9.0,
            seconds_left=9.0,
            renews=True,
            namespace="public",
            packed=pack([1, 2]),
        )
    ]
