"""What all GEMM kernels share: their arguments, how threads divide the work, and how results are
written.
"""

# mypy: disable-error-code="untyped-decorator"
# (numba has no type hints)

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from radixserve.kernels.cpu.block import Block, Float32s, Int, Int64s, Numbers, UInt8s
from radixserve.kernels.cpu.compile import Intrinsic, call_address, compiled, floats_at, longs_at
from radixserve.kernels.cpu.gemm.panel_products import WIDTH
from radixserve.kernels.cpu.vector import (
    LANES,
    LINE,
    VECTOR,
    BFloat,
    add_atomically,
    element_at,
    load,
    prefetch,
    put_number,
    store_numbers,
)

_ZERO = np.float32(0)
_HALF = ir.VectorType(ir.IntType(16), LANES)
_ROUND = ir.FunctionType(ir.VectorType(BFloat(), LANES), [VECTOR])
_ROUND_NAME = "llvm.x86.avx512bf16.cvtneps2bf16.512"
_NEXT, _COUNT, _OFFSETS, _BASES = range(4)
QUEUE_LENGTH = 5
"""The prefetch queue, as int64: index of the next segment, number of segments, address of their
byte offsets (int64), base address of K, base address of V.
"""

SEGMENT = 8 << 10
"""Bytes of the next K/V that are prefetched at a time."""

MOST_RUNS = 8
"""Runs into which the items of a weight are divided, at most."""

PREPARED, ARRIVED, TAKEN = range(3)
"""Places in a counter: rows of x that threads have prepared, threads that have come for items, and
the items that threads have taken of the first run. Those of the other runs follow.
"""

PART_COUNTERS = TAKEN + MOST_RUNS
"""Length of a counter of one weight."""

MOST_PARTS = 3
"""The most weights that are multiplied as one."""

COUNTERS = MOST_PARTS * PART_COUNTERS
"""Length of a counter."""


class GemmBlock(Block):
    """out = x @ weight.T + bias."""

    x: Numbers  # [rows * inputs]
    out: Numbers  # [rows * stride], or empty
    unrounded: Float32s  # [rows * stride], where `out` is empty: the sums as they are
    weight: Float32s  # the panels, as words of 4 bytes whatever they hold
    bias: Float32s  # [outputs], or empty
    counter: Int64s  # [PART_COUNTERS] or more; zero before each call
    queue: Int64s  # a prefetch queue, laid out as QUEUE_LENGTH says, or empty
    scratch: UInt8s  # x in the form that the kernel multiplies, or empty if x is in that form
    rows: Int
    inputs: Int
    outputs: Int
    stride: Int  # outputs of a row of `out`, which may be more than those of this weight
    column: Int  # of `out` at which its own begin
    padded: Int  # inputs in `weight`, with the zeros behind them
    bits: Int  # of a number of the weight: 32, 16 (bfloat16), or those of a code
    slice: Int  # rows of an item
    panels: Int  # of an item
    runs: Int  # of items
    barrier: Int  # address of a function in which all threads wait for each other


class Item(NamedTuple):
    """What a thread computes at a time: the outputs of some panels for a slice of the rows."""

    panel: Any  # the first one
    panels: Any
    row: Any  # the first one
    rows: Any


@compiled
def own_run(b: Any) -> Any:
    """The run of items that a thread takes first. Each thread asks once."""
    return add_atomically(b.counter, ARRIVED, 1) % b.runs


@compiled
def take_item(b: Any, own: int) -> Any:
    """The number of the next item that no thread has taken, of the run `own` or, where nothing is
    left of that, of another one; `num_items` if none is left.

    Items of a run follow each other in memory. So each thread reads a weight from one end of its
    run to the other, as processors expect that which fetch ahead of what is read.
    """
    count = num_items(b)
    for i in range(own, own + b.runs):
        run = i % b.runs
        first, end = run * count // b.runs, (run + 1) * count // b.runs
        if b.counter[TAKEN + run] < end - first:
            item = first + add_atomically(b.counter, TAKEN + run, 1)
            if item < end:
                return item
    return count


@compiled
def num_items(b: Any) -> Any:
    """How many items there are."""
    return _num_slices(b) * _num_groups(b)


@compiled
def item_at(b: Any, index: int) -> Item:
    """Number `index` of all items. Those of the same panels follow each other, because their
    weights are in the cache then. Beyond the end it is the last one.
    """
    slices = _num_slices(b)
    index = min(index, slices * _num_groups(b) - 1)
    row, panel = index % slices * b.slice, index // slices * b.panels
    return Item(panel, min(b.panels, _num_panels(b) - panel), row, min(b.slice, b.rows - row))


