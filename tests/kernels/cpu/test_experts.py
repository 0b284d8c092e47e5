"""Routing against brute force, for rows alone and together; gathering and combining."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from radixserve.kernels.cpu import native, threads
from radixserve.kernels.cpu.experts import (
    CombineBlock,
    GatherBlock,
    RouteBlock,
    Scores,
    combine_kernel,
    gather_kernel,
    route,
)

DTYPES = (torch.float32, torch.bfloat16)


@dataclass
class Routed:
    chosen: torch.Tensor  # [rows, choices]
    weights: torch.Tensor
    places: torch.Tensor
    starts: np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class Rule:
    """How experts are chosen; see `RouteBlock`."""

    choices: int
    scores: Scores = Scores.SOFTMAX
    correction: torch.Tensor | None = None
    groups: int = 1
    kept_groups: int = 1
    best_of_group: int = 2
    is_normalised: bool = True
    scale: float = 1.0

    def routed(self, logits: torch.Tensor) -> Routed:
        rows, experts = logits.shape
        shape = rows, self.choices
        found = Routed(
            torch.full(shape, -1),
            torch.full(shape, torch.nan),
            torch.full(shape, -1),
            np.full(experts + 1, -1),
        )
        zeroed, counter = np.ones(6, np.int64), np.zeros(2, np.int64)
        block = RouteBlock(**vars(self), rows=rows, experts=experts, logits=logits.contiguous())
        block.set(chosen=found.chosen, weights=found.weights, places=found.places)
        block.set(starts=found.starts, zeroed=zeroed, counter=counter, least_sum=1e-20)
        threads.run(native.address(route), block.address, True)
        assert not zeroed.any()
        return found

    def by_force(self, logits: torch.Tensor) -> tuple[list[int], list[float]]:
        """The experts of one row and their weights, from its float32 logits [experts]."""
        own = logits.softmax(0) if self.scores == Scores.SOFTMAX else logits.sigmoid()
        ranks = own if self.correction is None else own + self.correction
        in_groups = ranks.view(self.groups, -1)
        best = in_groups.sort(descending=True).values[:, : self.best_of_group].sum(1)
        kept = best.sort(descending=True, stable=True).indices[: self.kept_groups]
        allowed = torch.full_like(in_groups, -torch.inf)
        allowed[kept] = in_groups[kept]
        chosen = allowed.flatten().sort(descending=True, stable=True).indices[: self.choices]
        weights = own[chosen]
        weights = weights / weights.sum() if self.is_normalised else weights
        return chosen.tolist(), (weights * self.scale).tolist()


def a_rule(draw: st.DrawFn, experts: int) -> Rule:
    groups = draw(st.sampled_from([each for each in (1, 2, 4) if experts % (2 * each) == 0]))
    kept = draw(st.integers(1, groups))
    return Rule(
        choices=draw(st.integers(1, kept * experts // groups)),
        scores=draw(st.sampled_from(Scores)),
        correction=draw(st.sampled_from([None, torch.linspace(-0.2, 0.3, experts)])),
        groups=groups,
        kept_groups=kept,
        best_of_group=draw(st.integers(1, 2)),
        is_normalised=draw(st.booleans()),
        scale=draw(st.sampled_from([1.0, 2.5])),
    )


@settings(max_examples=60)
@given(st.data())
def test_it_chooses_as_brute_force_does_for_a_row_alone_and_among_others(
    data: st.DataObject,
) -> None:
    experts, rows = data.draw(st.sampled_from([2, 8, 100])), data.draw(st.integers(1, 40))
    rule = data.draw(st.composite(a_rule)(experts))
    draw = torch.Generator().manual_seed(data.draw(st.integers(0, 100)))
    logits = torch.randn(rows, experts, generator=draw) * 3
    found = rule.routed(logits)
    for row in range(rows):
        chosen, weights = rule.by_force(logits[row])
        assert found.chosen[row].tolist() == chosen
        assert found.weights[row].tolist() == pytest.approx(weights, rel=1e-5)
    row = rows // 2
    alone = rule.routed(logits[row : row + 1])
    assert torch.equal(alone.chosen[0], found.chosen[row])
    assert torch.equal(alone.weights[0], found.weights[row])


@pytest.mark.parametrize("scores", Scores)
def test_of_equal_scores_the_lowest_numbers_are_chosen(scores: Scores) -> None:
    logits = torch.tensor([[1.0, 2.0, 1.0, 2.0, 2.0, 0.0]])
    assert Rule(4, scores).routed(logits).chosen.tolist() == [[1, 3, 4, 0]]


def test_rows_lie_in_the_groups_of_their_experts_in_their_order() -> None:
    logits = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    found = Rule(3).routed(logits)
    for expert in range(8):
        rows, choices = (found.chosen == expert).nonzero(as_tuple=True)
        places = range(found.starts[expert], found.starts[expert + 1])
        assert found.places[rows, choices].tolist() == list(places)
    assert found.starts[8] == 150


def test_logits_that_are_not_numbers_still_give_places() -> None:
    logits = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    logits[2] = torch.nan
    logits[3, 4] = torch.inf
    found = Rule(3).routed(logits)
    assert sorted(found.places.flatten().tolist()) == list(range(15))
    assert torch.equal(found.weights[0], Rule(3).routed(logits[:1]).weights[0])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_results_are_added_in_the_order_of_choices_and_rounded_once(dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(0)
    rows, width, choices = 20, 100, 3
    found = Rule(choices).routed(torch.randn(rows, 8, generator=draw))
    x = torch.randn(rows, width, generator=draw).to(dtype)
    grouped = torch.empty(rows * choices, width, dtype=dtype)
    block: Any = GatherBlock(x=x, grouped=grouped, places=found.places, rows=rows, width=width)
    _run(gather_kernel(dtype), block)
    assert torch.equal(grouped[found.places], x[:, None].expand(-1, choices, -1))
    results = torch.randn(rows * choices, width, generator=draw).to(dtype)
    shared = torch.randn(rows, width, generator=draw).to(dtype)
    gates = torch.randn(rows, generator=draw)
    out = torch.empty(rows, width, dtype=dtype)
    block = CombineBlock(results=results, weights=found.weights, places=found.places, out=out)
    block.set(shared=shared, gates=gates, rows=rows, width=width, scale=0.5)
    _run(combine_kernel(dtype), block)
    total = (results[found.places].double() * found.weights[..., None]).sum(1)
    expected = 0.5 * (total + shared.double() * gates.double().sigmoid()[:, None])
    rounding = 2**-8 if dtype == torch.bfloat16 else 1e-6
    torch.testing.assert_close(out.double(), expected, rtol=rounding, atol=1e-6)


def _run(kernel: Any, block: Any) -> None:
    counter = np.zeros(2, np.int64)
    block.counter = counter
    threads.run(native.address(kernel), block.address, True)
