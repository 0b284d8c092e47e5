"""The CUDA attention kernel, in Triton: reads K/V by slot, and gives a row the same bits whatever
other rows are computed with it.

The context is cut into tiles of 64 positions, and positions into splits of 256, at absolute
multiples. Within a split the softmax is online, in the order of the tiles; splits are combined in
their order. One program either walks all splits of its block of rows, or the splits are spread over
programs and combined afterwards: the operations on a row are the same. Every dot product has one
shape, with masks where there is less to do, so prefill and decode share one compiled kernel. Online
softmax: Milakov & Gimelshein 2018 (arXiv:1805.02867); splits for decoding: Flash-Decoding (Dao et
al. 2023).
"""

# mypy: disable-error-code="untyped-decorator"
# (Triton has no type hints that mypy could follow)

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from radixserve.kernels.attention import LayerAttention
from radixserve.kernels.cuda.attention_work import (
    SPLIT,
    TILE,
    BlockColumns,
    Blocks,
    Cut,
    RowColumns,
    entries_per_block,
)
from radixserve.kernels.step import AttentionPlan

_TILE = tl.constexpr(TILE)
_SPLIT = tl.constexpr(SPLIT)
_BITS = math.log2(math.e)  # scores are kept in base 2


class Step(NamedTuple):
    """What one layer of a step reads and writes."""

    q: Any  # [rows, heads, k_dim]
    k: Any  # [slots, kv_heads, k_dim]
    v: Any  # [slots, kv_heads, v_dim]
    out: Any  # [rows, heads, v_dim]
    table: Any  # int64: slots, as in `AttentionPlan`
    # Of layers that have them, as in `LayerAttention`, in base 2:
    window: Any
    softcap: Any
    sinks: Any  # float32 [heads]
    slopes: Any  # float32 [heads]


class Sums(NamedTuple):
    """float32, per entry: the sum of V weighted relative to the largest score (in base 2), that
    score, and the sum of weights.
    """

    acc: Any
    peak: Any
    weight: Any


class Block(NamedTuple):
    """The query rows of one program. Entry i is row i // group of the block, at head i % group of
    the key head's group.
    """

    begin: Any  # index in the table of the sequence's first slot
    stop: Any  # the position behind the last row's
    first: Any  # the first position that the first row sees
    splits: Any  # how many splits there are to the last row
    # index among the partial sums of the first row's first split; -1: this program walks all splits
    place: Any
    index: Any  # [m]: row * heads + head
    member: Any  # [m]: row within the block
    position: Any  # [m]: the last one that entry sees; -1 where the block has no such row
    key_head: Any


class Sizes(NamedTuple):
    """Constants of the compiled kernel."""

    heads: int
    kv_heads: int
    k_dim: int
    v_dim: int
    m: int  # entries of a block, a power of two as the widths are
    k_width: int
    v_width: int
    # Whether the layer has these:
    window: bool
    softcap: bool
    sinks: bool
    slopes: bool


@triton.jit
def _first_seen(step: tl.tensor, position: tl.tensor, size: tl.constexpr) -> tl.tensor:
    """The first position that a row at `position` sees."""
    return tl.maximum(position + 1 - step.window, 0) if size.window else 0


@triton.jit
def _block(step: tl.tensor, blocks: tl.tensor, size: tl.constexpr) -> tl.tensor:
    """The block of this program, from `BlockColumns`."""
    number = tl.program_id(0)
    row = tl.load(blocks.row + number)
    count = tl.load(blocks.count + number).to(tl.int32)
    begin = tl.load(blocks.begin + number)
    start = tl.load(blocks.start + number).to(tl.int32)
    place = tl.load(blocks.place + number)
    group: tl.constexpr = size.heads // size.kv_heads
    i = tl.arange(0, size.m)
    member = i // group
    index = (row + member) * size.heads + tl.program_id(1) * group + i % group
    position = tl.where(member < count, start + member, -1)
    stop, first = start + count, _first_seen(step, start, size)
    splits = tl.cdiv(stop, _SPLIT)
    return Block(begin, stop, first, splits, place, index, member, position, tl.program_id(1))


