"""How attention is passed to compiled code: a block with a layer's own tensors, which leads to the
block that all layers of a step share. `call.AttentionStep` fills both.
"""

from __future__ import annotations

from typing import Annotated, Any

from radixserve.kernels.cpu.attention.memory import Sums
from radixserve.kernels.cpu.attention.work import ITEM, SPLIT_ROW
from radixserve.kernels.cpu.block import (
    Block,
    Elements,
    Float,
    Float32s,
    Int,
    Int32s,
    Int64s,
    KVNumbers,
    Numbers,
)


class AttentionBlock(Block):
    """One layer of a step; `scaling` to `slopes` are those of `LayerAttention`. The counters are
    int64 [1] each, and 0 when the kernel starts.
    """

    q: Numbers  # [rows * heads * k_dim]
    k: KVNumbers  # [slots * kv_heads * k_row]
    v: KVNumbers  # [slots * kv_heads * v_row]
    out: Numbers  # [rows * heads * v_dim]
    scaling: Float
    window: Int  # how many positions a row sees at most
    softcap: Float  # 0: scores are not capped
    sinks: Float32s  # [heads], or empty
    slopes: Float32s  # [heads], or empty
    step: Int  # the address of a `StepBlock`
    taken: Int64s  # how many items threads have taken
    done: Int64s  # how many items are done
    finished: Int64s  # how many rows of `split_rows` threads have taken
    threads: Int64s  # how many threads have come


class StepBlock(Block):
    """What all layers of a step that have the same window share."""

    partials: Sums  # stored contributions, for each of them `heads` rows
    table: Int32s  # slots, as in `AttentionPlan`
    positions: Int32s
    rows: Int32s  # this and what follows as in `TileWork`
    places: Int32s
    opens: Int32s
    items: Annotated[Any, Elements.of(ITEM)]
    split_rows: Annotated[Any, Elements.of(SPLIT_ROW)]
    scratch: Int64s  # the address of each thread's `Scratch`
    heads: Int
    kv_heads: Int
    k_dim: Int
    v_dim: Int
    k_row: Int  # elements of a head's row in the pool: numbers, and a scale where there is one
    v_row: Int
    width: Int  # v_dim, padded to whole panels
