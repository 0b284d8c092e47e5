"""Weights as codes: every value comes back bit for bit, whatever the grid; what is on none is left
as it is.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from radixserve.kernels.cpu.gemm.call import Gemm
from radixserve.kernels.cpu.gemm.panel_products import WIDTH
from radixserve.kernels.cpu.gemm.quantised import Codes
from radixserve.kernels.cpu.gemm.quantised_products import GROUP, record_size

SHAPE = (128, 96)


def grid(bits: int, seed: int, shape: tuple[int, int] = SHAPE) -> torch.Tensor:
    """As a dequantised weight is, with scales and offsets of half precision; a grid of 8 bits is
    symmetric.
    """
    draw = torch.Generator().manual_seed(seed)
    groups, count = (shape[0], shape[1] // GROUP, 1), 1 << bits
    scale = (torch.rand(groups, generator=draw) * 0.01 + 1e-4).half().float()
    codes = torch.randint(0, count, (*groups[:2], GROUP), generator=draw)
    if bits == 8:
        return (scale * (codes - count // 2)).view(shape)
    low = (scale * -15 * torch.rand(groups, generator=draw)).half().float()
    return (scale * codes + low).view(shape)


def decoded(codes: Codes, shape: tuple[int, int]) -> torch.Tensor:
    """[out, in], by the documented layout and in float64, rounded once."""
    records = codes.records.numpy().reshape(shape[0] // WIDTH, shape[1] // GROUP, -1, WIDTH)
    words, per_word = records[:, :, 2:].view(np.uint32), 32 // codes.bits
    found = np.stack(
        [words >> (i * codes.bits) & ((1 << codes.bits) - 1) for i in range(per_word)], 3
    )
    fraction = 1 + found.reshape(*records.shape[:2], GROUP, WIDTH) / (1 << codes.bits)
    scale, offset = (records[:, :, i : i + 1].astype(np.float64) for i in (0, 1))
    values = (scale * fraction + offset).astype(np.float32)
    return torch.from_numpy(values.transpose(0, 3, 1, 2).reshape(shape).copy())


@given(bits=st.sampled_from((4, 8)), seed=st.integers(0, 1 << 20))
@settings(max_examples=30, deadline=None)
def test_every_value_comes_back(bits: int, seed: int) -> None:
    weight = grid(bits, seed)
    codes = Codes.of(weight)
    assert codes is not None
    assert codes.bits == bits
    assert len(codes.records) == SHAPE[0] // WIDTH * SHAPE[1] // GROUP * record_size(codes.bits)
    assert torch.equal(decoded(codes, SHAPE), weight)


@pytest.mark.parametrize("value", [0.0, 1.0, -3e-7, 1e30])
def test_a_group_of_one_value_is_on_a_grid(value: float) -> None:
    weight = torch.full(SHAPE, value)
    codes = Codes.of(weight)
    assert codes is not None
    assert torch.equal(decoded(codes, SHAPE), weight)


@pytest.mark.parametrize("wrong", [0.01234567, -0.0, float("nan"), float("inf"), -float("inf")])
def test_one_value_off_the_grid_is_enough_to_leave_the_weight_alone(wrong: float) -> None:
    weight = grid(8, 1)
    weight[77, 55] = wrong
    assert Codes.of(weight) is None


def test_values_that_were_never_quantised_are_left_alone() -> None:
    assert Codes.of(torch.randn(SHAPE)) is None
    assert Codes.of(torch.randn(SHAPE).bfloat16().float()) is None


@pytest.mark.parametrize("shape", [(100, 96), (128, 100)])
def test_a_shape_without_whole_panels_and_groups_is_left_alone(shape: tuple[int, int]) -> None:
    assert Codes.of(torch.zeros(shape)) is None


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("shape", [(128, 64), (960, 576), (576, 1536), (128, 96)])
def test_rows_multiplied_by_codes_have_the_bits_of_the_values(
    bits: int, shape: tuple[int, int]
) -> None:
    weight = grid(bits, 3, shape)
    other = weight.clone()
    other[-1, -1] = 1 / 3  # on no grid, so the weight is kept in float32
    coded, plain = Gemm(weight), Gemm(other)
    assert (coded.bits, plain.bits) == (bits, 32)
    x = torch.randn(320, shape[1])
    expected = plain(x)[:, :-1]
    for rows in (*range(1, 14), 47, 48, 96, 97, 150, 192, 193, 256, 320):
        assert torch.equal(coded(x[:rows])[:, :-1], expected[:rows])


def test_outputs_that_fill_no_panel_have_codes_of_their_own() -> None:
    weight = grid(4, 3, (100, 96))
    coded = Gemm(weight)
    assert coded.bits == 4
    assert torch.equal(coded.lookup()(torch.arange(100)), weight)
