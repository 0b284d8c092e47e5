"""Every token of a prompt is found in the text at its offset."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from radixserve.text.tokenizer import Tokenizer

texts = st.text(
    st.sampled_from(" aé€😀日\n") | st.characters(exclude_categories=["Cs"]), max_size=12
)


@pytest.fixture(params=["smollm2", "byte_fallback"])
def exact_tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    """Of a kind that keeps the characters that it knows."""
    loaded: Tokenizer = request.getfixturevalue(request.param)
    return loaded


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(text=texts)
def test_every_whole_token_stands_at_its_offset(exact_tokenizer: Tokenizer, text: str) -> None:
    tokenizer = exact_tokenizer
    ids = tokenizer.encode(text, add_special_tokens=False)
    assume(tokenizer.decode(ids, skip_special_tokens=False) == text)
    offsets = tokenizer.offsets(ids, text)
    assert len(offsets) == len(ids)
    assert offsets == sorted(offsets)
    for at, (token_id, offset) in enumerate(zip(ids, offsets, strict=True)):
        spelled = tokenizer.token_text(token_id)
        if "\ufffd" not in spelled and at:  # the first token may have lost its leading space
            assert text[offset:].startswith(spelled)


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(ids=st.lists(st.integers(0, 400), max_size=12))
@example(ids=[240, 163, 0, 1])  # bytes of a surrogate are two characters, and wait like one
def test_offsets_follow_what_ids_decode_to(exact_tokenizer: Tokenizer, ids: list[int]) -> None:
    text = exact_tokenizer.decode(ids, skip_special_tokens=False)
    ends = [
        len(exact_tokenizer.decode([*ids[:n], 1], skip_special_tokens=False))
        - len(exact_tokenizer.decode([1], skip_special_tokens=False))
        for n in range(1, len(ids))
    ]
    offsets = exact_tokenizer.offsets(ids, text)
    for offset, end in zip(offsets[1:], ends, strict=False):
        assert end - 3 <= offset <= end  # less where bytes wait for the rest of their character


def test_tokens_that_the_tokenizer_adds_have_no_characters(byte_fallback: Tokenizer) -> None:
    bare = byte_fallback.encode("quick", add_special_tokens=False)
    assert byte_fallback.offsets([1, *bare, 2], "quick")[:2] == [0, 0]
    assert byte_fallback.offsets([1, *bare, 2], "quick")[-1] == len("quick")
    spelled = byte_fallback.decode([1, *bare, 2], skip_special_tokens=False)
    assert byte_fallback.offsets([1, *bare, 2], spelled)[:2] == [0, len("<s>")]


def test_offsets_never_leave_the_text(wordpiece: Tokenizer) -> None:
    ids = wordpiece.encode("fox,  dog", add_special_tokens=False)
    assert max(wordpiece.offsets(ids * 3, "fox")) <= 3
