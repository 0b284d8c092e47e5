"""Multiplies a few rows by a packed weight at the speed of memory, with the same bits as oneDNN's
own operator.

With few rows oneDNN's operator reads packed weights at half the speed of memory, and a decode step
of few sequences spends nearly all its time on reading weights. With AVX-512 oneDNN packs a weight
[out, in] as panels of 64 outputs, each a row of 64 floats per input, and sums each output as chains
of fused multiply-adds over some hundreds of inputs, chain added to chain. This kernel does the same
on the same memory. Neither the layout nor the chains are documented: `FewRows.like` finds the
length of a chain by comparing bits, and gives up where none of the usual lengths agrees. A weight
that is kept as quantised weights (`quantised`) is read from those, and decoded block by block into
the cache: this gives the same numbers. More rows are computed in slices of at most FEW. Knows
nothing of layers.
"""

# mypy: disable-error-code="untyped-decorator"
# (numba has no type hints)

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numba import types

from radixserve.kernels.arrays import Longs
from radixserve.kernels.cpu import native, threads
from radixserve.kernels.cpu.compile import address_of, compiled, floats_at, longs_at, on_stack
from radixserve.kernels.cpu.lookup import Lookup
from radixserve.kernels.cpu.products import (
    WIDTH,
    panel_1,
    panel_2,
    panel_3,
    panel_4,
    panel_5,
    panel_6,
)
from radixserve.kernels.cpu.quantised import Codes
from radixserve.kernels.cpu.quantised_products import (
    GROUP,
    PREFETCH_BYTES,
    Records,
    coded_0,
    coded_1,
    coded_2,
    coded_3,
    coded_4,
    record_size,
)
from radixserve.kernels.cpu.vector import PANEL, add_atomically
from radixserve.kernels.step import AttentionPlan

FEW = 96
"""Rows up to which this kernel is the faster one, and the most that it multiplies in one pass."""

_CHAINS = (1024, 512, 256, 2048, 1 << 30)  # inputs
FITS = PANEL * 2 == WIDTH  # six rows of a panel in registers
_SIX = 6  # rows of x that one pass over a block serves, as many as fit into registers
_TESTED = (*range(1, 2 * _SIX + 1), FEW)  # every number of rows in a first and in a last group
_LAST = 4  # rows whose multiplication is interleaved with decoding the next block
_INPUTS = 64  # of a block: 64 inputs x 64 outputs x 4 bytes are half of the first-level cache
SEGMENT = _INPUTS * PREFETCH_BYTES
"""Bytes of the next K/V that are prefetched while one block is multiplied."""

_room_for_total, _room_for_sums = (on_stack(types.float32, FEW * WIDTH) for _ in range(2))
_room_for_block = on_stack(types.float32, _INPUTS * WIDTH)
_ZERO = np.float32(0)
_X, _WEIGHT, _BIAS, _OUT, _COUNTER, _ROWS, _IN, _OUTPUTS, _CHAIN, _HAS_BIAS = range(10)
_BITS, _STRIDE, _DEPTH, _QUEUE, _SLICE, _LENGTH = range(10, 16)

_TAKEN, _COUNT, _OFFSETS, _BASES = range(4)
QUEUE_LENGTH = 5
"""The prefetch queue, as int64: index of the next segment, number of segments, address of their
byte offsets (int64), base address of K, base address of V.
"""


class Room(NamedTuple):
    """The working memory of one thread, flat float32, on its stack."""

    total: Any  # [rows * 64]: sum of the finished chains
    sums: Any  # [rows * 64]: the chains that are being summed
    block: Any  # [inputs of a block * 64]: a block of the weight, decoded; unused for float32


class Item(NamedTuple):
    """What a thread computes at a time: one panel's outputs for a slice of the rows."""

    panel: Any
    row: Any  # the first one
    rows: Any


