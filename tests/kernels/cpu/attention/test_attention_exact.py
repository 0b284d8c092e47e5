"""A row's result is right and has the same bits however it is computed: alone or in a chunk, with
whom, from which slots, on how many threads; in each dtype, with each kind of instructions that the
processor has.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from radixserve.kernels.attention import LayerAttention
from radixserve.kernels.cpu import levels, native
from radixserve.kernels.cpu.attention.bfloat16 import MULTIPLE
from radixserve.kernels.cpu.attention.call import COUNTERS, AttentionStep, attend_cpu
from radixserve.kernels.cpu.levels import Level
from radixserve.kernels.step import AttentionPlan
from radixserve.step import Chunk
from radixserve.tensors.kv import KVPool, KVShape

LENGTH = 330  # a group of tiles, a whole tile, and a part of one
SLOTS = 4 * LENGTH
SIZES = ((9, 3, 64), (8, 1, 128), (4, 2, 32), (5, 1, 80), (3, 3, 24))  # heads, key heads, width
ARITHMETIC = (
    (torch.float32, Level.AVX512),
    (torch.bfloat16, Level.AVX512),  # widened to float32
    (torch.bfloat16, Level.AVX512_BF16),  # products of pairs
    (torch.bfloat16, Level.AMX),  # tiles
)
CASES = [case for case in ARITHMETIC if case[1] <= max(levels.highest(), Level.AVX512)]


def numbers(seed: int, heads: int, dim: int, dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(LENGTH, heads, dim, generator=generator).to(dtype)


@contextmanager
def at_most(level: Level) -> Iterator[None]:
    before = levels.current()
    levels.limit(level.name.lower())
    try:
        yield
    finally:
        levels.limit(before.name.lower())


def exact_weights(products: torch.Tensor, attention: LayerAttention) -> torch.Tensor:
    """The weights [heads, rows, positions] of products of queries and keys, by definition."""
    scores = products * attention.scaling
    if attention.softcap:
        scores = attention.softcap * torch.tanh(scores / attention.softcap)
    distance = torch.arange(LENGTH) - torch.arange(LENGTH)[:, None]
    if attention.slopes is not None:
        scores = scores + attention.slopes.double()[:, None, None] * distance
    unseen = (distance > 0) | (distance <= -(attention.window or LENGTH))
    weights = scores.exp().masked_fill(unseen, 0.0)
    sinks = 0.0 if attention.sinks is None else attention.sinks.double().exp()[:, None]
    return weights / (weights.sum(-1) + sinks)[..., None]


class Sequences:
    """Three sequences that share no tokens, of one size and dtype, and what attends them."""

    def __init__(
        self,
        size: tuple[int, int, int],
        dtype: torch.dtype,
        level: Level,
        attention: LayerAttention | None = None,
    ) -> None:
        """They are attended plainly, or as `attention` says."""
        heads, kv_heads, dim = size
        self.attention = attention or LayerAttention(dim**-0.5)
        self.level = min(levels.highest(), level)
        self.dim, self.dtype, self.kv_heads = dim, dtype, kv_heads
        self.q, self.k, self.v = (
            [numbers(10 * seed + part, many, dim, dtype) for seed in range(3)]
            for part, many in enumerate((heads, kv_heads, kv_heads))
        )

    def attend(self, parts: Sequence[tuple[int, int, int]], slots: np.ndarray) -> torch.Tensor:
        """Rows [start, stop) of sequences (sequence, start, stop), in one step; sequence n lies in
        slots[n * LENGTH :].
        """
        shape = KVShape(1, self.kv_heads, self.dim, self.dim, self.dtype)
        pool = KVPool(shape, SLOTS, torch.device("cpu"))
        pool.k.fill_(7.0)  # what others left behind
        pool.v.fill_(-7.0)
        chunks = []
        for n, start, stop in parts:
            table = slots[n * LENGTH : (n + 1) * LENGTH]
            pool.k[0, table[:stop]], pool.v[0, table[:stop]] = self.k[n][:stop], self.v[n][:stop]
            chunks.append(Chunk(np.zeros(stop - start, np.int32), start, table[:stop]))
        q = torch.cat([self.q[n][start:stop] for n, start, stop in parts])
        plan = AttentionPlan.of(chunks, pool)
        with at_most(self.level):
            return attend_cpu(q, 0, plan, self.attention)

    @cache  # noqa: B019 - as many as there are sizes
    def alone(self, n: int) -> torch.Tensor:
        """All rows of sequence `n` in one chunk."""
        return self.attend([(n, 0, LENGTH)], np.arange(SLOTS, dtype=np.int32))

    def exact(self, n: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The same in float64, by definition; and the same of absolute values of V."""
        group = self.q[n].shape[1] // self.kv_heads
        q, k, v = self.q[n].double(), self.k[n].double(), self.v[n].double()
        products = torch.einsum("ihd,jhd->hij", q, k.repeat_interleave(group, 1))
        values, weights = v.repeat_interleave(group, 1), exact_weights(products, self.attention)
        return (
            torch.einsum("hij,jhd->ihd", weights, values),
            torch.einsum("hij,jhd->ihd", weights, values.abs()),
        )


