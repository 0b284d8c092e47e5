"""What a model on CUDA needs at its start: the check of the attention kernel, and that of captured
decode steps.

The kernel is compared with the plain torch reference on random data of the model's shapes. If it
cannot be built or disagrees, the reference serves and the reason goes to the log, /version and a
metric. On a CPU only the comparison itself runs, which takes any kernel.
"""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import torch
from transformers import AttentionInterface

from radixserve.kernels.attention import Kernel, LayerAttention, attend_torch
from radixserve.kernels.cuda.capture import CudaCapture
from radixserve.kernels.step import AttentionPlan
from radixserve.model import attention
from radixserve.model.graphs import DecodeGraphs
from radixserve.model.loaded import LoadedModel
from radixserve.step import Chunk
from radixserve.tensors.kv import KVPool, KVShape

log = logging.getLogger(__name__)

TRITON = "radixserve_triton"

# Largest allowed difference; entries of V are about 1, 5 at most.
_TOLERANCE = {
    torch.float32: 2e-4,
    torch.float16: 6e-3,
    torch.bfloat16: 4e-2,
}
# (start, rows) of the chunks that are compared.
_CHECKED = (
    (0, 130),
    (70, 20),
    (0, 1),
    (63, 1),
    (64, 1),
    (255, 1),
    (256, 2),
    (700, 1),
)


def choose_attention(shape: KVShape, heads: int, device: torch.device) -> tuple[str, str | None]:
    """The name of the attention kernel to use on CUDA, and why it is the reference if it is.
    Compiles the kernel, which takes seconds.
    """
    try:
        from radixserve.kernels.cuda.attention import attend_triton

        reason = fault(attend_triton, shape, heads, device)
    except Exception as error:  # compilers and drivers raise anything; the reference can serve
        log.debug("the attention kernel failed", exc_info=True)
        reason = (
            f"the Triton attention kernel cannot run here ({type(error).__name__}: "
            f"{_first_line(error)})"
        )
    if reason:
        log.warning("slower attention serves: %s", reason)
        return attention.TORCH, reason
    AttentionInterface.register(TRITON, attention.interface(attend_triton))
    return TRITON, None


def fault(kernel: Kernel, shape: KVShape, heads: int, device: torch.device) -> str | None:
    """Compare `kernel` on one layer with the reference computed in float32. None if they agree,
    else a sentence.
    """
    pool, wide = (
        random_pool(replace(shape, layers=1), device),
        KVShape(1, *_dims(shape), torch.float32),
    )
    exact = KVPool(wide, pool.num_slots, device)
    exact.k.copy_(pool.k)
    exact.v.copy_(pool.v)
    chunks = _chunks(pool.num_slots)
    plan = AttentionPlan.of(chunks, pool)
    q = torch.randn(
        len(plan.positions), heads, shape.k_dim, generator=torch.Generator().manual_seed(3)
    )
    q = q.to(device, shape.dtype)
    attention = LayerAttention(shape.k_dim**-0.5)
    out = kernel(q, 0, plan, attention).float()
    expected = attend_torch(q.float(), 0, AttentionPlan.of(chunks, exact), attention)
    difference = float((out - expected).abs().max())
    if difference <= _TOLERANCE[shape.dtype]:
        return None
    return (
        f"the attention kernel differs from the reference by {difference:.3g} (allowed "
        f"{_TOLERANCE[shape.dtype]})"
    )


def random_pool(shape: KVShape, device: torch.device) -> KVPool:
    """A pool of normal random numbers, large enough for the checked chunks."""
    pool = KVPool(shape, sum(start + count for start, count in _CHECKED) + 7, device)
    generator = torch.Generator().manual_seed(2)
    pool.k.copy_(torch.randn(pool.k.shape, generator=generator))
    pool.v.copy_(torch.randn(pool.v.shape, generator=generator))
    return pool


def _dims(shape: KVShape) -> tuple[int, int, int]:
    return shape.kv_heads, shape.k_dim, shape.v_dim


def _chunks(num_slots: int) -> list[Chunk]:
    """The checked chunks, with slots scattered at random."""
    slots, free = np.random.default_rng(4).permutation(num_slots).astype(np.int32), 0
    chunks = []
    for start, count in _CHECKED:
        stop = start + count
        chunks.append(Chunk(np.zeros(count, np.int32), start, slots[free : free + stop]))
        free += stop
    return chunks


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")[
        :200
    ]


def start_graphs(
    loaded: LoadedModel, pool: KVPool, max_batch: int
) -> tuple[DecodeGraphs | None, str | None]:
    """Graphs for decode steps of up to `max_batch` sequences; if there are none although there
    should be, why.

    Graphs use the pool's last slot for padding rows. They are checked on the smallest step against
    the same step without a graph.
    """
    if loaded.attention != TRITON:
        return None, None
    scratch = pool.num_slots - 1
    graphs = DecodeGraphs(
        loaded, pool, scratch_slot=scratch, max_batch=max_batch, capture=CudaCapture()
    )
    reason = graphs.check()
    if reason:
        log.warning("decode without graphs: %s", reason)
        return None, reason
    return graphs, None
