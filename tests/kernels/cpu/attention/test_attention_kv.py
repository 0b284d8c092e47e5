"""Attention where K/V has another dtype than activations: right, and exact with respect to what the
pool holds.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from radixserve.kernels.attention import LayerAttention, attend_torch
from radixserve.kernels.cpu.attention.call import attend_cpu
from radixserve.kernels.step import AttentionPlan
from radixserve.step import Chunk
from radixserve.tensors.kv import KVPool, KVShape
from radixserve.tensors.one_byte import rows_of

CPU = torch.device("cpu")
LENGTH, SLOTS = 200, 300
SIZES = ((9, 3, 64), (8, 1, 128), (5, 1, 80), (3, 3, 24))  # heads, key heads, width
CASES = (
    (torch.float32, torch.bfloat16),
    (torch.float32, torch.int8),
    (torch.bfloat16, torch.float32),
    (torch.bfloat16, torch.uint8),
)
every_case = pytest.mark.parametrize(("numbers", "kv"), CASES, ids=str)


def filled(kv_heads: int, dim: int, kv: torch.dtype) -> tuple[KVPool, np.ndarray]:
    """A pool with a sequence in slots that are out of order; and these slots."""
    generator = torch.Generator().manual_seed(1)
    pool = KVPool(KVShape(1, kv_heads, dim, dim, kv), SLOTS, CPU)
    slots = np.random.default_rng(2).permutation(SLOTS)[:LENGTH].astype(np.int32)
    for target in pool.tensors:
        computed = torch.randn(LENGTH, kv_heads, dim, generator=generator)
        target[0, torch.from_numpy(slots).long()] = rows_of(computed, kv)
    return pool, slots


def step(pool: KVPool, slots: np.ndarray, start: int, stop: int) -> AttentionPlan:
    return AttentionPlan.of([Chunk(np.zeros(stop - start, np.int32), start, slots[:stop])], pool)


@every_case
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_it_is_the_reference_over_the_numbers_that_the_pool_holds(
    size: tuple[int, int, int], numbers: torch.dtype, kv: torch.dtype
) -> None:
    heads, kv_heads, dim = size
    pool, slots = filled(kv_heads, dim, kv)
    q = torch.randn(LENGTH, heads, dim, generator=torch.Generator().manual_seed(3)).to(numbers)
    whole = attend_cpu(q, 0, step(pool, slots, 0, LENGTH), LayerAttention(dim**-0.5))
    assert whole.dtype == numbers
    expected = attend_torch(q, 0, step(pool, slots, 0, LENGTH), LayerAttention(dim**-0.5))
    rounding = 2**-7 if numbers == torch.bfloat16 else 1e-5
    torch.testing.assert_close(whole.float(), expected.float(), rtol=rounding, atol=1e-5)
    for row in (0, 15, 63, 64, 130, LENGTH - 1):
        alone = attend_cpu(
            q[row : row + 1], 0, step(pool, slots, row, row + 1), LayerAttention(dim**-0.5)
        )
        assert torch.equal(alone[0], whole[row]), row
