"""The row-wise kernels of a decoder layer against torch, in float32 and bfloat16."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from radixserve.kernels.cpu import native, rows, threads
from radixserve.kernels.cpu.rows import GateBlock, NormBlock, RotateBlock
from radixserve.tensors.kv import KVPool, KVShape
from tests.tiny import CPU

Kernels = dict[torch.dtype, Callable[[Any], None]]

DTYPES = (torch.float32, torch.bfloat16)
ADD_NORM: Kernels = {torch.float32: rows.add_norm, torch.bfloat16: rows.add_norm_bfloat16}
GATE: Kernels = {torch.float32: rows.gate, torch.bfloat16: rows.gate_bfloat16}
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
        epsilon=EPSILON,
    )
    call(ADD_NORM[dtype], block)
    assert torch.equal(hidden, total)  # rounded once, as torch rounds the sum
    near(normed, F.rms_norm(total.float(), (width,), weight, EPSILON))
    block.delta = None
    call(ADD_NORM[dtype], block, parallel=False)
    assert torch.equal(hidden, total)


@pytest.mark.parametrize("inner", [5, 64, 100, 1536])
def test_gating_is_that_of_torch_also_far_from_zero(inner: int, dtype: torch.dtype) -> None:
    gate_up = (torch.randn(19, 2 * inner) * 20).to(dtype)
    gate_up[:, :5] = torch.tensor([0.0, -88.0, -1e30, 1e30, 88.0])
    gated = torch.empty(19, inner, dtype=dtype)
    call(GATE[dtype], GateBlock(gate_up=gate_up, gated=gated, rows=19))
    gate, up = gate_up.float().split(inner, -1)
    near(gated, F.silu(gate) * up)


def test_what_is_not_a_number_stays_visible(dtype: torch.dtype) -> None:
    gate_up = torch.full((1, 10), torch.nan, dtype=dtype)
    gated = torch.empty(1, 5, dtype=dtype)
    call(GATE[dtype], GateBlock(gate_up=gate_up, gated=gated, rows=1), parallel=False)
    assert gated.isnan().all()


@pytest.mark.parametrize("normed", [False, True])
def test_rotation_writes_queries_and_the_slots_of_its_rows_only(
    normed: bool, dtype: torch.dtype
) -> None:
    count = 20
    qkv = torch.randn(count, HEADS + 2 * KV_HEADS, DIM).to(dtype)
    angle = torch.randn(count, 1, DIM // 2).repeat(1, 1, 2)
    cos, sin, weight = angle.cos(), angle.sin(), torch.rand(DIM) + 0.5
    q = torch.empty(count, HEADS, DIM, dtype=dtype)
    pool = KVPool(KVShape(1, KV_HEADS, DIM, DIM, dtype), SLOTS, CPU)
    slots = torch.randperm(SLOTS)[:count]
    heads = qkv[:, :-KV_HEADS].float()
    heads = F.rms_norm(heads, (DIM,), weight, EPSILON) if normed else heads
    turned = torch.cat([-heads[..., DIM // 2 :], heads[..., : DIM // 2]], -1)
    expected, of_heads = heads * cos + turned * sin, weight if normed else None
    tensors = {"qkv": qkv, "cos": cos, "sin": sin, "q": q, "k": pool.k, "v": pool.v}
    norms = {"q_weight": of_heads, "k_weight": of_heads, "epsilon": EPSILON}
    sizes = {"rows": count, "heads": HEADS, "kv_heads": KV_HEADS, "dim": DIM, "row": DIM}
    call(rows.rotate_of(dtype, dtype), RotateBlock(slots=slots, **tensors, **norms, **sizes))
    near(q, expected[:, :HEADS])
    near(pool.k[0, slots], expected[:, HEADS:])
    assert torch.equal(pool.v[0, slots], qkv[:, -KV_HEADS:])
    others = torch.ones(SLOTS, dtype=torch.bool).index_fill_(0, slots, False)
    assert not pool.k[0, others].any()
    assert not pool.v[0, others].any()


@pytest.mark.parametrize("width", [64, 100])
def test_a_row_does_not_depend_on_the_other_rows(width: int, dtype: torch.dtype) -> None:
    weight = torch.randn(width)
    hidden = torch.randn(50, width).to(dtype)
    hidden[7] = torch.nan

    def normed(first: int, end: int) -> torch.Tensor:
        stream = hidden[first:end].clone()
        out = torch.empty_like(stream)
        tensors = {"hidden": stream, "weight": weight, "normed": out}
        call(ADD_NORM[dtype], NormBlock(rows=end - first, epsilon=EPSILON, **tensors))
        return out

    together = normed(0, 50)
    for row in (0, 6, 8, 49):
        assert torch.equal(normed(row, row + 1)[0], together[row])
