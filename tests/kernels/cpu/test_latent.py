"""The kernels of latent attention against torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from radixserve.kernels.cpu import native, threads
from radixserve.kernels.cpu.latent import (
    HeadsBlock,
    HeadWeights,
    LatentBlock,
    multiply_heads_kernel,
    store_latent_kernel,
)
from radixserve.tensors.kv import KVPool, KVShape
from radixserve.tensors.one_byte import numbers_of
from tests.tiny import CPU

HEADS, RANK, ROTATED, SLOTS = 3, 40, 8, 70
CLOSE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.int8: 3e-2}


def call(kernel: Callable[[Any], None], block: Any) -> None:
    block.counter = counter = np.zeros(1, np.int64)
    threads.run(native.address(kernel), block.address, True)
    assert counter[0] > 0


def rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """x [rows, ROTATED] with neighbours rotated by [rows, ROTATED / 2]."""
    low, high = x[:, ::2], x[:, 1::2]
    return torch.stack([low * cos - high * sin, high * cos + low * sin], -1).flatten(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_k_and_v_are_the_normed_latent_and_k_has_what_is_rotated(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    rows = 37
    kv, weight = torch.randn(rows, RANK + ROTATED), torch.rand(RANK) + 0.5
    angles, slots = torch.randn(rows, ROTATED // 2), torch.randperm(SLOTS)[:rows]
    cos, sin = angles.cos(), angles.sin()
    pool = KVPool(KVShape(1, 1, RANK + ROTATED, RANK, dtype), SLOTS, CPU)
    numbers = torch.bfloat16 if dtype == torch.bfloat16 else torch.float32
    kv = kv.to(numbers)
    block = LatentBlock(
        kv=kv,
        weight=weight,
        cos=cos,
        sin=sin,
        k=pool.k[0],
        v=pool.v[0],
        slots=slots,
        rows=rows,
        rank=RANK,
        rotated=ROTATED,
        k_row=pool.shape.k_row,
        v_row=pool.shape.v_row,
        pairs=ROTATED // 2,
        in_neighbours=1,
        epsilon=1e-6,
    )
    call(store_latent_kernel(numbers, dtype), block)
    latent = F.rms_norm(kv[:, :RANK].float(), (RANK,), weight, 1e-6)
    key = torch.cat([latent, rotated(kv[:, RANK:].float(), cos, sin)], -1)
    k, v = (numbers_of(each[0, slots, 0], dtype).float() for each in pool.tensors)
    torch.testing.assert_close(k, key, rtol=CLOSE[dtype], atol=CLOSE[dtype])
    torch.testing.assert_close(v, latent, rtol=CLOSE[dtype], atol=CLOSE[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tail", [0, ROTATED])
def test_each_head_has_its_own_weight_and_rows_do_not_depend_on_each_other(
    tail: int, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    rows, inputs = 101, 24
    weight = torch.randn(HEADS, inputs, RANK)
    x = torch.randn(rows, HEADS, inputs + tail).to(dtype)
    angles = torch.randn(rows, tail // 2)
    cos, sin = angles.cos(), angles.sin()
    packed = HeadWeights.of(weight)

    def product(first: int, end: int) -> torch.Tensor:
        out = torch.empty(end - first, HEADS, RANK + tail, dtype=dtype)
        block = HeadsBlock(
            x=x[first:end],
            weight=packed.weight,
            order=packed.order,
            cos=cos[first:end],
            sin=sin[first:end],
            out=out,
            rows=end - first,
            heads=HEADS,
            inputs=inputs,
            outputs=RANK,
            padded=packed.weight.shape[2],
            rotated=tail,
            pairs=tail // 2,
            in_neighbours=1,
        )
        call(multiply_heads_kernel(dtype), block)
        return out

    whole = product(0, rows)
    expected = torch.einsum("rhi,hio->rho", x[..., :inputs].float(), weight)
    found = whole[..., :RANK].float()
    torch.testing.assert_close(found, expected, rtol=CLOSE[dtype], atol=CLOSE[dtype])
    for head in range(HEADS if tail else 0):
        rest = rotated(x[:, head, inputs:].float(), cos, sin)
        found = whole[:, head, RANK:].float()
        torch.testing.assert_close(found, rest, rtol=CLOSE[dtype], atol=CLOSE[dtype])
    parts = [product(first, min(first + 7, rows)) for first in range(0, rows, 7)]
    assert torch.equal(torch.cat(parts), whole)
