"""Compiled code reads and writes K/V of one byte per number as torch does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numba import njit

from radixserve.kernels.cpu import native, rows, threads, vector
from radixserve.kernels.cpu.rows import RotateBlock
from radixserve.tensors.kv import KVPool, KVShape
from radixserve.tensors.one_byte import numbers_of, rows_of

CPU = torch.device("cpu")
DTYPES = (torch.int8, torch.uint8)
HEADS, DIM, COUNT = 2, 24, 64

one_byte = pytest.mark.parametrize("dtype", DTYPES, ids=["int8", "fp8"])


@njit
def read_all(array: Any, target: Any) -> None:
    for i in range(len(array)):
        target[i] = vector.number_at(array, i)


@njit
def put_all(target: Any, values: Any) -> None:
    for i in range(len(values)):
        vector.put_number(target, i, values[i])


@one_byte
def test_every_code_is_the_number_that_torch_reads(dtype: torch.dtype) -> None:
    codes = torch.arange(256, dtype=torch.uint8)
    if dtype == torch.uint8:
        codes = codes[(codes & 0x7F) != 0x7F]  # NaN, which is never written
    found = np.empty(len(codes), np.float32)
    read_all(codes.view(dtype).numpy(), found)
    expected = codes.view(torch.int8 if dtype == torch.int8 else torch.float8_e4m3fn).float()
    assert torch.equal(torch.from_numpy(found), expected)


def middles(dtype: torch.dtype) -> torch.Tensor:
    """All numbers of the type, the middles between two of them, and what is just beside both."""
    codes = torch.arange(127, dtype=torch.uint8)
    sizes = codes.float() if dtype == torch.int8 else codes.view(torch.float8_e4m3fn).float()
    both = torch.cat([sizes, (sizes[1:] + sizes[:-1]) / 2])
    below, above = (torch.nextafter(both, torch.tensor(side)) for side in (0.0, torch.inf))
    every = torch.cat([both, below, above])
    return torch.cat([every, -every, torch.randn(1000)])


@one_byte
def test_numbers_are_rounded_as_torch_rounds(dtype: torch.dtype) -> None:
    values = middles(dtype)
    codes = np.empty(len(values), np.int8 if dtype == torch.int8 else np.uint8)
    put_all(codes, values.numpy())
    if dtype == torch.int8:
        expected = values.round().to(torch.int8)
    else:
        expected = values.to(torch.float8_e4m3fn).view(torch.uint8)
    assert torch.equal(torch.from_numpy(codes), expected)


def heads() -> torch.Tensor:
    """Heads [COUNT, HEADS, DIM]: zeros, tiny, huge, with NaN and infinities, and others."""
    torch.manual_seed(1)
    found = torch.randn(COUNT, HEADS, DIM) * 10.0 ** torch.randint(-6, 6, (COUNT, HEADS, 1))
    found[0], found[1], found[2] = 0.0, 1e-43, 1e-36 * found[2]
    found[3], found[4, 0, 5], found[5, 1, 7] = 3.4e38, torch.nan, torch.inf
    return found


@one_byte
def test_a_scale_fits_its_row_and_what_is_not_finite_stays_visible(dtype: torch.dtype) -> None:
    numbers = heads()
    back = numbers_of(rows_of(numbers, dtype), dtype)
    assert not back[:2].any()
    assert back[4, 0].isnan().all()
    assert back[5, 1].isnan().all()
    sane = torch.ones(COUNT, dtype=torch.bool).index_fill_(0, torch.tensor([4, 5]), False)
    largest = numbers[sane].abs().amax(-1, keepdim=True)
    step = largest / 254 if dtype == torch.int8 else largest / 28  # half of the largest step
    zeroed = 448 * torch.finfo(torch.float32).tiny  # a row below this may become zeros
    assert ((back[sane] - numbers[sane]).abs() <= step * 1.001 + zeroed).all()


@pytest.mark.parametrize("activations", [torch.float32, torch.bfloat16], ids=str)
@one_byte
def test_the_kernel_writes_the_bytes_of_torch(dtype: torch.dtype, activations: torch.dtype) -> None:
    numbers = heads().to(activations)
    qkv = torch.cat([torch.randn(COUNT, 1, DIM).to(activations), numbers, numbers], 1)
    pool = KVPool(KVShape(1, HEADS, DIM, DIM, dtype), 2 * COUNT, CPU)
    slots, counter = torch.randperm(2 * COUNT)[:COUNT], np.zeros(1, np.int64)
    block = RotateBlock(qkv=qkv, k=pool.k, v=pool.v, slots=slots, counter=counter)
    q = torch.empty(COUNT, DIM, dtype=activations)
    cos, sin = torch.ones(COUNT, DIM // 2), torch.zeros(COUNT, DIM // 2)
    places, columns = torch.arange(1 + 2 * HEADS) * DIM, (1 + 2 * HEADS) * DIM
    block.set(q=q, cos=cos, sin=sin, rows=COUNT, heads=1, kv_heads=HEADS, pairs=DIM // 2)
    block.set(dim=DIM, row=pool.shape.k_row, places=places, columns=columns)
    kernel = native.address(rows.rotate_of(activations, dtype))
    threads.run(kernel, block.address, parallel=True)
    expected = rows_of(numbers, dtype)
    assert torch.equal(pool.v[0, slots], expected)
    # A rotation by nothing adds 0 * x, which is NaN for an infinity: its head is NaN either way.
    assert torch.equal(pool.k[0, slots], expected)
    others = torch.ones(2 * COUNT, dtype=torch.bool).index_fill_(0, slots, False)
    assert not pool.k[0, others].any()