@triton.jit
def _changed(
    step: tl.tensor, block: tl.tensor, score: tl.tensor, j: tl.tensor, size: tl.constexpr
) -> tl.tensor:
    """The scores of positions j: capped, with slopes, and -inf where a row does not see them.
    Scores to be capped are 2 * log2(e) times what the tanh is taken of.
    """
    seen = j[None, :] <= block.position[:, None]
    if size.softcap:
        power = tl.exp2(-tl.abs(score))
        bounded = tl.div_rn(1.0 - power, 1.0 + power) * step.softcap
        score = tl.where(score < 0, -bounded, bounded)
    if size.slopes:
        slope = tl.load(step.slopes + block.index % size.heads)
        distance = (j[None, :] - block.position[:, None]).to(tl.float32)
        score = tl.fma(distance, slope[:, None], score)
    if size.window:
        seen = seen & (j[None, :] > block.position[:, None] - step.window)
    return tl.where(seen, score, -float("inf"))


@triton.jit
def _rows(
    base: tl.tensor, index: tl.tensor, there: tl.tensor, dim: tl.constexpr, width: tl.constexpr
) -> tl.tensor:
    """Rows `index` of [n, dim] as [len(index), width]; 0 where not `there`, and beyond `dim`."""
    d = tl.arange(0, width)
    return tl.load(
        base + index[:, None] * dim + d[None, :], there[:, None] & (d < dim)[None, :], other=0.0
    )


