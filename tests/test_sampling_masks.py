"""Rows with a mask draw as if all other tokens had no chance."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from radixserve.request import Sampling
from radixserve.sampling import leaves_no_token
from tests.rows import Row
from tests.test_sampling import sample

NOTHING = np.zeros(0, np.int32)
KINDS: list[dict[str, Any]] = [{"temperature": 0.0}, {}, {"top_p": 0.8}, {"top_k": 3}]


def mask_of(allowed: Iterable[int], vocab: int) -> npt.NDArray[np.uint32]:
    words = np.zeros((vocab + 31) // 32, np.uint32)
    for token_id in allowed:
        words[token_id >> 5] |= np.uint32(1 << (token_id & 31))
    return words


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_only_allowed_tokens_are_drawn_and_in_their_proportions(data: st.DataObject) -> None:
    vocab = data.draw(st.sampled_from([5, 32, 33, 100]))
    logits = torch.randn(3, vocab, generator=torch.Generator().manual_seed(vocab)) * 3
    rows, plain, cut = list[Row](), list[Row](), logits.clone()
    for i in range(3):
        seed = data.draw(st.integers(0, 99))
        sampling = Sampling(max_tokens=4, seed=seed, **data.draw(st.sampled_from(KINDS)))
        allowed = data.draw(st.none() | st.sets(st.integers(0, vocab - 1), min_size=1))
        words = None
        if allowed is not None:
            words = mask_of(
                allowed, data.draw(st.sampled_from([vocab, vocab + 40, max(allowed) + 1]))
            )
            cut[i, [j for j in range(vocab) if j not in allowed]] = -torch.inf
        rows.append(Row(sampling, NOTHING, NOTHING, words))
        plain.append(Row(sampling, NOTHING, NOTHING))
    assert sample(logits, rows) == sample(cut, plain)
    assert sample(logits, rows, ahead=True) == sample(cut, plain)


def test_a_mask_comes_after_penalties_and_bias_and_replaces_min_tokens() -> None:
    sampling = Sampling(
        max_tokens=4,
        seed=1,
        temperature=0.0,
        logit_bias={3: 100.0},
        min_tokens=2,
        stop_token_ids=(1,),
        repetition_penalty=1.5,
    )
    row = Row(sampling, np.array([1], np.int32), NOTHING, mask_of([1], 8))
    [drawn] = sample(torch.zeros(1, 8), [row])
    assert drawn is not None
    assert drawn.token_id == 1
    [none] = sample(torch.zeros(1, 8), [Row(sampling, NOTHING, NOTHING, mask_of([], 8))])
    assert none is None, "nothing is allowed"


def test_logprobs_of_a_masked_row_are_the_models_own() -> None:
    sampling = Sampling(max_tokens=4, seed=1, logprobs=2)
    logits = torch.tensor([[0.0, 1.0, 2.0, 3.0]])
    [drawn] = sample(logits, [Row(sampling, NOTHING, NOTHING, mask_of([0], 4))])
    assert drawn is not None
    assert drawn.logprob is not None
    assert drawn.token_id == 0
    assert drawn.logprob.logprob == pytest.approx(float(logits.log_softmax(-1)[0, 0]))
    assert [token_id for token_id, _ in drawn.logprob.top] == [3, 2]


@given(
    allowed=st.lists(st.integers(0, 9), max_size=4, unique=True),
    words=st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=3), max_size=6),
    output=st.lists(st.integers(0, 9), max_size=4),
)
@settings(max_examples=150, deadline=None)
def test_lists_of_tokens_and_words_leave_what_a_reader_would_leave(
    allowed: list[int], words: list[list[int]], output: list[int]
) -> None:
    logits = torch.randn(1, 10, generator=torch.Generator().manual_seed(len(output)))
    sampling = Sampling(
        max_tokens=9,
        seed=1,
        temperature=0.0,
        allowed_token_ids=tuple(allowed),
        bad_words=tuple(map(tuple, words)),
    )
    left = [
        token
        for token in range(10)
        if (not allowed or token in allowed)
        and not any([*output, token][-len(word) :] == word for word in words)
    ]
    row = Row(sampling, NOTHING, np.array(output, np.int32))
    other = Row(Sampling(max_tokens=9, seed=1, temperature=0.0), NOTHING, NOTHING)
    drawn, untouched = sample(torch.cat((logits, logits)), [row, other])
    assert untouched is not None
    assert untouched.token_id == int(logits.argmax())
    assert leaves_no_token(row) is (not left)
    if not left:
        assert drawn is None
    else:
        assert drawn is not None
        assert drawn.token_id == max(left, key=lambda token: float(logits[0, token]))


@pytest.mark.parametrize("fault", [torch.nan, torch.inf])
@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("bias", [{}, {0: -100.0}])
def test_a_mask_hides_no_logit_that_is_not_finite(
    fault: float, place: int, bias: dict[int, float]
) -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0], [0.0, 1.0, 2.0]])
    logits[0, place] = fault
    rows = [
        Row(Sampling(max_tokens=4, seed=1, logit_bias=bias), NOTHING, NOTHING, mask_of([1, 2], 3))
        for _ in range(2)
    ]
    faulty, fine = sample(logits, rows)
    assert faulty is None
    assert fine is not None
    assert fine.token_id in (1, 2)
