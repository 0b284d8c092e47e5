"""Adds low-rank products to what linears have computed, for each row those of its own adapter:

    out[row] += second @ (scales * (first @ x[row]))       LoRA: Hu et al. 2021 (arXiv:2106.09685)

`first` [rank, inputs] and `second` [outputs, rank] are an adapter's for one linear. A linear that
is fused of several parts, as that of q, k and v is, has the first factors of all parts one below
the other, and each part's second factor adds to its own outputs.

A row's bits depend on the row and its adapter alone. A number of `first @ x` is a sum over chains
of CHAIN inputs, chain added to chain, each chain a sum of 16 lanes; an output adds one chain over
the rank. Everything is float32, and `out` is rounded once more. Rows without an adapter are not
touched.

    packed first     [chains][rank / 4][vectors of a chain][4][16], the rank in whole fours
    packed second    [panels of 64 outputs][rank][64], for each part

Both lie in the order in which they are read. They are float32, or bfloat16 where that holds every
value.
"""

# mypy: disable-error-code="untyped-decorator"
# (numba has no type hints)

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from radixserve.kernels.arrays import Longs
from radixserve.kernels.cpu import native, pages, threads
from radixserve.kernels.cpu.block import Block, Float32s, Int, Int64s, Numbers
from radixserve.kernels.cpu.compile import (
    LINE_BYTES,
    Intrinsic,
    compiled,
    floats_at,
    halves_at,
    longs_at,
    on_stack,
)
from radixserve.kernels.cpu.gemm.block import wait_for_others
from radixserve.kernels.cpu.gemm.panels import fits_bfloat16
from radixserve.kernels.cpu.products import store_all, vectors_at, zero_sums
from radixserve.kernels.cpu.vector import (
    LANES,
    add_atomically,
    element_at,
    load_numbers,
    mask_of,
    number_at,
    put_number,
    splat,
    store_numbers,
    vector_fma,
)

MOST_RANK: Final = 512
"""The largest rank of one part of a linear."""

MOST_PARTS: Final = 3
"""Parts that a linear may be fused of."""

CHAIN: Final = 512
"""Inputs that are summed in one chain."""

INNER: Final = MOST_PARTS * MOST_RANK
"""Numbers between the two products of a row, at most."""

COUNTERS: Final = 2
"""Length of a counter: items of the first and of the second product that threads have taken."""

_TOGETHER = 4  # rows of one adapter that share a pass, and ranks that are summed side by side
_PANEL = 4 * LANES  # outputs
_FLOAT_BITS, _BFLOAT_BITS = 32, 16
_ZERO = np.float32(0)

# A linear's words in the table of an adapter, as int64.
_RANK, _BITS, _FIRST, _SCALES, _PARTS, _HEAD = 0, 1, 2, 3, 4, 5
_BEGIN, _DEPTH, _OUTPUT, _OUTPUTS, _SECOND, _PART = 0, 1, 2, 3, 4, 5  # those of a part

TABLE_WORDS: Final = _HEAD + MOST_PARTS * _PART
"""Words of one linear in the table of an adapter."""

# The words of the groups of a step: how many there are and into how many items each is divided;
# then of each its place in `inner`, its number of rows, the address of its adapter's table, and the
# rows.
_NUM_GROUPS, _SLICES, _GROUPS = 0, 1, 2
_PLACE, _COUNT, _TABLE, _ROWS = 0, 1, 2, 3
_GROUP = _ROWS + _TOGETHER

_room_for_rows = on_stack(types.float32, _TOGETHER * CHAIN)
_room_for_panel = on_stack(types.float32, _TOGETHER * _PANEL)


class LowRankBlock(Block):
    """The arguments for one linear."""

    x: Numbers  # [rows * inputs]
    out: Numbers  # [rows * outputs], what the linear has computed
    inner: Float32s  # [rows * INNER], scratch memory
    groups: Int64s  # see `groups_of`
    counter: Int64s  # [COUNTERS], zero before each call
    inputs: Int
    outputs: Int
    linear: Int  # its number in the tables of adapters
    barrier: Int


# Python: adapters and steps.


@dataclass(frozen=True, slots=True)
class Part:
    """What an adapter adds to some outputs of a linear, from number `output` on."""

    first: torch.Tensor  # [rank, inputs]
    second: torch.Tensor  # [outputs, rank]
    scale: float
    output: int = 0


