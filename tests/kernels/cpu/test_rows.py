"""The row-wise kernels of a decoder layer against torch, in float32 and bfloat16."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from radixserve.kernels.cpu import native, rows, threads
from radixserve.kernels.cpu.rows import NormBlock, RotateBlock
from radixserve.tensors.kv import KVPool, KVShape
from tests.tiny import CPU

Kernels = dict[torch.dtype, Callable[[Any], None]]

DTYPES = (torch.float32, torch.bfloat16)
ADD_NORM: Kernels = {torch.float32: rows.add_norm, torch.bfloat16: rows.add_norm_bfloat16}
HEADS, KV_HEADS, DIM, SLOTS = 4, 2, 24, 64
EPSILON = 1e-5

pytestmark = pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "bfloat16"])


def call(kernel: Callable[[Any], None], block: Any, parallel: bool = True) -> None:
    """Run a kernel with a fresh counter."""
    counter = np.zeros(1, np.int64)
    block.counter = counter
    threads.run(native.address(kernel), block.address, parallel)


def near(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Compare with a float32 result: up to one rounding to the dtype of `found`."""
    step = 2**-8 if found.dtype == torch.bfloat16 else 2e-6
    torch.testing.assert_close(found.float(), expected, rtol=step, atol=1e-5)


@pytest.mark.parametrize("count", [1, 3, 50])
@pytest.mark.parametrize("width", [24, 64, 100, 576])
def test_the_norm_is_that_of_torch_after_adding(count: int, width: int, dtype: torch.dtype) -> None:
    hidden, delta = torch.randn(2, count, width).to(dtype).unbind()
    hidden, weight = hidden.clone(), torch.randn(width)
    total, normed = hidden + delta, torch.empty(count, width, dtype=dtype)
    block = NormBlock(
        hidden=hidden,
        delta=delta,
        weight=weight,
        normed=normed,
        rows=count,
        width=width,
        epsilon=EPSILON,
        delta_scale=1.0,
    )
    call(ADD_NORM[dtype], block)
    assert torch.equal(hidden, total)  # rounded once, as torch rounds the sum
    near(normed, F.rms_norm(total.float(), (width,), weight, EPSILON))
    block.delta = None
    call(ADD_NORM[dtype], block, parallel=False)
    assert torch.equal(hidden, total)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("width", [24, 100])
def test_a_centered_norm_is_layer_norm(width: int, biased: bool, dtype: torch.dtype) -> None:
    hidden, weight = (torch.randn(3, width) + 5).to(dtype), torch.randn(width)
    bias, normed = torch.randn(width) if biased else None, torch.empty(3, width, dtype=dtype)
    tensors = {"hidden": hidden, "weight": weight, "bias": bias, "normed": normed}
    block = NormBlock(**tensors, rows=3, width=width, is_centered=True, epsilon=EPSILON)
    call(ADD_NORM[dtype], block)
    near(normed, F.layer_norm(hidden.float(), (width,), weight, bias, EPSILON))


def test_what_is_added_is_scaled_and_rounded_first_and_no_norm_writes_nothing(
    dtype: torch.dtype,
) -> None:
    hidden, delta = torch.randn(2, 20, 100).to(dtype).unbind()
    hidden, normed = hidden.clone(), torch.zeros(20, 100, dtype=dtype)
    total = hidden + delta * 0.22
    tensors = {"hidden": hidden, "delta": delta.clone(), "normed": normed}
    call(ADD_NORM[dtype], NormBlock(**tensors, rows=20, width=100, delta_scale=0.22))
    assert torch.equal(hidden, total)
    assert not normed.any()


def rotated(
    heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, in_neighbours: bool
) -> torch.Tensor:
    """By the definition: pairs [count, 1, pairs] of the first numbers of each head."""
    pairs, found = cos.shape[-1], heads.clone()
    low, high = slice(0, pairs), slice(pairs, 2 * pairs)
    if in_neighbours:
        low, high = slice(0, 2 * pairs, 2), slice(1, 2 * pairs, 2)
    found[..., low] = heads[..., low] * cos - heads[..., high] * sin
    found[..., high] = heads[..., high] * cos + heads[..., low] * sin
    return found


