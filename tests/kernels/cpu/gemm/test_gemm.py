"""Every level of the machine, every form of a weight: right, and with the same bits for a row
whatever the number of rows, of threads, and whatever stands in other rows.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from radixserve.kernels.cpu import levels, threads
from radixserve.kernels.cpu.gemm.block import COUNTERS, MOST_RUNS, QUEUE_LENGTH
from radixserve.kernels.cpu.gemm.call import Gemm
from radixserve.kernels.cpu.gemm.panels import Panels, fits_bfloat16
from radixserve.kernels.cpu.levels import Level
from tests.kernels.cpu.gemm.test_quantised import grid

FORMS = ("float32", "bfloat16", "codes of 8", "codes of 4")
BITS = dict(zip(FORMS, (32, 16, 8, 4), strict=True))
DTYPES = (torch.float32, torch.bfloat16)
SHAPES = ((64, 64), (37, 19), (130, 100), (960, 576), (100, 1100))
IN_GROUPS = ((64, 64), (192, 96), (128, 576))
ROWS = (*range(1, 21), 31, 32, 33, 63, 64, 65, 96, 97, 128, 200, 255, 256)
MOST = 300


def weight_of(form: str, shape: tuple[int, int]) -> torch.Tensor:
    draw = torch.Generator().manual_seed(0)
    if form.startswith("codes"):
        return grid(BITS[form], 3, shape)
    weight = torch.randn(shape, generator=draw) / shape[1] ** 0.5
    return weight.bfloat16().float() if form == "bfloat16" else weight


def rows_of(rows: int, inputs: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(rows, inputs, generator=torch.Generator().manual_seed(1)).to(dtype)


def made(level: Level, form: str, dtype: torch.dtype, shape: tuple[int, int]) -> Gemm:
    weight, draw = weight_of(form, shape), torch.Generator().manual_seed(2)
    gemm = Gemm(weight, torch.randn(shape[0], generator=draw), dtype, level)
    assert gemm.bits == BITS[form]
    return gemm


CASES = [
    pytest.param(level, form, dtype, shape, id=f"{level.name}-{form}-{str(dtype)[6:]}-{shape}")
    for level in levels.available()
    for form in FORMS
    for dtype in DTYPES
    for shape in (IN_GROUPS if form.startswith("codes") else SHAPES)
]
ONE_SHAPE = [case for case in CASES if case.values[3] in ((130, 100), (192, 96))]


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("level", "form", "dtype", "shape"), CASES)
def test_a_product_is_right_and_its_rows_do_not_depend_on_their_number(
    level: Level, form: str, dtype: torch.dtype, shape: tuple[int, int]
) -> None:
    gemm, weight = made(level, form, dtype, shape), weight_of(form, shape)
    x = rows_of(MOST, shape[1], dtype)
    whole = gemm(x)
    bias = torch.randn(shape[0], generator=torch.Generator().manual_seed(2))
    exact = x.double() @ weight.double().T + bias
    size = x.double().abs() @ weight.double().abs().T + bias.abs()
    rounding = 2.0**-8 if dtype == torch.bfloat16 else 2.0**-23
    # Sums of `inputs` products in float32, then one rounding to the type of the result.
    allowed = size * 2.0**-23 * shape[1] ** 0.5 + exact.abs() * rounding
    if form.startswith("codes") and dtype == torch.bfloat16:  # x in two parts of int8
        allowed += x.double().abs().amax(1, keepdim=True) * weight.double().abs().sum(1) * 2.0**-15
    assert (whole.double() - exact).abs().le(allowed).all()
    for rows in ROWS:
        assert torch.equal(gemm(x[:rows]), whole[:rows]), rows
        assert torch.equal(gemm(x[-rows:]), whole[-rows:]), rows


@pytest.mark.parametrize(("level", "form", "dtype", "shape"), ONE_SHAPE)
def test_threads_and_what_stands_in_other_rows_change_nothing(
    level: Level, form: str, dtype: torch.dtype, shape: tuple[int, int], one_thread: None
) -> None:
    gemm = made(level, form, dtype, shape)
    x = rows_of(97, shape[1], dtype)
    alone = gemm(x)
    torch.set_num_threads(2)
    assert torch.equal(gemm(x), alone)
    for wild in (float("nan"), float("inf"), -3e38):
        spoilt = x.clone()
        spoilt[::3] = wild
        found = gemm(spoilt)
        assert torch.equal(found[1::3], alone[1::3])
        assert torch.equal(found[2::3], alone[2::3])
        assert not found[::3].isfinite().all()


@pytest.mark.parametrize(("level", "form", "dtype", "shape"), ONE_SHAPE)
def test_a_launch_computes_what_a_call_does(
    level: Level, form: str, dtype: torch.dtype, shape: tuple[int, int]
) -> None:
    gemm = made(level, form, dtype, shape)
    for rows in (1, 7, 33):
        x, counter = rows_of(rows, shape[1], dtype), np.zeros(COUNTERS, np.int64)
        out = torch.empty(rows, shape[0], dtype=dtype)
        address, block = gemm.launch(x, out, counter, np.zeros(QUEUE_LENGTH, np.int64))
        for _ in range(2):
            counter[:] = 0
            out.zero_()
            threads.run(address, block.address, True)
            assert torch.equal(out, gemm(x))


@pytest.mark.parametrize(("level", "form", "dtype", "shape"), ONE_SHAPE)
def test_every_output_is_computed_into_however_many_runs_items_are_divided(
    level: Level, form: str, dtype: torch.dtype, shape: tuple[int, int]
) -> None:
    gemm, x = made(level, form, dtype, shape), rows_of(5, shape[1], dtype)
    for runs in range(1, MOST_RUNS + 1):
        out, counter = torch.zeros(5, shape[0], dtype=dtype), np.zeros(COUNTERS, np.int64)
        address, block = gemm.launch(x, out, counter)
        block.set(runs=runs)
        threads.run(address, block.address, True)
        assert torch.equal(out, gemm(x))


@pytest.mark.parametrize(("level", "form", "dtype", "shape"), ONE_SHAPE)
def test_rows_of_a_weight_are_looked_up_as_an_embedding_does(
    level: Level, form: str, dtype: torch.dtype, shape: tuple[int, int]
) -> None:
    weight = weight_of(form, shape).to(dtype)
    look_up = made(level, form, dtype, shape).lookup()
    assert torch.equal(look_up(torch.arange(shape[0])), weight)
    ids = torch.randint(0, shape[0], (3, 7), dtype=torch.int32)
    assert torch.equal(look_up(ids), weight[ids])
    assert look_up(ids[:0]).shape == (0, 7, shape[1])
    for beyond in (-1, shape[0]):
        with pytest.raises(IndexError, match=f"the weight has {shape[0]} rows"):
            look_up(torch.tensor([0, beyond]))


@pytest.mark.parametrize("level", levels.available())
@pytest.mark.parametrize("shape", [(64, 64), (130, 96)])
def test_a_weight_in_bfloat16_gives_the_bits_of_the_same_weight_in_float32(
    level: Level, shape: tuple[int, int]
) -> None:
    """Except on tiles, where float32 activations are split: that is as accurate, but other bits."""
    level = min(level, Level.AVX512_BF16)
    weight = weight_of("bfloat16", shape)
    other = weight.clone()
    other[-1, -1] = 1 / 3  # one value that bfloat16 does not hold
    short, long = Gemm(weight, level=level), Gemm(other, level=level)
    assert (short.bits, long.bits) == (16, 32)
    x = rows_of(40, shape[1], torch.float32)
    assert torch.equal(short(x)[:, :-1], long(x)[:, :-1])


@given(
    shape=st.tuples(st.integers(1, 200), st.integers(1, 200)),
    rows=st.integers(0, 70),
    first=st.integers(0, 69),
    dtype=st.sampled_from(DTYPES),
    form=st.sampled_from(("float32", "bfloat16")),
    level=st.sampled_from(levels.available()),
)
@settings(max_examples=60, deadline=None)
def test_any_shape(
    shape: tuple[int, int], rows: int, first: int, dtype: torch.dtype, form: str, level: Level
) -> None:
    weight = weight_of(form, shape)
    gemm, x = Gemm(weight, None, dtype, level), rows_of(rows, shape[1], dtype)
    out = gemm(x)
    exact = x.double() @ weight.double().T
    torch.testing.assert_close(
        out.double(), exact, rtol=1e-2 if dtype == torch.bfloat16 else 1e-4, atol=1e-4
    )
    assert torch.equal(gemm(x[first:]), out[first:])


@pytest.mark.parametrize(("level", "form", "dtype", "shape"), ONE_SHAPE)
@pytest.mark.parametrize("rows", [1, 40])
def test_a_product_may_be_left_in_float32(
    level: Level, form: str, dtype: torch.dtype, shape: tuple[int, int], rows: int
) -> None:
    gemm, x = made(level, form, dtype, shape), rows_of(rows, shape[1], dtype)
    unrounded = gemm.unrounded(x)
    assert unrounded.dtype == torch.float32
    assert torch.equal(unrounded.to(dtype), gemm(x))


def test_leading_dimensions_stay() -> None:
    gemm = Gemm(weight_of("float32", (64, 64)))
    x = rows_of(6, 64, torch.float32)
    assert torch.equal(gemm(x.view(2, 3, 64)), gemm(x).view(2, 3, 64))
    assert torch.equal(gemm(x.view(2, 3, 64).transpose(0, 1))[2, 1], gemm(x)[5])
    assert gemm(x[:0]).shape == (0, 64)


def test_a_weight_is_kept_in_the_smallest_form_that_holds_it() -> None:
    for form, bits in BITS.items():
        panels = Panels.of(weight_of(form, (192, 96)))
        assert panels.bits == bits
        groups = 2 * 4 * 64 if bits < 16 else 0  # scales and offsets, for each 32 inputs
        assert panels.memory.nbytes == 192 * 96 * bits // 8 + 3 * 3 * groups


def test_a_number_that_bfloat16_does_not_hold_is_found_wherever_it_is() -> None:
    weight = torch.zeros(3000, 500)
    assert fits_bfloat16(weight)
    weight[2999, 499] = 1 + 2.0**-8
    assert not fits_bfloat16(weight)