class FewRows:
    """One packed weight, multiplied by our kernel. One call at a time: calls share a counter."""

    def __init__(
        self,
        packed: torch.Tensor,
        bias: torch.Tensor | None,
        shape: tuple[int, int],
        chain: int,
        codes: Codes | None = None,
    ) -> None:
        """`shape` is (out, in); `chain` is the number of inputs that one chain sums. `packed` and
        `bias` must outlive this object, which holds only their addresses.

        With `codes`, which must encode exactly the values of `packed`, the kernel reads the codes,
        and `packed` is not needed any more.
        """
        self._counter = np.zeros(1, np.int64)
        self._block = np.zeros(_LENGTH, np.int64)
        self._block[_WEIGHT] = (
            torch.ops.mkldnn.data_ptr(packed) if codes is None else codes.records.data_ptr()
        )
        self._block[_COUNTER] = self._counter.ctypes.data
        self._block[[_OUTPUTS, _IN]] = shape
        self._block[_CHAIN] = chain
        # Floats of memory that GROUP inputs of a panel take.
        self._block[_STRIDE] = GROUP * WIDTH if codes is None else record_size(codes.bits)
        self._block[_BITS] = 0 if codes is None else codes.bits
        # Inputs per block; every block of a coded weight has the same number.
        self._block[_DEPTH] = _INPUTS if codes is None or shape[1] % _INPUTS == 0 else GROUP
        if bias is not None:
            self._block[[_BIAS, _HAS_BIAS]] = bias.data_ptr(), 1
        self._address = self._block.ctypes.data
        self._codes = codes
        self.chain = chain

    @classmethod
    def like(
        cls,
        packed: torch.Tensor,
        bias: torch.Tensor | None,
        shape: tuple[int, int],
        x: torch.Tensor,
        y: torch.Tensor,
    ) -> FewRows | None:
        """The kernel that gives exactly `y` [rows, out] for `x` [rows, in]; None if there is
        none.
        """
        if not FITS or shape[0] % WIDTH or not _is_plain(packed, shape):
            return None
        for chain in _CHAINS:
            kernel = cls(packed, bias, shape, chain)
            if all(torch.equal(kernel(x[:rows]), y[:rows]) for rows in _TESTED):
                return kernel
        return None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """The product [rows, out] of x [rows, in], which is contiguous."""
        out = torch.empty(len(x), int(self._block[_OUTPUTS]))
        self._point(self._block, x, out)
        self._counter[0] = 0
        threads.run(native.address(multiply), self._address, True)
        return out

    def lookup(self) -> Lookup:
        """Gives rows of the weight, from the same memory."""
        outputs, inputs = (int(size) for size in self._block[[_OUTPUTS, _IN]])
        return Lookup(int(self._block[_WEIGHT]), (outputs, inputs), int(self._block[_BITS]))

    def block(self, x: torch.Tensor, out: torch.Tensor, counter: Longs, queue: Longs) -> Longs:
        """The argument block with which `multiply` computes `out` from `x`. `counter` [1] must be
        zero before each call; `queue` is the prefetch queue, laid out as QUEUE_LENGTH says.
        """
        block = self._block.copy()
        block[_QUEUE] = queue.ctypes.data
        self._point(block, x, out)
        block[_COUNTER] = counter.ctypes.data
        return block

    def _point(self, block: Longs, x: torch.Tensor, out: torch.Tensor) -> None:
        assert x.is_contiguous(), "the kernel reads flat memory"
        block[_X], block[_OUT], block[_ROWS] = x.data_ptr(), out.data_ptr(), len(x)
        slices = -(-len(x) // FEW) or 1
        block[_SLICE] = -(-len(x) // slices) or 1


def _is_plain(packed: torch.Tensor, shape: tuple[int, int]) -> bool:
    """Whether the packed weight lies in memory without padding, at an address that torch tells."""
    try:
        return bool(torch.ops.mkldnn._nbytes(packed) == 4 * shape[0] * shape[1])
    except (AttributeError, RuntimeError):
        return False


@compiled
def _block(
    b: Any, x: Any, at: int, rows: int, weight: Any, wt: int, sums: Any, depth: int, ahead: int
) -> None:
    """Continue the chains of the first `rows` rows over the next `depth` inputs. Their weights
    begin at element `wt`; what lies `ahead` floats behind them is prefetched.
    """
    inputs = b[_IN]
    for row in range(0, rows, _SIX):
        left, here, to = rows - row, at + row * inputs, row * WIDTH
        if left >= 6:
            panel_6(x, here, inputs, weight, wt, sums, to, depth, ahead)
        elif left == 5:
            panel_5(x, here, inputs, weight, wt, sums, to, depth, ahead)
        elif left == 4:
            panel_4(x, here, inputs, weight, wt, sums, to, depth, ahead)
        elif left == 3:
            panel_3(x, here, inputs, weight, wt, sums, to, depth, ahead)
        elif left == 2:
            panel_2(x, here, inputs, weight, wt, sums, to, depth, ahead)
        else:
            panel_1(x, here, inputs, weight, wt, sums, to, depth, ahead)
        ahead = 0  # prefetched once; the other rows "prefetch" what they are reading


@compiled
def _records(b: Any, weight: Any, begin: int) -> Records:
    """The records of the block that begins at element `begin`; decoding them prefetches the block
    behind.
    """
    return Records(weight, begin, b[_DEPTH] // GROUP * b[_STRIDE], b[_BITS])


@compiled
def _next_segment(b: Any) -> Any:
    """The address of the next segment of K or V to prefetch. Without one it is that of x, which is
    in the cache already.
    """
    if b[_QUEUE] != 0:
        queue = longs_at(b[_QUEUE], QUEUE_LENGTH)
        taken, count = add_atomically(queue, _TAKEN, 1), queue[_COUNT]
        if taken < 2 * count:  # segments of K and of V take turns: even numbers K, odd numbers V
            offsets = longs_at(queue[_OFFSETS], count)
            return queue[_BASES + taken % 2] + offsets[taken // 2]
    return b[_X]


@compiled
def _coded_block(b: Any, x: Any, at: int, rows: int, block: Any, sums: Any, later: Records) -> None:
    """Continue the chains of the first `rows` rows over the inputs of `block`, then leave in
    `block` the next one, decoded from `later`. With 0 rows it decodes only.
    """
    inputs, depth, last, upcoming = b[_IN], b[_DEPTH], min(rows, _LAST), _next_segment(b)
    first = rows - last
    _block(b, x, at, first, block, 0, sums, depth, 0)
    here, to = at + first * inputs, first * WIDTH
    if last == 4:
        coded_4(x, here, inputs, block, sums, to, depth, later, upcoming)
    elif last == 3:
        coded_3(x, here, inputs, block, sums, to, depth, later, upcoming)
    elif last == 2:
        coded_2(x, here, inputs, block, sums, to, depth, later, upcoming)
    elif last == 1:
        coded_1(x, here, inputs, block, sums, to, depth, later, upcoming)
    else:
        coded_0(x, here, inputs, block, sums, to, depth, later, upcoming)


@compiled
def _multiply_panel(b: Any, x: Any, weight: Any, item: Item, following: int, room: Room) -> None:
    """room.total[rows, 64] = a slice of x @ one panel of the weight, block after block of inputs.

    Memory is read ahead: while one block is multiplied the next one is prefetched (float32), or
    decoded while the block behind that one is prefetched (codes). `following` is the panel that
    this thread multiplies next; its first block is read ahead beside the last block of this one.
    """
    rows, inputs, chain, stride, depth = item.rows, b[_IN], b[_CHAIN], b[_STRIDE], b[_DEPTH]
    total, sums, count = room.total, room.sums, rows * WIDTH
    total[:count], sums[:count] = _ZERO, _ZERO
    # Input i of a panel lies i * stride / GROUP floats behind its begin; blocks are whole groups.
    begin, after = item.panel * inputs * stride // GROUP, following * inputs * stride // GROUP
    for first in range(0, inputs, depth):
        stop, at = min(first + depth, inputs), item.row * inputs + first
        wt = begin + first * stride // GROUP
        later = begin + stop * stride // GROUP if stop < inputs else after
        if b[_BITS] == 0:
            _block(b, x, at, rows, weight, wt, sums, stop - first, later - wt)
        else:
            _coded_block(b, x, at, rows, room.block, sums, _records(b, weight, later))
        if stop == inputs or stop % chain == 0:
            for i in range(count):
                total[i] = sums[i] if stop <= chain else total[i] + sums[i]
                sums[i] = _ZERO


@compiled
def _write(b: Any, item: Item, total: Any, bias: Any, out: Any) -> None:
    """Write the outputs of one item, with the bias if there is one."""
    for row in range(item.rows):
        target = out[(item.row + row) * b[_OUTPUTS] + item.panel * WIDTH :][:WIDTH]
        source = total[row * WIDTH :][:WIDTH]
        for j in range(WIDTH):
            target[j] = source[j] + bias[item.panel * WIDTH + j] if b[_HAS_BIAS] else source[j]


@compiled
def _item(b: Any, slices: int, index: int) -> Item:
    """Number `index` of all items. Those of one panel follow each other, because its weights are
    in the cache then.
    """
    row = index % slices * b[_SLICE]
    return Item(index // slices, row, min(b[_SLICE], b[_ROWS] - row))


@compiled
def _work(b: Any) -> None:
    """One thread: take items until none is left."""
    rows, inputs, outputs = b[_ROWS], b[_IN], b[_OUTPUTS]
    x = floats_at(b[_X], rows * inputs)
    weight = floats_at(b[_WEIGHT], outputs * inputs * b[_STRIDE] // (GROUP * WIDTH))
    bias = floats_at(b[_BIAS], outputs)
    out = floats_at(b[_OUT], rows * outputs)
    counter = longs_at(b[_COUNTER], 1)
    room = Room(_room_for_total(), _room_for_sums(), _room_for_block())
    slices = (rows + b[_SLICE] - 1) // b[_SLICE]
    index, count = add_atomically(counter, 0, 1), outputs // WIDTH * slices
    if b[_BITS] != 0 and index < count:  # decode the very first block; no rows to multiply yet
        begin = index // slices * inputs * b[_STRIDE] // GROUP
        _coded_block(b, x, 0, 0, room.block, room.sums, _records(b, weight, begin))
    while index < count:
        item, following = _item(b, slices, index), add_atomically(counter, 0, 1)
        _multiply_panel(b, x, weight, item, min(following, count - 1) // slices, room)
        _write(b, item, room.total, bias, out)
        index = following


def multiply(address: Any) -> None:
    """Every thread calls this with the address of an argument block, as `FewRows.block` fills it.
    `native` compiles it.
    """
    _work(longs_at(address_of(address), _LENGTH))


def segments_of(plan: AttentionPlan) -> Longs:
    """Byte offsets of the segments of SEGMENT bytes that one layer's attention reads of K,
    ascending, each once. They are those of V, too.
    """
    size = plan.pool.k.stride(1) * plan.pool.k.element_size()
    needed = np.zeros(plan.pool.num_slots * size // SEGMENT + 1, np.bool_)
    begin = plan.table.astype(np.int64) * size
    needed[begin // SEGMENT] = True
    needed[(begin + size - 1) // SEGMENT] = True
    return np.flatnonzero(needed) * SEGMENT