@pytest.mark.parametrize(
    ("normed", "whole", "late", "centered"),
    [
        (False, False, False, False),
        (True, False, False, False),
        (True, False, True, False),
        (True, True, False, False),
        (True, False, False, True),
    ],
    ids=["plain", "normed", "late", "whole", "centered"],
)
@pytest.mark.parametrize(("pairs", "in_neighbours"), [(12, False), (5, True), (0, False)])
def test_rotation_writes_queries_and_the_slots_of_its_rows_only(
    normed: bool,
    whole: bool,
    late: bool,
    centered: bool,
    pairs: int,
    in_neighbours: bool,
    dtype: torch.dtype,
) -> None:
    count, all_heads = 20, HEADS + 2 * KV_HEADS
    qkv = (torch.randn(count, all_heads, DIM) + centered).to(dtype)
    angle = torch.randn(count, 1, pairs)
    cos, sin = angle.cos(), angle.sin()
    weight, bias = torch.rand(2, HEADS + KV_HEADS, DIM).unbind()
    biased = bias if centered else torch.zeros_like(bias)
    q = torch.empty(count, HEADS, DIM, dtype=dtype)
    pool = KVPool(KVShape(1, KV_HEADS, DIM, DIM, dtype), SLOTS, CPU)
    slots, places = torch.randperm(SLOTS)[:count], torch.arange(all_heads)
    if not whole:  # then the heads may lie anywhere
        places = torch.randperm(all_heads)
    begins = places * DIM
    expected = qkv[:, places][:, :-KV_HEADS].float()

    def norm(heads: torch.Tensor) -> torch.Tensor:
        parts = heads.split([HEADS, KV_HEADS], 1)
        if not whole:
            parts = heads.split(1, 1)
        means = [each.mean((1, 2), True) if centered else torch.zeros(1) for each in parts]
        both = zip(parts, means, strict=True)
        scaled = [(x - m) * ((x - m) ** 2).mean((1, 2), True).add(EPSILON).rsqrt() for x, m in both]
        return torch.cat(scaled, 1) * weight + biased

    if normed and not late:
        expected = norm(expected)
    expected = rotated(expected, cos, sin, in_neighbours)
    if normed and late:
        expected = norm(expected)
    block = RotateBlock(
        qkv=qkv,
        places=begins,
        cos=cos,
        sin=sin,
        weight=weight if normed else None,
        bias=bias if centered else None,
        q=q,
        k=pool.k,
        v=pool.v,
        slots=slots,
        rows=count,
        columns=all_heads * DIM,
        heads=HEADS,
        kv_heads=KV_HEADS,
        dim=DIM,
        row=DIM,
        pairs=pairs,
        in_neighbours=in_neighbours,
        is_whole=whole,
        is_late=late,
        is_centered=centered,
        epsilon=EPSILON,
    )
    call(rows.rotate_of(dtype, dtype), block)
    near(q, expected[:, :HEADS])
    near(pool.k[0, slots], expected[:, HEADS:])
    assert torch.equal(pool.v[0, slots], qkv[:, places][:, -KV_HEADS:])
    others = torch.ones(SLOTS, dtype=torch.bool).index_fill_(0, slots, False)
    assert not pool.k[0, others].any()
    assert not pool.v[0, others].any()


def test_numbers_beyond_the_clip_are_cut_and_what_is_not_a_number_stays(
    dtype: torch.dtype,
) -> None:
    qkv = torch.tensor([[-9.0, -1.0, 9.0, 2.0], [torch.nan, 0.5, -0.5, 8.0]])[:, None].to(dtype)
    qkv = qkv.repeat(1, 3, 1)
    q, pool = torch.empty(2, 4, dtype=dtype), KVPool(KVShape(1, 1, 4, 4, dtype), 2, CPU)
    sizes = {"rows": 2, "columns": 12, "heads": 1, "kv_heads": 1, "dim": 4, "row": 4}
    tensors = {"qkv": qkv, "q": q, "k": pool.k, "v": pool.v}
    places = {"places": torch.arange(3) * 4, "slots": torch.arange(2)}
    call(rows.rotate_of(dtype, dtype), RotateBlock(**tensors, **places, **sizes, clip=2.0))
    expected = torch.tensor([[-2.0, -1.0, 2.0, 2.0], [torch.nan, 0.5, -0.5, 2.0]]).to(dtype)
    for found in (q, pool.k[0, :, 0], pool.v[0, :, 0]):
        torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("width", [64, 100])
def test_a_row_does_not_depend_on_the_other_rows(width: int, dtype: torch.dtype) -> None:
    weight = torch.randn(width)
    hidden = torch.randn(50, width).to(dtype)
    hidden[7] = torch.nan

    def normed(first: int, end: int) -> torch.Tensor:
        stream = hidden[first:end].clone()
        out = torch.empty_like(stream)
        tensors = {"hidden": stream, "weight": weight, "normed": out}
        sizes = {"rows": end - first, "width": width, "epsilon": EPSILON}
        call(ADD_NORM[dtype], NormBlock(**sizes, **tensors))
        return out

    together = normed(0, 50)
    for row in (0, 6, 8, 49):
        assert torch.equal(normed(row, row + 1)[0], together[row])
