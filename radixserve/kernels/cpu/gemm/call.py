"""GEMM: x [rows, in] times a weight [out, in], for any number of rows, with the same bits for a row
whatever the number of rows.

Which arithmetic multiplies a weight is chosen once, from the form in which it is packed (`panels`),
the type of the activations, and the level of the processor (`levels`); it does not depend on the
number of rows. Each output is a sum in one fixed order, so nothing that only concerns speed (how
many rows share a pass, which thread computes them, blocks, prefetching) can change a bit.

    activations  weight         AVX2, AVX512      AVX512_BF16       AMX
    float32      float32        multiply-adds     multiply-adds     multiply-adds
    float32      bfloat16       multiply-adds     multiply-adds     tiles, x in three parts
    float32      codes          multiply-adds     integers, x in three parts
    bfloat16     bfloat16       multiply-adds     products of pairs tiles
    bfloat16     codes          multiply-adds     integers, x in two parts

Sums are float32, those of integers int32; the result has the type of the activations, rounded once.
Knows nothing of layers.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch

from radixserve.kernels.arrays import Longs
from radixserve.kernels.cpu import levels, native, threads
from radixserve.kernels.cpu.amx import TILE_ROWS
from radixserve.kernels.cpu.block import Block
from radixserve.kernels.cpu.gemm import amx, integers, vectors
from radixserve.kernels.cpu.gemm.block import COUNTERS, MOST_RUNS, SEGMENT, GemmBlock
from radixserve.kernels.cpu.gemm.codes import Packing
from radixserve.kernels.cpu.gemm.formats import Format
from radixserve.kernels.cpu.gemm.lookup import Lookup
from radixserve.kernels.cpu.gemm.panel_products import WIDTH, Operands
from radixserve.kernels.cpu.gemm.panels import BFLOAT_BITS, Panels
from radixserve.kernels.cpu.levels import Level
from radixserve.kernels.step import AttentionPlan
from radixserve.tensors.origins import Origin, note, origin_of

FEW = 96
"""The most rows of a step that is recorded as a program. For so few rows, starting kernels one by
one would take a good part of the step's time.
"""

_ITEMS_PER_THREAD = 4  # at least, so that no thread waits long for the others
_ANY = 1 << 62  # rows
_memory = threading.local()


@dataclass(frozen=True, slots=True)
class Kernel:
    """A compiled kernel, and the form of x that it multiplies."""

    address: int
    most_rows: int  # of an item
    row_unit: int  # scratch memory has room for a multiple of so many rows of x
    number_bytes: int  # of a number of x in that form, with all its parts
    same_rows: int  # up to which the caller's x has that form already, unless inputs are padded
    own_rows: int = 0  # so few rows each thread brings into that form for itself

    @property
    def item_unit(self) -> int:
        """An item has a multiple of so many rows: pairs of tiles, where there are tiles."""
        return 1 if self.row_unit == 1 else 2 * self.row_unit


@cache
def _kernel(dtype: torch.dtype, bits: int, format: Format | None, level: Level) -> Kernel:
    """The kernel for activations of `dtype` and a weight of `bits`, perhaps in a format; see the
    top.
    """
    bfloat16, bfloat16_weight = dtype == torch.bfloat16, format is None and bits == BFLOAT_BITS
    if format is not None and level >= Level.AVX512_BF16:
        address = _compiled(integers.gemm_kernel, Level.AVX512_BF16, format, bfloat16)
        size = integers.number_bytes(format, bfloat16)
        return Kernel(address, integers.MOST_ROWS, 1, size, 0, integers.OWN_ROWS)
    if bfloat16_weight and level == Level.AMX:
        address = _compiled(amx.gemm_kernel, Level.AMX, bfloat16)
        size, same_rows = (2, TILE_ROWS) if bfloat16 else (2 * 3, 0)
        return Kernel(address, amx.SLICE, TILE_ROWS, size, same_rows)
    pairs = bfloat16_weight and bfloat16 and level == Level.AVX512_BF16
    least = Level.AVX512_BF16 if pairs else min(level, Level.AVX512)
    operands = Operands.PAIRS if pairs else Operands.WIDENED
    wide = level >= Level.AVX512
    address = _compiled(vectors.gemm_kernel, least, operands, wide, bfloat16, format)
    same_rows = _ANY if pairs or not bfloat16 else 0
    return Kernel(address, vectors.MOST_ROWS, 1, 2 if pairs else 4, same_rows)


def _compiled(make: Callable[..., Any], level: Level, *which: Any) -> int:
    """The address of a kernel, which is made and compiled once."""
    return native.address(make(*which), level)


class Gemm:
    """One packed weight [out, in], with its bias. Calls of one object must not overlap, because
    they share a block; calls of all objects in one thread share scratch memory.
    """

    def __init__(
        self,
        weight: torch.Tensor | Packing,
        bias: torch.Tensor | None = None,
        dtype: torch.dtype | None = None,
        level: Level | None = None,
    ) -> None:
        """`weight` [out, in] is float32 or bfloat16 and is copied, or packed as codes and is not.
        `bias` [out] is copied. `dtype` is that of the activations, float32 or bfloat16, by default
        that of the weight, of codes float32; `level` is by default the current one.

        Cost: see `Panels.of`; the first time ever a kernel is compiled, which takes seconds.
        """
        if isinstance(weight, Packing):
            self.panels, own = Panels.of_codes(weight), torch.float32
        else:
            self.panels, own = Panels.of(weight.detach()), weight.dtype
            note(self.panels.memory, origin_of(weight))
        self.dtype = own if dtype is None else dtype
        self.out_features, self.in_features = self.panels.shape
        self.bits = self.panels.bits
        self.bias = None if bias is None else bias.detach().float().clone()
        level = levels.current() if level is None else level
        self.kernel = _kernel(self.dtype, self.bits, self.panels.format, level)
        self._counter = np.zeros(COUNTERS, np.int64)
        self._block = self.new_block()
        self._block.counter = self._counter
        self._last_call: tuple[int, torch.dtype, int] | None = None

    @property
    def origin(self) -> Origin | None:
        """Where the weight comes from, if that is known."""
        return origin_of(self.panels.memory)

    @property
    def most_as_is(self) -> int:
        """Rows up to which the caller's x is multiplied where it lies."""
        return self.kernel.same_rows if self.panels.padded == self.in_features else 0

    def new_block(self) -> GemmBlock:
        """A block in which all is set that no rows decide. This object must outlive it."""
        return GemmBlock(
            weight=self.panels.memory,
            bias=self.bias,
            inputs=self.in_features,
            outputs=self.out_features,
            stride=self.out_features,
            padded=self.panels.padded,
            bits=self.bits,
            runs=min(torch.get_num_threads(), MOST_RUNS),
            barrier=threads.barrier(),
        )

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """The product [..., out] of x [..., in], rounded to the type of the activations."""
        return self._product(x, self.dtype)

    def unrounded(self, x: torch.Tensor) -> torch.Tensor:
        """The product [..., out] of x [..., in] in float32, whatever the activations' type."""
        return self._product(x, torch.float32)

    def _product(self, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        flat, block = x.reshape(-1, self.in_features).contiguous(), self._block
        rows = flat.shape[0]
        out = torch.empty(rows, self.out_features, dtype=dtype)
        call = rows, dtype, threading.get_ident()
        if call != self._last_call:  # calls like the one before have the same sizes and memory
            self._size(block, rows)
            block.set(out=None, unrounded=None)
            self._last_call = call
        if rows:
            block.x = flat
            setattr(block, "out" if dtype == self.dtype else "unrounded", out)
            self._counter[:] = 0
            threads.run(self.kernel.address, block.address, True)
        return out.view(*x.shape[:-1], self.out_features)

    def launch(
        self, x: torch.Tensor, out: torch.Tensor, counter: Longs, queue: Longs | None = None
    ) -> tuple[int, Block]:
        """A kernel's address, and the block with which all threads must call it to compute `out`
        [rows, out], of the activations' type or float32, from `x` [rows, in].

        `counter` [COUNTERS] must be zero before each call; `queue` is the prefetch queue of the
        next K/V, laid out as `QUEUE_LENGTH` says. They, `x`, `out` and this object must
        outlive the block.
        """
        block = self.new_block()
        self._size(block, len(x))
        block.set(x=x, counter=counter, queue=queue)
        setattr(block, "out" if out.dtype == self.dtype else "unrounded", out)
        return self.kernel.address, block

    def lookup(self) -> Lookup:
        """Gives rows of the weight, from the same memory."""
        return Lookup(self.panels, self.dtype)

    def _size(self, block: GemmBlock, rows: int) -> None:
        """Set what depends on the number of rows."""
        block.set(rows=rows, scratch=self._scratch(rows))
        block.slice, block.panels = _shares(max(rows, 1), self.panels, self.kernel)

    def _scratch(self, rows: int) -> torch.Tensor | None:
        """Memory for x in the form that the kernel multiplies, if it is in another one."""
        size = self.scratch_bytes(rows)
        return scratch_memory(size) if size else None

    def scratch_bytes(self, rows: int) -> int:
        """How much of that a call takes."""
        if rows <= self.most_as_is:
            return 0
        kernel = self.kernel
        whole = -(-rows // kernel.row_unit) * kernel.row_unit
        if rows <= kernel.own_rows:
            whole *= torch.get_num_threads()
        return whole * self.panels.padded * kernel.number_bytes


def scratch_memory(size: int) -> torch.Tensor:
    """This thread's scratch memory, at least `size` bytes. Kernels of one thread run one after the
    other, so they share it. It is never freed, because blocks hold its address, and it doubles when
    it grows: all of it together is less than four times the largest need.
    """
    kept: list[torch.Tensor] = _memory.__dict__.setdefault("scratch", [])
    if not kept or len(kept[-1]) < size:
        before = len(kept[-1]) if kept else 0
        kept.append(torch.empty(max(size, 2 * before), dtype=torch.uint8))
    return kept[-1]


def _shares(rows: int, panels: Panels, kernel: Kernel) -> tuple[int, int]:
    """Rows and panels of an item: as many as the kernel can take, but enough items for all
    threads. Several panels share an item only if their inputs are more than one block.
    """
    count = -(-panels.shape[0] // WIDTH)
    slices = -(-rows // kernel.most_rows)
    size = -(-rows // slices)
    if kernel.row_unit == 1:
        return size, 1
    size = -(-size // kernel.item_unit) * kernel.item_unit
    wanted = _ITEMS_PER_THREAD * torch.get_num_threads()
    most = amx.PANELS if panels.padded > amx.BLOCK_INPUTS else 1
    return size, max(1, min(most, count * slices // wanted))


def segments_of(plan: AttentionPlan, window: int | None = None) -> Longs:
    """Byte offsets of the segments of SEGMENT bytes that the attention of a layer with that window,
    or with none, reads of K, ascending, each once. They are those of V, too.
    """
    size = plan.pool.k.stride(1) * plan.pool.k.element_size()
    needed = np.zeros(plan.pool.num_slots * size // SEGMENT + 1, np.bool_)
    begin = plan.slots_within(window).astype(np.int64) * size
    for place in (*range(0, size, SEGMENT), size - 1):
        needed[(begin + place) // SEGMENT] = True
    return np.flatnonzero(needed) * SEGMENT
