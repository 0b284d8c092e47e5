"""The additions to an answer make the same whole answer, however they are cut."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from radixserve.front.stream import Delta, joined
from radixserve.parsing.parts import (
    CallArguments,
    CallBegun,
    CallEnded,
    Part,
    Reasoning,
    Text,
)

_TEXTS = st.text("ab", max_size=3)
_INDICES = st.integers(0, 1)
_PARTS = st.one_of(
    st.builds(Text, _TEXTS),
    st.builds(Reasoning, _TEXTS),
    st.builds(CallBegun, _INDICES, st.just("id"), st.just("name")),
    st.builds(CallArguments, _INDICES, _TEXTS),
    st.builds(CallEnded, _INDICES),
)


@given(st.lists(st.lists(_PARTS, max_size=5)))
def test_however_parts_are_split_the_sum_of_the_deltas_has_them_joined(
    split: list[list[Part]],
) -> None:
    answer = Delta()
    for parts in split:
        answer.add(Delta(parts=list(parts)))
    whole = [part for parts in split for part in parts]
    assert joined(answer.parts) == joined(whole)
    again = [part for parts in split for part in joined(parts)]
    assert joined(again) == joined(whole)


@given(st.lists(_PARTS))
def test_joined_parts_have_no_neighbours_of_one_text_and_all_of_it(parts: list[Part]) -> None:
    whole = joined(parts)
    assert [_kind(part) for part in whole] == [
        kind
        for i, kind in enumerate(map(_kind, parts))
        if i == 0 or kind != _kind(parts[i - 1]) or isinstance(parts[i], CallBegun | CallEnded)
    ]
    assert "".join(map(_text, whole)) == "".join(map(_text, parts))


def _kind(part: Part) -> tuple[str, int | None]:
    return type(part).__name__, getattr(part, "index", None)


def _text(part: Part) -> str:
    return str(getattr(part, "text", ""))
