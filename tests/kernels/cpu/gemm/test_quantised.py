"""Weights as codes: every value comes back bit for bit, whatever the grid; what is on none is left
as it is.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from radixserve.kernels.cpu.gemm.call import Gemm
from radixserve.kernels.cpu.gemm.formats import UNIT
from radixserve.kernels.cpu.gemm.lookup import Lookup
from radixserve.kernels.cpu.gemm.panels import Panels
from radixserve.kernels.cpu.gemm.quantised import packed_codes

SHAPE = (128, 96)


def grid(bits: int, seed: int, shape: tuple[int, int] = SHAPE) -> torch.Tensor:
    """As a dequantised weight is, with scales and offsets of half precision; a grid of 8 bits is
    symmetric.
    """
    draw = torch.Generator().manual_seed(seed)
    groups, count = (shape[0], shape[1] // UNIT, 1), 1 << bits
    scale = (torch.rand(groups, generator=draw) * 0.01 + 1e-4).half().float()
    codes = torch.randint(0, count, (*groups[:2], UNIT), generator=draw)
    if bits == 8:
        return (scale * (codes - count // 2)).view(shape)
    low = (scale * -15 * torch.rand(groups, generator=draw)).half().float()
    return (scale * codes + low).view(shape)


def bits_of(weight: torch.Tensor) -> int | None:
    """The bits of a weight's codes, if it is kept as codes; then every value comes back."""
    packing = packed_codes(weight)
    if packing is None:
        return None
    found = Lookup(Panels.of_codes(packing), torch.float32)(torch.arange(len(weight)))
    assert torch.equal(found, weight)
    return packing.format.bits


@given(bits=st.sampled_from((4, 8)), seed=st.integers(0, 1 << 20))
@settings(max_examples=30, deadline=None)
def test_every_value_comes_back(bits: int, seed: int) -> None:
    assert bits_of(grid(bits, seed)) == bits


@pytest.mark.parametrize("value", [0.0, 1.0, -3e-7, 1e30])
def test_a_group_of_one_value_is_on_a_grid(value: float) -> None:
    assert bits_of(torch.full(SHAPE, value)) == 4


@pytest.mark.parametrize("wrong", [0.01234567, -0.0, float("nan"), float("inf"), -float("inf")])
def test_one_value_off_the_grid_is_enough_to_leave_the_weight_alone(wrong: float) -> None:
    weight = grid(8, 1)
    weight[77, 55] = wrong
    assert bits_of(weight) is None


def test_values_that_were_never_quantised_are_left_alone() -> None:
    assert bits_of(torch.randn(SHAPE)) is None
    assert bits_of(torch.randn(SHAPE).bfloat16().float()) is None


@pytest.mark.parametrize("shape", [(100, 96), (128, 100)])
def test_a_shape_without_whole_panels_and_groups_is_left_alone(shape: tuple[int, int]) -> None:
    assert bits_of(torch.zeros(shape)) is None


def test_outputs_that_fill_no_panel_have_codes_of_their_own() -> None:
    weight = grid(4, 3, (100, 96))
    coded = Gemm(weight)
    assert coded.bits == 4
    assert torch.equal(coded.lookup()(torch.arange(100)), weight)
