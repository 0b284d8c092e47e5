"""What all GEMM kernels share: their arguments, how threads divide the work, and how results are
written.
"""

# mypy: disable-error-code="untyped-decorator"
# (numba has no type hints)

from __future__ import annotations

from typing import Any, NamedTuple

from radixserve.kernels.cpu.block import Block, Float32s, Int, Int64s, Numbers, UInt8s
from radixserve.kernels.cpu.compile import call_address, compiled, data_of, longs_at
from radixserve.kernels.cpu.panel_products import WIDTH
from radixserve.kernels.cpu.vector import add_atomically, put_number

_TAKEN, _COUNT, _OFFSETS, _BASES = range(4)
QUEUE_LENGTH = 5
"""The prefetch queue, as int64: index of the next segment, number of segments, address of their
byte offsets (int64), base address of K, base address of V.
"""

ITEMS, PREPARED = range(2)
"""Places in a counter: items that threads have taken, rows of x that they have prepared."""

COUNTERS = 2
"""Length of a counter."""


class GemmBlock(Block):
    """out = x @ weight.T + bias."""

    x: Numbers  # [rows * inputs]
    out: Numbers  # [rows * outputs], or empty
    unrounded: Float32s  # [rows * outputs], where `out` is empty: the sums as they are
    weight: Float32s  # the panels, as words of 4 bytes whatever they hold
    bias: Float32s  # [outputs], or empty
    counter: Int64s  # [COUNTERS]; zero before each call
    queue: Int64s  # a prefetch queue, laid out as QUEUE_LENGTH says, or empty
    scratch: UInt8s  # x in the form that the kernel multiplies, or empty if x is in that form
    rows: Int
    inputs: Int
    outputs: Int
    padded: Int  # inputs in `weight`, with the zeros behind them
    bits: Int  # of a number of the weight: 32, 16 (bfloat16), 8 or 4 (codes)
    slice: Int  # rows of an item
    panels: Int  # of an item
    barrier: Int  # address of a function in which all threads wait for each other


class Item(NamedTuple):
    """What a thread computes at a time: the outputs of some panels for a slice of the rows."""

    panel: Any  # the first one
    panels: Any
    row: Any  # the first one
    rows: Any


@compiled
def take_item(b: Any) -> Any:
    """The number of the next item that no thread has taken; it may be that there is none."""
    return add_atomically(b.counter, ITEMS, 1)


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


@compiled
def write_row(b: Any, row: int, panel: int, sums: Any, at: int) -> None:
    """Write the 64 sums from element `at` on as a panel's outputs of a row, with the bias."""
    first = panel * WIDTH
    count = min(WIDTH, b.outputs - first)
    place = row * b.outputs + first
    for j in range(count if len(b.bias) else 0):
        sums[at + j] = sums[at + j] + b.bias[first + j]
    if len(b.unrounded):
        for j in range(count):
            b.unrounded[place + j] = sums[at + j]
    else:
        for j in range(count):
            put_number(b.out, place + j, sums[at + j])


@compiled
def next_segment(b: Any) -> Any:
    """The address of the next segment of K or V to prefetch. Without one it is that of the counter,
    which is in the cache already.
    """
    if len(b.queue):
        taken, count = add_atomically(b.queue, _TAKEN, 1), b.queue[_COUNT]
        if taken < 2 * count:  # segments of K and of V take turns: even numbers K, odd numbers V
            offsets = longs_at(b.queue[_OFFSETS], count)
            return b.queue[_BASES + taken % 2] + offsets[taken // 2]
    return data_of(b.counter)
