"""The Triton kernel: its numbers in Triton's interpreter, its code for real devices without one,
its bits on a GPU.

Tolerances. Float32: 3e-6, both sides round in different orders. Halves: against the reference in
float32 over the same values; weights and results are rounded to 11 (float16) or 8 bits (bfloat16),
V is about 1 and 5 at most.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from radixserve.kernels.attention import Kernel, LayerAttention, attend_torch
from radixserve.kernels.cpu.attention.call import attend_cpu
from radixserve.kernels.step import AttentionPlan
from radixserve.step import Chunk
from radixserve.tensors.kv import KVPool, KVShape
from tests.kernels.cuda.interpreted import Interpreter, interpreter

pytestmark = pytest.mark.slow

SLOTS = 1200
TOLERANCE = {"float32": 3e-6, "float16": 4e-3, "bfloat16": 3e-2}
SIZES = (
    (3, 3, 64),
    (9, 3, 64),
    (7, 1, 80),
    (4, 2, 128),
    (20, 1, 16),
    (2, 1, 8),
)  # heads, kv heads, width
MIX = ((0, 70), (62, 1), (63, 1), (64, 1), (60, 9), (300, 1), (511, 2))  # (start, rows) of chunks
KINDS: dict[str, Callable[[int], dict[str, Any]]] = {
    "plain": lambda heads: {},
    "a window": lambda heads: {"window": 70},
    "all": lambda heads: {
        "window": 300,
        "softcap": 1.5,
        "sinks": torch.linspace(-3.0, 3.0, heads),
        "slopes": 2.0 ** -torch.arange(1, heads + 1),
    },
}
Array = np.ndarray[Any, Any]
Spans = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Case:
    """Attention of one layer with random numbers; `seed` shuffles the slots and nothing else."""

    heads: int = 9
    kv_heads: int = 3
    dim: int = 64
    dtype: str = "float32"
    spans: Spans = MIX
    seed: int = 0
    device: str = "cpu"
    kind: str = "plain"

    @property
    def attention(self) -> LayerAttention:
        """What the layer does besides scaling, by the name in KINDS."""
        return replace(LayerAttention(self.dim**-0.5), **KINDS[self.kind](self.heads))

    def inputs(self) -> tuple[torch.Tensor, AttentionPlan]:
        """Sequence i holds the same K and V at each position, and is asked the same, whatever its
        slots and rows.
        """
        shape = KVShape(1, self.kv_heads, self.dim, self.dim, getattr(torch, self.dtype))
        pool = KVPool(shape, SLOTS, torch.device(self.device))
        slots = np.random.default_rng(self.seed).permutation(SLOTS).astype(np.int32)
        chunks, queries, free = [], [], 0
        for i, (start, count) in enumerate(self.spans):
            stop, generator = start + count, torch.Generator().manual_seed(i)
            own = slots[free : free + stop]
            free += stop
            for tensor in (pool.k, pool.v):
                content = torch.randn(600, self.kv_heads, self.dim, generator=generator)[:stop]
                tensor[0, torch.from_numpy(own).long()] = content.to(tensor)
            queries.append(torch.randn(600, self.heads, self.dim, generator=generator)[start:stop])
            chunks.append(Chunk(np.zeros(count, np.int32), start, own))
        return torch.cat(queries).to(self.device, shape.dtype), AttentionPlan.of(chunks, pool)


def output(kernel: Kernel, case: Case) -> torch.Tensor:
    q, plan = case.inputs()
    return kernel(q, 0, plan, case.attention).float().cpu()


def expected(case: Case) -> torch.Tensor:
    """The reference in float32, over K, V and queries that were rounded to the case's type."""
    q, plan = case.inputs()
    pool = KVPool(KVShape(1, case.kv_heads, case.dim, case.dim, torch.float32), SLOTS, q.device)
    pool.k.copy_(plan.pool.k)
    pool.v.copy_(plan.pool.v)
    plan.pool = pool
    return attend_torch(q.float(), 0, plan, case.attention).cpu()


def by_triton(case: Case) -> Array:
    """In the interpreter's process, or on a GPU."""
    from radixserve.kernels.cuda.attention import attend_triton

    return output(attend_triton, case).numpy()


@pytest.fixture(scope="module")
def interpreted() -> Iterator[Interpreter]:
    with interpreter() as started:
        yield started


def close(actual: Array, case: Case) -> None:
    tolerance = TOLERANCE[case.dtype]
    torch.testing.assert_close(
        torch.from_numpy(actual), expected(case), atol=tolerance, rtol=tolerance
    )


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_it_agrees_with_both_other_kernels(
    interpreted: Interpreter, size: tuple[int, int, int]
) -> None:
    case = Case(*size)
    actual = interpreted.run(by_triton, case)
    close(actual, case)
    torch.testing.assert_close(
        torch.from_numpy(actual), output(attend_cpu, case), atol=3e-6, rtol=3e-6
    )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_it_agrees_in_halves(interpreted: Interpreter, dtype: str) -> None:
    case = Case(dtype=dtype)
    close(interpreted.run(by_triton, case), case)