@triton.jit
def _one_split(
    step: tl.tensor,
    block: tl.tensor,
    q: tl.tensor,
    split: tl.tensor,
    scale: tl.tensor,
    size: tl.constexpr,
) -> tl.tensor:
    """The sums over one split, for all entries of the block."""
    peak = tl.full([size.m], -float("inf"), tl.float32)
    weight = tl.full([size.m], 0.0, tl.float32)
    values = tl.full([size.m, size.v_width], 0.0, tl.float32)
    first = split * _SPLIT
    if size.window:
        first = tl.maximum(first, block.first // _TILE * _TILE)
    for at in range(first, tl.minimum(block.stop, (split + 1) * _SPLIT), _TILE):
        j = at + tl.arange(0, _TILE)
        inside = j < block.stop
        slot = (
            tl.load(step.table + block.begin + j, inside, other=0) * size.kv_heads + block.key_head
        )
        k = _rows(step.k, slot, inside, size.k_dim, size.k_width)
        score = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        score = _changed(step, block, score, j, size)
        largest = tl.maximum(peak, tl.max(score, 1))
        finite = tl.where(largest == -float("inf"), 0.0, largest)
        p = tl.exp2(score - finite[:, None])
        old = tl.exp2(peak - finite)
        weight = tl.fma(weight, old, tl.sum(p, 1))
        v = _rows(step.v, slot, inside, size.v_dim, size.v_width)
        values = tl.dot(p.to(v.dtype), v, values * old[:, None], input_precision="ieee")
        peak = largest
    return values, peak, weight


@triton.jit
def _merge(total: tl.tensor, part: tl.tensor) -> tl.tensor:
    """The sums over the splits so far, combined with one more. A split that a row does not see has
    weight 0 and changes nothing, neither behind the row nor before its window.
    """
    largest = tl.maximum(total.peak, part.peak)
    finite = tl.where(largest == -float("inf"), 0.0, largest)
    old, new = tl.exp2(total.peak - finite), tl.exp2(part.peak - finite)
    values = tl.fma(part.acc, new[:, None], total.acc * old[:, None])
    return Sums(values, largest, tl.fma(part.weight, new, total.weight * old))


@triton.jit
def _write(
    step: tl.tensor, index: tl.tensor, there: tl.tensor, total: tl.tensor, size: tl.constexpr
) -> tl.tensor:
    """Write finished rows: weighted means of V. Adding 0 turns -0.0 into 0.0."""
    weight = total.weight
    if size.sinks:
        sink = tl.load(step.sinks + index % size.heads)
        weight += tl.exp2(sink - tl.where(there, total.peak, 0.0))
    mean = total.acc * tl.div_rn(1.0, weight)[:, None] + 0.0
    d = tl.arange(0, size.v_width)
    target = step.out + index[:, None] * size.v_dim + d[None, :]
    tl.store(target, mean.to(step.out.dtype.element_ty), there[:, None] & (d < size.v_dim)[None, :])


@triton.jit
def _store(
    partials: tl.tensor, at: tl.tensor, there: tl.tensor, part: tl.tensor, size: tl.constexpr
) -> tl.tensor:
    """Store the partial sums of one split at `at`."""
    d = tl.arange(0, size.v_width)
    tl.store(partials.acc + at[:, None] * size.v_width + d[None, :], part.acc, there[:, None])
    tl.store(partials.peak + at, part.peak, there)
    tl.store(partials.weight + at, part.weight, there)


@triton.jit
def _attend(
    step: tl.tensor, blocks: tl.tensor, partials: tl.tensor, scale: tl.tensor, size: tl.constexpr
) -> tl.tensor:
    """Program (block, key head, lane). If the block has no place for partial sums, lane 0 walks all
    its splits; otherwise each lane takes every n-th split, n being the number of lanes.
    """
    block = _block(step, blocks, size)
    lane = tl.program_id(2)
    there = block.position >= 0
    q = _rows(step.q, block.index, there, size.k_dim, size.k_width)
    total = Sums(
        tl.full([size.m, size.v_width], 0.0, tl.float32),
        tl.full([size.m], -float("inf"), tl.float32),
        tl.full([size.m], 0.0, tl.float32),
    )
    whole = block.place < 0
    stride = tl.where(whole, 1, tl.num_programs(2))
    first = tl.where(whole & (lane > 0), block.splits, lane)
    if size.window:  # whole strides before the window are left out
        skipped = tl.maximum(block.first // _SPLIT - first, 0)
        first += tl.cdiv(skipped, stride) * stride
    for split in range(first, block.splits, stride):
        acc, peak, weight = _one_split(step, block, q, split, scale, size)
        part = Sums(acc, peak, weight)
        if whole:
            total = _merge(total, part)
        else:
            at = (
                block.place + block.member * block.splits + split
            ) * size.heads + block.index % size.heads
            _store(partials, at, block.position >= split * _SPLIT, part, size)
    if whole & (lane == 0):
        _write(step, block.index, there, total, size)


@triton.jit
def _combine(
    step: tl.tensor, rows: tl.tensor, partials: tl.tensor, size: tl.constexpr
) -> tl.tensor:
    """Program (entry of `RowColumns`, head): combine the splits of a row that were spread over
    programs.
    """
    number, head = tl.program_id(0), tl.program_id(1)
    row = tl.load(rows.row + number)
    position = tl.load(rows.position + number).to(tl.int32)
    place = tl.load(rows.place + number)
    if place >= 0:
        one = tl.arange(0, 1)
        d = tl.arange(0, size.v_width)
        total = Sums(
            tl.full([1, size.v_width], 0.0, tl.float32),
            tl.full([1], -float("inf"), tl.float32),
            tl.full([1], 0.0, tl.float32),
        )
        begin = _first_seen(step, position, size) // _SPLIT if size.window else 0
        for split in range(begin, position // _SPLIT + 1):
            at = one + (place + split) * size.heads + head
            values = tl.load(partials.acc + at[:, None] * size.v_width + d[None, :])
            part = Sums(values, tl.load(partials.peak + at), tl.load(partials.weight + at))
            total = _merge(total, part)
        index = one + row * size.heads + head
        _write(step, index, one >= 0, total, size)


class Launch(NamedTuple):
    """The arguments of one layer's launch of `_attend`, most of which `_combine` shares."""

    step: Step
    blocks: BlockColumns
    rows: RowColumns  # for `_combine` only
    partials: Sums
    scale: float
    size: Sizes
    grid: tuple[int, int, int]
    options: dict[str, int]


def attend_triton(
    q: torch.Tensor, layer: int, plan: AttentionPlan, attention: LayerAttention
) -> torch.Tensor:
    """Attention of one layer, float32, bfloat16 or float16, on CUDA; see `attention` for the
    shapes. Launches one or two kernels and does not wait for them.
    """
    launch = prepare(q, layer, plan, attention)
    step, blocks, rows, partials, scale, size, grid, options = launch
    _attend[grid](step, blocks, partials, scale, size, **options)
    if grid[2] > 1:
        _combine[(len(rows.row), size.heads)](step, rows, partials, size, num_warps=1)
    out: torch.Tensor = step.out
    return out


def prepare(q: torch.Tensor, layer: int, plan: AttentionPlan, attention: LayerAttention) -> Launch:
    """The launch for one layer. The first call of a step cuts its rows into blocks."""
    k, v = plan.pool.k[layer], plan.pool.v[layer]
    num_rows, heads, k_dim = q.shape
    _, kv_heads, v_dim = v.shape
    blocks = blocks_of(q, plan)
    entries = entries_per_block(heads // kv_heads, q.dtype)
    widths, has = (_width(k_dim), _width(v_dim)), _has(attention)
    size = Sizes(heads, kv_heads, k_dim, v_dim, entries, *widths, *has)
    out = q.new_empty(num_rows, heads, v_dim)
    partials = Sums(*blocks.sums.tensors(max(1, blocks.num_places * heads), size.v_width, q.device))
    return Launch(
        Step(q, k, v, out, plan.device_table, *_in_base_2(attention, q)),
        blocks.blocks,
        blocks.rows,
        partials,
        attention.scaling * _BITS * (2 / attention.softcap if attention.softcap else 1),
        size,
        (len(blocks.blocks.row), kv_heads, blocks.lanes),
        launch_options(size, q.dtype),
    )


def _has(attention: LayerAttention) -> tuple[bool, bool, bool, bool]:
    """Whether a layer has a window, a softcap, sinks, slopes."""
    a = attention
    return a.window is not None, bool(a.softcap), a.sinks is not None, a.slopes is not None


def _in_base_2(
    attention: LayerAttention, q: torch.Tensor
) -> tuple[int, float, torch.Tensor, torch.Tensor]:
    """What the last fields of a `Step` hold; something that is not read where a layer has none."""
    sinks, slopes = (
        q if each is None else (each.to(q.device) * _BITS).contiguous()
        for each in (attention.sinks, attention.slopes)
    )
    return attention.window or 0, (attention.softcap or 0.0) * _BITS, sinks, slopes


def blocks_of(q: torch.Tensor, plan: AttentionPlan) -> Blocks:
    """The step's blocks, computed at its first layer and kept in the plan."""
    if not isinstance(plan.prepared, Blocks):
        kv_heads = plan.pool.shape.kv_heads
        group = q.shape[1] // kv_heads
        cut = Cut.of(plan.spans, entries_per_block(group, q.dtype) // group, kv_heads)
        plan.prepared = Blocks.of(cut, kv_heads, q.device)
    return plan.prepared


def launch_options(size: Sizes, dtype: torch.dtype) -> dict[str, int]:
    """Warps and pipeline stages. They influence rounding, so they depend on the model's shapes and
    dtype only.
    """
    wide = max(size.k_width, size.v_width)
    if dtype == torch.float32:
        return {"num_warps": 4 if wide <= 64 else 8, "num_stages": 1}
    return {
        "num_warps": 4 if wide <= 64 and size.m <= 64 else 8,
        "num_stages": 2 if wide <= 128 else 1,
    }


def _width(dim: int) -> int:
    """The power of two that holds `dim`, and at least 16, the smallest size that a dot product
    takes.
    """
    return max(16, 1 << (dim - 1).bit_length())
