"""Attention on the CPU: hands a layer's work to the compiled tile kernel, on torch's own threads.

Owns the compiled code's place on disk. Knows nothing of tiles.
"""

from __future__ import annotations

import hashlib
import logging
from functools import cache
from pathlib import Path

import numba
import torch

from radixserve.model import lanes, step_block, team, tile_kernel, tiles
from radixserve.model.embedded import cache_dir
from radixserve.model.plan import AttentionPlan
from radixserve.model.step_block import StepBlock

log = logging.getLogger(__name__)


@cache
def compiled_kernel() -> numba.core.ccallback.CFunc:
    """The kernel as a C function; compiled once per machine and version (10-20 s), afterwards read from disk."""
    folder = _compiled_code_dir()
    if not folder.exists():
        log.info("compiling the attention kernel (once)")
    numba.config.CACHE_DIR = str(folder)
    return numba.cfunc(tile_kernel.WORK, cache=True, error_model="numpy")(tile_kernel.work)


def _compiled_code_dir() -> Path:
    """Numba looks at one source file to tell whether compiled code is stale; the kernel has several."""
    sources = (Path(str(module.__file__)) for module in (lanes, step_block, tile_kernel, tiles))
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources))
    return cache_dir() / "kernels" / digest.hexdigest()[:16]


def attend_cpu(q: torch.Tensor, layer: int, plan: AttentionPlan, scaling: float) -> torch.Tensor:
    """Attention of one layer; see `attention` for the shapes. float32 on the CPU only."""
    if plan.prepared is None:
        plan.prepared = StepBlock(plan, q)
    block = plan.prepared
    assert isinstance(block, StepBlock), "one kernel serves all layers of a step"
    out = torch.empty(*q.shape[:2], plan.pool.shape.v_dim)
    block.point_to(q, plan.pool.k[layer], plan.pool.v[layer], out)
    block.scaling[0] = scaling
    block.counters[0] = 0
    block.counters[1:] = block.num_split_items
    team.run(compiled_kernel().address, block.address, block.parallel)
    return out