@compiled
def _num_panels(b: Any) -> Any:
    return (b.outputs + WIDTH - 1) // WIDTH


@compiled
def _num_groups(b: Any) -> Any:
    return (_num_panels(b) + b.panels - 1) // b.panels


@compiled
def _num_slices(b: Any) -> Any:
    return (b.rows + b.slice - 1) // b.slice


@compiled
def wait_for_others(b: Any) -> None:
    """Wait until all threads have come here."""
    if b.barrier != 0:
        call_address(b.barrier, 0)  # takes no argument and ignores this one


def sums_writer(rounds: bool) -> Any:
    """A function for compiled code: write_sums(b, row, rows, first, width, sums, at). With `rounds`
    the processor has an instruction that rounds to bfloat16; it is four times as fast, and takes
    results below 1e-38 for zero, as the processor's products of bfloat16 do.

    It writes rows of sums, 64 apart from element `at` on, as the outputs [first, first + width) of
    rows, with the bias. `width` is 32 or 64; outputs that are padding are left out.
    """
    write_rows = _rows_writer(rounds)

    @compiled
    def write_sums(b: Any, row: int, rows: int, first: int, width: int, sums: Any, at: int) -> None:
        count, place = min(width, b.outputs - first), row * b.stride + b.column + first
        if count == width and len(b.bias) == 0:
            if len(b.unrounded):
                write_rows(sums, at, b.unrounded, place, b.stride, rows, width)
            else:
                write_rows(sums, at, b.out, place, b.stride, rows, width)
        else:
            for r in range(rows):
                for j in range(count):
                    bias = b.bias[first + j] if len(b.bias) else _ZERO
                    _put(b, place + r * b.stride + j, sums[at + r * WIDTH + j] + bias)

    return write_sums


@compiled
def _put(b: Any, place: int, value: Any) -> None:
    if len(b.unrounded):
        b.unrounded[place] = value
    else:
        put_number(b.out, place, value)


def _rows_writer(rounds: bool) -> Intrinsic:
    """Generates out[to + r * stride : ...] = sums[at + r * 64 : ...], `width` numbers of each row,
    rounded if out is bfloat16.
    """

    def put(builder: ir.IRBuilder, value: Any, target: Any) -> None:
        if rounds and target.type.pointee == _HALF.element:
            rounded = builder.call(
                cgutils.get_or_insert_function(builder.module, _ROUND, _ROUND_NAME), [value]
            )
            whole = builder.bitcast(rounded, _HALF)
            builder.store(whole, builder.bitcast(target, _HALF.as_pointer()), align=2)
        else:
            store_numbers(builder, value, target)

    @intrinsic
    def write(
        typingctx: Any, sums: Any, at: Any, out: Any, to: Any, stride: Any, rows: Any, width: Any
    ) -> Any:
        def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
            kinds, index = signature.args, args[1].type
            source = element_at(context, builder, kinds[0], args[0], args[1])
            target = element_at(context, builder, kinds[2], args[2], args[3])

            def put_half(r: Any, half: int) -> None:
                for v in range(half, half + WIDTH // 2, LANES):
                    column = ir.Constant(index, v)
                    place = builder.add(builder.mul(r, ir.Constant(index, WIDTH)), column)
                    further = builder.add(builder.mul(r, args[4]), column)
                    value = load(builder, builder.gep(source, [place]))
                    put(builder, value, builder.gep(target, [further]))

            with cgutils.for_range(builder, args[5]) as loop:
                put_half(loop.index, 0)
                whole = builder.icmp_signed("==", args[6], ir.Constant(index, WIDTH))
                with builder.if_then(whole):
                    put_half(loop.index, WIDTH // 2)
            return context.get_dummy_value()

        n = types.intp
        return types.void(sums, n, out, n, n, n, n), generate

    return write  # type: ignore[no-any-return]


@compiled
def prefetch_segment(b: Any) -> None:
    """Prefetch the next segment of K or V, if there is one."""
    if len(b.queue):
        taken, count = add_atomically(b.queue, _NEXT, 1), b.queue[_COUNT]
        if taken < 2 * count:  # segments of K and of V take turns: even numbers K, odd numbers V
            offsets = longs_at(b.queue[_OFFSETS], count)
            address = b.queue[_BASES + taken % 2] + offsets[taken // 2]
            segment = floats_at(address, SEGMENT // 4)
            # Every second line is enough: processors load its neighbour with it.
            for i in range(0, SEGMENT // 4, 2 * LINE):
                prefetch(segment, i)
