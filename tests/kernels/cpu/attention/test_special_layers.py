"""Layers with a window, a softcap, sinks or slopes: right, and each row has the same bits however
it is computed, at each level of the processor.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from radixserve.kernels.attention import LayerAttention, attend_torch
from radixserve.kernels.cpu import levels
from radixserve.kernels.cpu.attention.call import attend_cpu
from radixserve.kernels.cpu.levels import Level
from radixserve.kernels.step import AttentionPlan
from radixserve.step import Chunk
from radixserve.tensors.kv import KVPool, KVShape
from tests.kernels.cpu.attention.test_attention_exact import LENGTH, SLOTS, Sequences, threads

HEADS, KV_HEADS, DIM = SIZE = (6, 2, 64)
SCALING = DIM**-0.5
SINKS = torch.tensor([-90.0, -2.0, 0.0, 1.0, 5.0, 200.0])
SLOPES = 2.0 ** -torch.arange(1, HEADS + 1)
KINDS = {
    "a window of 1": LayerAttention(SCALING, window=1),
    "a window of 64": LayerAttention(SCALING, window=64),
    "a window of 100": LayerAttention(SCALING, window=100),
    "a window of 300, sinks": LayerAttention(SCALING, window=300, sinks=SINKS),
    "a softcap": LayerAttention(SCALING, softcap=1.5),
    "slopes": LayerAttention(SCALING, slopes=SLOPES),
    "all": LayerAttention(2 * SCALING, 130, softcap=2.0, sinks=SINKS, slopes=SLOPES),
}
CASES = [
    case
    for case in (
        (torch.float32, Level.AVX2),
        (torch.float32, Level.AVX512),
        (torch.bfloat16, Level.AVX512_BF16),
        (torch.bfloat16, Level.AMX),
    )
    if case[1] <= levels.highest()
]
cases = pytest.mark.parametrize(("dtype", "level"), CASES, ids=str)
kinds = pytest.mark.parametrize("kind", KINDS)
IN_ORDER = np.arange(SLOTS, dtype=np.int32)


@cache
def sequences(kind: str, dtype: torch.dtype, level: Level) -> Sequences:
    return Sequences(SIZE, dtype, level, KINDS[kind])


@cases
@kinds
def test_it_is_what_attention_is_by_definition(kind: str, dtype: torch.dtype, level: Level) -> None:
    every = sequences(kind, dtype, level)
    found, (expected, absolute) = every.alone(0), every.exact(0)
    allowed = 1e-5 * (1 + absolute)
    if dtype == torch.bfloat16:  # the result is rounded, and the weights, in sums above and below
        allowed += 2.0**-8 * expected.abs() + 2 * 2.0**-8 * absolute
    assert bool(((found.double() - expected).abs() <= allowed).all())


@kinds
def test_the_reference_is_right_too(kind: str) -> None:
    every = sequences(kind, torch.float32, levels.highest())
    pool = KVPool(KVShape(1, KV_HEADS, DIM, DIM, torch.float32), LENGTH, torch.device("cpu"))
    pool.k[0], pool.v[0] = every.k[0], every.v[0]
    plan = AttentionPlan.of([Chunk(np.zeros(LENGTH, np.int32), 0, IN_ORDER[:LENGTH])], pool)
    found = attend_torch(every.q[0], 0, plan, KINDS[kind])
    torch.testing.assert_close(found.double(), every.exact(0)[0], atol=1e-5, rtol=1e-5)


parts = st.tuples(st.integers(0, 2), st.integers(0, LENGTH - 1), st.integers(1, 120))


@cases
@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(sorted(KINDS)),
    st.lists(parts, min_size=1, max_size=12),
    st.integers(0, 5),
)
def test_who_is_computed_together_changes_no_bit(
    dtype: torch.dtype, level: Level, kind: str, drawn: list[tuple[int, int, int]], seed: int
) -> None:
    """The same sequence may be there several times: then it shares all of its slots."""
    every = sequences(kind, dtype, level)
    steps = [(n, start, min(LENGTH, start + count)) for n, start, count in drawn]
    slots = np.random.default_rng(seed).permutation(SLOTS).astype(np.int32)
    expected = torch.cat([every.alone(n)[start:stop] for n, start, stop in steps])
    for count in (1, 2):
        with threads(count):
            assert torch.equal(every.attend(steps, slots), expected)


@pytest.mark.parametrize("kind", ["a window of 64", "all"])
def test_what_is_before_the_window_is_not_read(kind: str) -> None:
    every = Sequences(SIZE, torch.float32, Level.AVX512, KINDS[kind])
    window, row = KINDS[kind].window or 0, 300
    expected = every.attend([(0, row, row + 1)], IN_ORDER)
    every.k[0][: row + 1 - window] = 50.0
    every.v[0][: row + 1 - window] = 50.0
    assert torch.equal(every.attend([(0, row, row + 1)], IN_ORDER), expected)
    assert not torch.equal(every.attend([(0, row - 1, row)], IN_ORDER), expected)


def test_layers_of_one_step_may_differ() -> None:
    """The layers of each window share their work; a step may begin with any of them."""
    kinds = [*KINDS.values(), LayerAttention(SCALING)]
    pool = KVPool(KVShape(len(kinds), KV_HEADS, DIM, DIM, torch.float32), 900, torch.device("cpu"))
    generator = torch.Generator().manual_seed(4)
    for tensor in pool.tensors:
        tensor.normal_(generator=generator)
    chunks = [Chunk(np.zeros(1, np.int32), 299, IN_ORDER[:300])] * 2
    chunks.append(Chunk(np.zeros(150, np.int32), 250, IN_ORDER[400:800]))
    plan = AttentionPlan.of(chunks, pool)
    q = torch.randn(152, HEADS, DIM, generator=generator)
    for layer, attention in enumerate(kinds):
        alone = attend_cpu(q, layer, AttentionPlan.of(chunks, pool), attention)
        assert torch.equal(attend_cpu(q, layer, plan, attention), alone)