@cache
def sequences(size: tuple[int, int, int], dtype: torch.dtype, level: Level) -> Sequences:
    return Sequences(size, dtype, level)


cases = pytest.mark.parametrize(("dtype", "level"), CASES, ids=str)
sizes = pytest.mark.parametrize("size", SIZES, ids=str)


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@cases
@sizes
def test_it_is_what_attention_is_by_definition(
    size: tuple[int, int, int], dtype: torch.dtype, level: Level
) -> None:
    every = sequences(size, dtype, level)
    found, (expected, absolute) = every.alone(0), every.exact(0)
    assert found.dtype == dtype
    allowed = 1e-5 * (1 + absolute)
    if dtype == torch.bfloat16:  # the result is rounded to 8 bits: at most half of the last place
        allowed += 2.0**-8 * expected.abs()
    if (
        level >= Level.AVX512_BF16 and size[2] % MULTIPLE == 0
    ):  # so are the weights, in sums above and below
        allowed += 2 * 2.0**-8 * absolute
    assert bool(((found.double() - expected).abs() <= allowed).all())


@cases
@sizes
def test_one_row_at_a_time_gives_the_bits_of_one_chunk(
    size: tuple[int, int, int], dtype: torch.dtype, level: Level
) -> None:
    every = sequences(size, dtype, level)
    slots = np.random.default_rng(1).permutation(SLOTS).astype(np.int32)
    for row in [*range(0, LENGTH, 37), 63, 64, 255, 256, 319, 320]:
        assert torch.equal(every.attend([(0, row, row + 1)], slots)[0], every.alone(0)[row]), row


parts = st.tuples(st.integers(0, 2), st.integers(0, LENGTH - 1), st.integers(1, 120))


@cases
@settings(max_examples=40, deadline=None)
@given(st.sampled_from(SIZES), st.lists(parts, min_size=1, max_size=12), st.integers(0, 5))
def test_who_is_computed_together_changes_no_bit(
    dtype: torch.dtype,
    level: Level,
    size: tuple[int, int, int],
    drawn: list[tuple[int, int, int]],
    seed: int,
) -> None:
    """The same sequence may be there several times: then it shares all of its slots."""
    every = sequences(size, dtype, level)
    steps = [(n, start, min(LENGTH, start + count)) for n, start, count in drawn]
    slots = np.random.default_rng(seed).permutation(SLOTS).astype(np.int32)
    expected = torch.cat([every.alone(n)[start:stop] for n, start, stop in steps])
    for count in (1, 2):
        with threads(count):
            assert torch.equal(every.attend(steps, slots), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@sizes
def test_avx2_gives_the_bits_of_wider_registers(
    size: tuple[int, int, int], dtype: torch.dtype
) -> None:
    every = Sequences(size, dtype, Level.AVX512)
    expected = every.alone(0)
    every.level = Level.AVX2
    assert torch.equal(every.attend([(0, 0, LENGTH)], np.arange(SLOTS, dtype=np.int32)), expected)


def launch(step: AttentionStep) -> None:
    """Choose the kernel of a plain layer."""
    nothing = torch.empty(0, dtype=step.dtype)
    counters = np.zeros(COUNTERS, np.int64)
    step.launch(nothing, nothing, nothing, nothing, LayerAttention(1.0), counters)


@pytest.mark.parametrize(
    ("level", "module"),
    [(Level.AVX512, "kernel"), (Level.AVX512_BF16, "pairs"), (Level.AMX, "amx")],
)
def test_the_level_decides_how_bfloat16_is_multiplied(
    level: Level, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(levels, "current", lambda: level)
    monkeypatch.setattr(native, "address", lambda kernel, level: asked.append(kernel.__module__))
    for dim in (64, 80):  # 80 is no multiple of 32
        launch(AttentionStep(KVShape(1, 2, dim, dim, torch.bfloat16), 4, torch.bfloat16))
    assert [name.rpartition(".")[2] for name in asked] == [module, "kernel"]


@pytest.mark.parametrize("level", levels.available(), ids=lambda level: level.name)
def test_the_level_decides_how_many_columns_a_loop_computes(
    level: Level, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, Level]] = []

    def address(kernel: Any, level: Level) -> int:
        asked.append((kernel.__name__, level))
        return 0

    monkeypatch.setattr(native, "address", address)
    with at_most(level):
        launch(AttentionStep(KVShape(1, 2, 80, 80, torch.float32), 4, torch.float32))
    width = "wide" if level >= Level.AVX512 else "narrow"
    assert asked == [(f"work_float32_float32_{width}", level)]


@cases
@sizes
def test_a_nan_shows_in_the_rows_that_see_it_only(
    size: tuple[int, int, int], dtype: torch.dtype, level: Level
) -> None:
    every = Sequences(size, dtype, level)
    every.k[0][200] = torch.nan
    found = every.attend([(0, 0, LENGTH)], np.arange(SLOTS, dtype=np.int32))
    assert torch.equal(found[:200], sequences(size, dtype, level).alone(0)[:200])
    assert found[200:].isnan().all()