class PackedAdapter:
    """The factors of one adapter as the kernel reads them, in one piece of memory."""

    def __init__(self, num_linears: int, room: int) -> None:
        """`room` is the sum of `room_for` of all its parts."""
        self._table = np.zeros((num_linears, TABLE_WORDS), np.int64)
        self._memory = pages.empty(room).view(torch.uint8)
        self._used = 0  # bytes

    @property
    def address(self) -> int:
        """Of its table. It is valid while this object lives."""
        return int(self._table.ctypes.data)

    @property
    def num_bytes(self) -> int:
        return self._table.nbytes + self._used

    def add(self, linear: int, parts: Sequence[Part]) -> None:
        """What the adapter adds to a linear: parts in the order of their outputs, float32 or
        bfloat16. Cost: reading and writing the factors some times.
        """
        whole = [each.float() for part in parts for each in (part.first, part.second)]
        dtype = torch.bfloat16 if _fit_bfloat16(whole) else torch.float32
        first = [_in_fours(part.first.float()) for part in parts]
        scales = [torch.full((len(a),), part.scale) for a, part in zip(first, parts, strict=True)]
        words, begin = self._table[linear], 0
        for place, part in enumerate(parts):
            second = self._keep(_packed_second(part.second.float()).to(dtype))
            at = _HEAD + place * _PART
            sizes = begin, len(part.first), part.output, len(part.second)
            words[at : at + _PART] = *sizes, second
            begin += len(first[place])
        words[_RANK], words[_BITS], words[_PARTS] = begin, 8 * dtype.itemsize, len(parts)
        words[_FIRST] = self._keep(_packed_first(torch.cat(first)).to(dtype))
        words[_SCALES] = self._keep(torch.cat(scales))

    def _keep(self, tensor: torch.Tensor) -> int:
        """The address of a copy of a tensor, which lives as long as this."""
        size = tensor.nbytes
        place = self._memory[self._used : self._used + size]
        place.copy_(tensor.contiguous().view(torch.uint8))
        self._used += -(-size // LINE_BYTES) * LINE_BYTES
        return place.data_ptr()


def room_for(rank: int, inputs: int, outputs: int) -> int:
    """The most float32 that the packed factors of a part take, with their scales."""
    rank, inputs = (-(-size // unit) * unit for size, unit in ((rank, _TOGETHER), (inputs, LANES)))
    outputs = -(-outputs // _PANEL) * _PANEL
    return rank * (inputs + outputs + 1) + 3 * LINE_BYTES // 4


def _fit_bfloat16(tensors: Sequence[torch.Tensor]) -> bool:
    return all(fits_bfloat16(each) for each in tensors)


def _in_fours(first: torch.Tensor) -> torch.Tensor:
    return F.pad(first, (0, 0, 0, -len(first) % _TOGETHER))


def _packed_first(stacked: torch.Tensor) -> torch.Tensor:
    """[rank, inputs] in the order of `packed first`, flat."""
    padded = F.pad(stacked, (0, -stacked.shape[1] % LANES))
    chains = torch.split(padded, CHAIN, 1)
    tiles = [each.view(len(each) // _TOGETHER, _TOGETHER, -1, LANES) for each in chains]
    return torch.cat([each.transpose(1, 2).reshape(-1) for each in tiles])


def _packed_second(second: torch.Tensor) -> torch.Tensor:
    """[outputs, rank] in the order of `packed second`, flat."""
    padded = F.pad(second, (0, 0, 0, -len(second) % _PANEL))
    return padded.view(-1, _PANEL, second.shape[1]).transpose(1, 2).reshape(-1)


def groups_of(addresses: Longs) -> Longs:
    """The rows of a step in groups of one adapter each, as the kernel reads them, from the address
    of each row's adapter, 0 for none.
    """
    order = np.argsort(addresses, kind="stable")
    order = order[addresses[order] != 0]
    edges = np.flatnonzero(np.diff(addresses[order], prepend=0, append=0))
    words: list[int] = []
    for begin, end in itertools.pairwise(edges.tolist()):
        for first in range(begin, end, _TOGETHER):
            rows = order[first : min(first + _TOGETHER, end)].tolist()
            address = int(addresses[rows[0]])
            words += first, len(rows), address, *rows, *[0] * (_TOGETHER - len(rows))
    num_groups = len(words) // _GROUP
    slices = -(-torch.get_num_threads() // max(1, num_groups))
    return np.array([num_groups, slices, *words], np.int64)


def most_words(rows: int) -> int:
    """The largest length of the groups of a step with that many rows."""
    return _GROUPS + _GROUP * rows


def add_products(
    x: torch.Tensor, out: torch.Tensor, groups: Longs, linear: int, inner: torch.Tensor
) -> None:
    """Add to `out` [rows, outputs] what the adapters of `groups` add for the rows of `x` [rows,
    inputs], both of the same type. `inner` is scratch memory of INNER float32 for each row.
    """
    counter = np.zeros(COUNTERS, np.int64)
    block = LowRankBlock(
        x=x,
        out=out,
        inner=inner,
        groups=groups,
        counter=counter,
        inputs=x.shape[1],
        outputs=out.shape[1],
        linear=linear,
        barrier=threads.barrier(),
    )
    threads.run(native.address(low_rank_kernel(x.dtype)), block.address, True)


# Compiled code.


def _sums_of_products(rows: int, fours: int) -> Intrinsic:
    """Generates inner[to + r * INNER + j] += x[r * CHAIN :] @ w[j] for `rows` rows and some times 4
    ranks j. The vectors of 4 ranks lie side by side from element `at` of `weight` on, and behind
    them those of the next 4.
    """

    @intrinsic
    def multiply(
        typingctx: Any, x: Any, weight: Any, at: Any, vectors: Any, inner: Any, to: Any
    ) -> Any:
        def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
            kinds, index = signature.args, args[2].type
            x_data = element_at(context, builder, kinds[0], args[0], ir.Constant(index, 0))
            w_data = element_at(context, builder, kinds[1], args[1], args[2])
            target = element_at(context, builder, kinds[4], args[4], args[5])
            sums = [zero_sums(builder, fours * _TOGETHER) for _ in range(rows)]
            size = builder.mul(args[3], ir.Constant(index, _TOGETHER * LANES))
            with cgutils.for_range(builder, args[3]) as loop:
                here = builder.mul(loop.index, ir.Constant(index, _TOGETHER * LANES))
                factors = []
                for _ in range(fours):
                    for j in range(_TOGETHER):
                        place = builder.add(here, ir.Constant(index, j * LANES))
                        factors.append(load_numbers(builder, builder.gep(w_data, [place])))
                    here = builder.add(here, size)
                column = builder.mul(loop.index, ir.Constant(index, LANES))
                for r in range(rows):
                    place = builder.add(column, ir.Constant(index, r * CHAIN))
                    (values,) = vectors_at(builder, builder.gep(x_data, [place]), 1)
                    for factor, total in zip(factors, sums[r], strict=True):
                        builder.store(
                            vector_fma(builder, values, factor, builder.load(total)), total
                        )
            for r in range(rows):
                for j, total in enumerate(sums[r]):
                    place = builder.gep(target, [ir.Constant(index, r * INNER + j)])
                    total = _lane_sum(builder, builder.load(total))
                    builder.store(builder.fadd(builder.load(place), total), place)
            return context.get_dummy_value()

        n = types.intp
        return types.void(x, weight, n, n, inner, n), generate

    return multiply  # type: ignore[no-any-return]


def _lane_sum(builder: ir.IRBuilder, vector: Any) -> Any:
    """The sum of a vector's lanes: the upper half onto the lower one until one is left."""
    width = LANES // 2
    while width:
        mask = mask_of([(i + width) % LANES for i in range(LANES)])
        vector = builder.fadd(vector, builder.shuffle_vector(vector, vector, mask))
        width //= 2
    return builder.extract_element(vector, ir.Constant(ir.IntType(32), 0))


def _panel_of_outputs(rows: int) -> Intrinsic:
    """Generates panel[r * 64 : ...] = sum over k of inner[at + r * INNER + k] * w[k], for `rows`
    rows and `depth` ranks k, each with 64 numbers from element `to` of `weight` on.
    """

    @intrinsic
    def multiply(
        typingctx: Any, inner: Any, at: Any, weight: Any, to: Any, depth: Any, panel: Any
    ) -> Any:
        def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
            kinds, index = signature.args, args[1].type
            t_data = element_at(context, builder, kinds[0], args[0], args[1])
            w_data = element_at(context, builder, kinds[2], args[2], args[3])
            target = element_at(context, builder, kinds[5], args[5], ir.Constant(index, 0))
            sums = [zero_sums(builder, _PANEL // LANES) for _ in range(rows)]
            with cgutils.for_range(builder, args[4]) as loop:
                here = builder.mul(loop.index, ir.Constant(index, _PANEL))
                columns = [
                    load_numbers(
                        builder, builder.gep(w_data, [builder.add(here, ir.Constant(index, v))])
                    )
                    for v in range(0, _PANEL, LANES)
                ]
                for r in range(rows):
                    place = builder.add(loop.index, ir.Constant(index, r * INNER))
                    factor = splat(builder, builder.load(builder.gep(t_data, [place])))
                    for column, total in zip(columns, sums[r], strict=True):
                        builder.store(
                            vector_fma(builder, factor, column, builder.load(total)), total
                        )
            for r in range(rows):
                store_all(builder, sums[r], builder.gep(target, [ir.Constant(index, r * _PANEL)]))
            return context.get_dummy_value()

        n = types.intp
        return types.void(inner, n, weight, n, n, panel), generate

    return multiply  # type: ignore[no-any-return]


@intrinsic
def _add_whole_panel(typingctx: Any, panel: Any, at: Any, out: Any, to: Any) -> Any:
    """out[to : to + 64] += panel[at : at + 64], rounded if out is bfloat16."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        source = element_at(context, builder, signature.args[0], args[0], args[1])
        target = element_at(context, builder, signature.args[2], args[2], args[3])
        for v, vector in enumerate(vectors_at(builder, source, _PANEL // LANES)):
            place = builder.gep(target, [ir.Constant(args[3].type, v * LANES)])
            total = builder.fadd(load_numbers(builder, place), vector)
            store_numbers(builder, total, place)
        return context.get_dummy_value()

    n = types.intp
    return types.void(panel, n, out, n), generate


# A row alone is summed for 8 ranks at a time where there are so many: with 4 the processor would
# wait for each sum before it can go on with it.
_sum_one, _sum_one_twice = _sums_of_products(1, 1), _sums_of_products(1, 2)
_sum_all = _sums_of_products(_TOGETHER, 1)
_panel_one, _panel_all = _panel_of_outputs(1), _panel_of_outputs(_TOGETHER)


@compiled
def _take_rows(b: Any, group: Any, first: int, count: int, room: Any) -> None:
    """room[r * CHAIN : ...] = the `count` inputs from `first` on of each row of a group, with zeros
    up to a whole vector.
    """
    for r in range(group[_COUNT]):
        at = group[_ROWS + r] * b.inputs + first
        for i in range(count):
            room[r * CHAIN + i] = number_at(b.x, at + i)
        for i in range(count, (count + LANES - 1) // LANES * LANES):
            room[r * CHAIN + i] = _ZERO


@compiled
def _multiply_first(
    b: Any, weight: Any, rank: int, group: Any, begin: int, end: int, room: Any
) -> None:
    """inner = first @ x for the ranks [begin, end) * 4 of a group of rows."""
    rows = group[_COUNT]
    for r in range(rows):
        for j in range(begin * _TOGETHER, end * _TOGETHER):
            b.inner[(group[_PLACE] + r) * INNER + j] = _ZERO
    for first in range(0, b.inputs, CHAIN):
        count = min(CHAIN, b.inputs - first)
        vectors = (count + LANES - 1) // LANES
        _take_rows(b, group, first, count, room)
        four = begin
        while four < end:
            at = first * rank + four * vectors * _TOGETHER * LANES
            to = group[_PLACE] * INNER + four * _TOGETHER
            if rows == _TOGETHER:
                _sum_all(room, weight, at, vectors, b.inner, to)
                four += 1
            elif four + 1 < end:
                for r in range(rows):
                    _sum_one_twice(room[r * CHAIN :], weight, at, vectors, b.inner, to + r * INNER)
                four += 2
            else:
                for r in range(rows):
                    _sum_one(room[r * CHAIN :], weight, at, vectors, b.inner, to + r * INNER)
                four += 1


@compiled
def _first_product(b: Any, index: int, piece: int, room: Any) -> None:
    """One item of the first product: a piece of the ranks, for a group of rows."""
    group = b.groups[_GROUPS + index * _GROUP :]
    words = longs_at(group[_TABLE] + 8 * b.linear * TABLE_WORDS, TABLE_WORDS)
    rank, slices = words[_RANK], b.groups[_SLICES]
    fours = rank // _TOGETHER
    begin, end = fours * piece // slices, fours * (piece + 1) // slices
    if begin == end:
        return
    count = rank * (b.inputs + LANES)
    if words[_BITS] == _FLOAT_BITS:
        _multiply_first(b, floats_at(words[_FIRST], count), rank, group, begin, end, room)
    else:
        _multiply_first(b, halves_at(words[_FIRST], count), rank, group, begin, end, room)
    scales = floats_at(words[_SCALES], rank)
    for r in range(group[_COUNT]):
        for j in range(begin * _TOGETHER, end * _TOGETHER):
            b.inner[(group[_PLACE] + r) * INNER + j] *= scales[j]


@compiled
def _add_panel(b: Any, group: Any, output: int, count: int, panel: Any) -> None:
    """Add a panel's sums to `count` outputs of the rows of a group."""
    for r in range(group[_COUNT]):
        at = group[_ROWS + r] * b.outputs + output
        if count == _PANEL:
            _add_whole_panel(panel, r * _PANEL, b.out, at)
        else:
            for j in range(count):
                put_number(b.out, at + j, number_at(b.out, at + j) + panel[r * _PANEL + j])


@compiled
def _multiply_second(
    b: Any, weight: Any, part: Any, group: Any, begin: int, end: int, panel: Any
) -> None:
    """out += second @ inner for the panels [begin, end) of one part."""
    depth, rows = part[_DEPTH], group[_COUNT]
    at = group[_PLACE] * INNER + part[_BEGIN]
    for number in range(begin, end):
        to = number * depth * _PANEL
        if rows == _TOGETHER:
            _panel_all(b.inner, at, weight, to, depth, panel)
        else:
            for r in range(rows):
                _panel_one(b.inner, at + r * INNER, weight, to, depth, panel[r * _PANEL :])
        count = min(_PANEL, part[_OUTPUTS] - number * _PANEL)
        _add_panel(b, group, part[_OUTPUT] + number * _PANEL, count, panel)


@compiled
def _second_product(b: Any, index: int, piece: int, panel: Any) -> None:
    """One item of the second product: a piece of the panels of each part, for a group of rows."""
    group = b.groups[_GROUPS + index * _GROUP :]
    words = longs_at(group[_TABLE] + 8 * b.linear * TABLE_WORDS, TABLE_WORDS)
    slices = b.groups[_SLICES]
    for number in range(words[_PARTS]):
        part = words[_HEAD + number * _PART :]
        panels = (part[_OUTPUTS] + _PANEL - 1) // _PANEL
        begin, end = panels * piece // slices, panels * (piece + 1) // slices
        count = panels * part[_DEPTH] * _PANEL
        if words[_BITS] == _FLOAT_BITS:
            weight = floats_at(part[_SECOND], count)
            _multiply_second(b, weight, part, group, begin, end, panel)
        else:
            halves = halves_at(part[_SECOND], count)
            _multiply_second(b, halves, part, group, begin, end, panel)


@compiled
def _low_rank(b: Any) -> None:
    """Every thread: the whole kernel. A group that is one item is computed by one thread. If groups
    are divided, all threads wait between the two products, because an item of the second one reads
    what several items of the first have written.
    """
    slices = b.groups[_SLICES]
    items = b.groups[_NUM_GROUPS] * slices
    room, panel = _room_for_rows(), _room_for_panel()
    item = add_atomically(b.counter, 0, 1)
    while item < items:
        _first_product(b, item // slices, item % slices, room)
        if slices == 1:
            _second_product(b, item, 0, panel)
        item = add_atomically(b.counter, 0, 1)
    if slices == 1:
        return
    wait_for_others(b)
    item = add_atomically(b.counter, 1, 1)
    while item < items:
        _second_product(b, item // slices, item % slices, panel)
        item = add_atomically(b.counter, 1, 1)


@cache
def low_rank_kernel(dtype: torch.dtype) -> Callable[[Any], None]:
    """The kernel of `LowRankBlock` for activations of `dtype`. All threads must call it together,
    with the block's address. `native` compiles it.
    """
    read = LowRankBlock.reader(dtype)

    def low_rank(address: Any) -> None:
        _low_rank(read(address))

    low_rank.__name__ = f"low_rank_{dtype}".replace("torch.", "")
    return low_rank
