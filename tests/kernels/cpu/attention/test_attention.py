"""The compiled kernel agrees with the plain torch kernel on any mixture of chunks, head groups and
widths.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit

from radixserve.errors import ModelRefused
from radixserve.kernels.attention import LayerAttention, attend_torch
from radixserve.kernels.cpu import vector
from radixserve.kernels.cpu.attention.call import attend_cpu
from radixserve.kernels.step import AttentionPlan
from radixserve.model.attention import refuse_unknown
from radixserve.step import Chunk
from radixserve.tensors.kv import KVPool, KVShape

CPU = torch.device("cpu")
SLOTS = 2048
SIZES = (
    (1, 1, 8),
    (3, 1, 24),
    (4, 4, 16),
    (9, 3, 64),
    (14, 2, 64),
    (5, 1, 80),
)  # heads, kv heads, width


def pool(kv_heads: int, dim: int) -> KVPool:
    filled = KVPool(KVShape(1, kv_heads, dim, dim, torch.float32), SLOTS, CPU)
    generator = torch.Generator().manual_seed(1)
    filled.k.normal_(generator=generator)
    filled.v.normal_(generator=generator)
    return filled


def plan(spans: list[tuple[int, int]], prefix: int, filled: KVPool) -> AttentionPlan:
    """Chunks (start, count) whose first `prefix` positions lie in the same slots."""
    slots = np.random.default_rng(2).permutation(SLOTS).astype(np.int32)
    chunks, free = [], prefix
    for start, count in spans:
        own = slots[free : free + start + count]
        free += start + count
        table = np.concatenate([slots[:prefix], own])[: start + count]
        chunks.append(Chunk(np.zeros(count, np.int32), start, table))
    return AttentionPlan.of(chunks, filled)


def queries(step: AttentionPlan, heads: int, dim: int) -> torch.Tensor:
    return torch.randn(len(step.positions), heads, dim, generator=torch.Generator().manual_seed(3))


span = st.tuples(st.integers(0, 200), st.integers(1, 60))


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(SIZES), st.lists(span, min_size=1, max_size=6), st.integers(0, 150))
def test_the_compiled_kernel_agrees_with_the_reference(
    size: tuple[int, int, int], spans: list[tuple[int, int]], prefix: int
) -> None:
    heads, kv_heads, dim = size
    step = plan(spans, prefix, pool(kv_heads, dim))
    q = queries(step, heads, dim)
    torch.testing.assert_close(
        attend_cpu(q, 0, step, LayerAttention(dim**-0.5)),
        attend_torch(q, 0, step, LayerAttention(dim**-0.5)),
        atol=2e-5,
        rtol=2e-5,
    )


def test_a_position_behind_a_row_is_not_seen() -> None:
    filled = pool(1, 16)
    step = plan([(0, 40)], 0, filled)
    q = queries(step, 2, 16)
    before = attend_cpu(q, 0, step, LayerAttention(0.25))
    filled.k[0, step.table[30]] = 50.0
    filled.v[0, step.table[30]] = 50.0
    after = attend_cpu(q, 0, step, LayerAttention(0.25))
    assert torch.equal(before[:30], after[:30])
    assert not torch.equal(before[30:], after[30:])


@pytest.mark.parametrize("count", [1, 40])
def test_a_nan_in_the_context_shows_in_the_row(count: int) -> None:
    filled = pool(1, 16)
    step = plan([(100, count)], 0, filled)
    filled.k[0, step.table[3]] = float("nan")
    assert attend_cpu(queries(step, 2, 16), 0, step, LayerAttention(0.25)).isnan().all()


def test_scores_beyond_the_float_range_show_as_nan() -> None:
    filled = pool(1, 16)
    step = plan([(10, 1)], 0, filled)
    filled.k[0, step.table[3]] = 3e38
    assert attend_cpu(torch.full((1, 1, 16), 3e38), 0, step, LayerAttention(0.25)).isnan().all()


def test_exp_is_right_within_two_units_in_the_last_place() -> None:
    @njit
    def apply(x: np.ndarray, out: np.ndarray) -> None:
        for i in range(len(x)):
            out[i] = vector.exp(x[i])

    x = -np.random.default_rng(0).random(20000, np.float32) * 87
    out = np.empty_like(x)
    apply(x, out)
    exact = np.exp(x.astype(np.float64))
    assert np.max(np.abs(out - exact) / np.spacing(exact.astype(np.float32))) <= 2
    ends = np.array([0.0, -0.0, -87.0, -1e9, -np.inf, np.nan], np.float32)
    apply(ends, out)
    assert out[:2].tolist() == [1.0, 1.0]
    assert out[2] == out[3] == out[4] > 0
    assert np.isnan(out[5])


def test_an_argument_that_changes_the_result_is_refused() -> None:
    step = plan([(0, 3)], 0, pool(1, 8))
    with pytest.raises(ModelRefused, match="asks for attention with alibi"):
        refuse_unknown(torch.nn.Identity(), None, {"alibi": torch.ones(1)}, step)


def test_a_mask_is_refused() -> None:
    with pytest.raises(ModelRefused, match="mask of its own"):
        refuse_unknown(torch.nn.Identity(), torch.ones(1), {}, plan([(0, 3)], 0, pool(1, 8)))
