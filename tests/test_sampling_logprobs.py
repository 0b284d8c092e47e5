"""Log probabilities: the model's own distribution, the most likely tokens first, the same bits in
any batch.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from radixserve.request import Sampling
from radixserve.sampling import PromptLogprobs, sample
from radixserve.step import TokenLogprob
from tests.rows import Row


def row(**fields: Any) -> Row:
    empty = np.empty(0, dtype=np.int32)
    return Row(Sampling(max_tokens=4, **({"seed": 3, "temperature": 0.0} | fields)), empty, empty)


def random_logits(rows: int, vocab: int) -> torch.Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(5)).mul_(3)


def logprob_of(logits: torch.Tensor, one: Row) -> TokenLogprob:
    [sampled] = sample(logits, [one]).wait()
    assert sampled is not None
    assert sampled.logprob is not None
    return sampled.logprob


def test_logprobs_are_those_of_a_float64_softmax() -> None:
    logits = random_logits(1, 49_152)
    found = logprob_of(logits, row(logprobs=5))
    exact = logits[0].double().log_softmax(-1)
    best = exact.argsort(descending=True)[:5].tolist()
    assert [token_id for token_id, _ in found.top] == best
    assert found.top[0] == (found.token_id, found.logprob)
    assert [value for _, value in found.top] == pytest.approx(
        [exact[i].item() for i in best], abs=2e-6
    )


@pytest.mark.parametrize(
    "edit", [{"temperature": 5.0}, {"logit_bias": {3: 100.0}}, {"top_k": 1, "temperature": 1.0}]
)
def test_logprobs_do_not_see_penalties_bias_or_temperature(edit: dict[str, Any]) -> None:
    logits = random_logits(1, 50)
    plain, edited = (
        logprob_of(logits, row(logprobs=50)),
        logprob_of(logits, row(logprobs=50, **edit)),
    )
    assert edited.top == plain.top
    assert edited.logprob == dict(plain.top)[edited.token_id]


def test_equal_logits_are_listed_by_ascending_id() -> None:
    logits = torch.tensor([[1.0, 2.0, 1.0, 2.0, 0.0]])
    assert [token_id for token_id, _ in logprob_of(logits, row(logprobs=4)).top] == [1, 3, 0, 2]


def test_zero_logprobs_give_the_drawn_token_only() -> None:
    found = logprob_of(torch.zeros(1, 4), row(logprobs=0))
    assert found == TokenLogprob(0, pytest.approx(-np.log(4)), [])  # type: ignore[arg-type]


def test_more_logprobs_than_tokens_give_all_tokens() -> None:
    assert len(logprob_of(torch.zeros(1, 4), row(logprobs=20)).top) == 4


def test_each_row_gets_the_number_it_asked_for_and_none_when_it_did_not_ask() -> None:
    logits = random_logits(3, 100)
    sampled = sample(logits, [row(logprobs=2), row(), row(logprobs=7)]).wait()
    sizes = [one.logprob and len(one.logprob.top) for one in sampled if one is not None]
    assert sizes == [2, None, 7]


def test_prompt_logprobs_give_each_row_the_same_bits_as_alone() -> None:
    logits, next_ids = random_logits(130, 1001), list(range(130))
    together = PromptLogprobs(logits, next_ids, 3).wait()
    assert [entry.token_id for entry in together] == next_ids
    for i in (0, 63, 64, 129):
        assert PromptLogprobs(logits[i : i + 1], [i], 3).wait() == [together[i]]


def test_prompt_logprobs_of_the_greedy_tokens_equal_those_of_sampling() -> None:
    logits = random_logits(3, 1001)
    sampled = [logprob_of(logits[i : i + 1], row(logprobs=4)) for i in range(3)]
    assert PromptLogprobs(logits, np.array([one.token_id for one in sampled]), 4).wait() == sampled


def test_prompt_logprobs_of_an_empty_prompt_are_empty() -> None:
    assert PromptLogprobs(torch.empty(0, 10), [], 2).wait() == []