@pytest.mark.parametrize("kind", ["a window", "all"])
def test_it_agrees_for_layers_that_are_not_plain(interpreted: Interpreter, kind: str) -> None:
    case = Case(4, 2, 32, kind=kind)
    actual = interpreted.run(by_triton, case)
    close(actual, case)
    torch.testing.assert_close(
        torch.from_numpy(actual), output(attend_cpu, case), atol=3e-6, rtol=3e-6
    )


def rows_of(case: Case, sequence: int, actual: Array) -> Array:
    first = sum(count for _, count in case.spans[:sequence])
    return actual[first : first + case.spans[sequence][1]]


def same_bits(run: Callable[[Case], Array], case: Case) -> None:
    """Sequence 0 prefilled whole, in chunks and token by token, alone and with others, in any
    slots.
    """
    whole = run(replace(case, spans=((0, 530),)))
    for seed, (start, count) in enumerate(((0, 63), (63, 2), (128, 100), (200, 21), (510, 20))):
        chunk = replace(case, spans=((start, count), *((5, 40), (255, 1))[: seed % 3]), seed=seed)
        np.testing.assert_array_equal(rows_of(chunk, 0, run(chunk)), whole[start : start + count])
    for position in (0, 63, 64, 255, 256, 511, 512, 529):
        step = replace(case, spans=((position, 1), (300, 1)), seed=position)
        np.testing.assert_array_equal(rows_of(step, 0, run(step))[0], whole[position])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_row_has_the_same_bits_however_it_is_computed(
    interpreted: Interpreter, dtype: str
) -> None:
    same_bits(lambda case: interpreted.run(by_triton, case), Case(2, 1, 24, dtype))


def test_a_row_of_another_layer_has_the_same_bits_too(interpreted: Interpreter) -> None:
    same_bits(lambda case: interpreted.run(by_triton, case), Case(2, 1, 16, kind="all"))


# Its code, made for devices that are not here.


class Device:
    """What Triton asks its driver before it compiles."""

    def __init__(self, capability: int) -> None:
        self._capability = capability

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self._capability, 32)

    def get_current_device(self) -> int:
        return self._capability

    def get_current_stream(self, device: int) -> int:
        return 0


@pytest.fixture(params=[80, 90], ids=["sm_80", "sm_90"])
def absent_device(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> int:
    from triton.runtime import driver

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(driver, "_active", Device(request.param))
    capability: int = request.param
    return capability


@pytest.mark.parametrize(
    ("size", "dtype", "kind"),
    [
        ((9, 3, 64), "bfloat16", "plain"),
        ((9, 3, 64), "float32", "plain"),
        ((32, 8, 128), "bfloat16", "plain"),
        ((32, 8, 128), "float32", "plain"),
        ((32, 8, 128), "bfloat16", "all"),
    ],
    ids=str,
)
def test_it_compiles_to_one_program_for_prefill_and_decode(
    absent_device: int, size: tuple[int, int, int], dtype: str, kind: str
) -> None:
    from radixserve.kernels.cuda import attention as kernels

    kernels._attend.device_caches.clear()
    for spans in (((0, 100),), ((70, 1),), ((590, 1),)):
        case = Case(*size, dtype, spans, kind=kind)
        q, plan = case.inputs()
        launch = kernels.prepare(q, 0, plan, case.attention)
        arguments = launch.step, launch.blocks, launch.partials, launch.scale, launch.size
        compiled = kernels._attend.warmup(*arguments, grid=launch.grid, **launch.options)
        assert compiled.metadata.shared <= 99 * 1024, (
            "the least that a device since Ampere gives a program"
        )
        combine = kernels._combine.warmup(
            launch.step, launch.rows, launch.partials, launch.size, grid=(1, 1), num_warps=1
        )
        assert combine.asm["cubin"]
    programs = kernels._attend.device_caches[absent_device][0]
    assert len(programs) == 1, "another program might round otherwise"


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
class TestOnADevice:
    @pytest.mark.parametrize("size", SIZES, ids=str)
    def test_it_agrees_with_the_reference(self, size: tuple[int, int, int], dtype: str) -> None:
        case = Case(*size, dtype, device="cuda")
        close(by_triton(case), case)

    def test_a_row_has_the_same_bits_however_it_is_computed(self, dtype: str) -> None:
        same_bits(by_triton, Case(dtype=dtype, device="cuda"))
        same_bits(by_triton, Case(32, 8, 128, dtype, device="cuda"))
