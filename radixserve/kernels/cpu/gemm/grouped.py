"""GEMM with many weights of one shape, as those of experts are: rows lie grouped by weight, and
each weight multiplies the rows of its group.

    x       rows of weight 0 | rows of weight 1 | rows of weight 3 | ...
    starts  0                  3                  5   5              9   (weight 2 has no rows)

Each group is computed by the kernel of its weight (`call`). All threads go through the groups in
the same order, and on to the next one without waiting for each other. So every weight that has rows
is read once, whether these are few or many, and the bits of a row are those that `Gemm` gives it
alone. Knows nothing of how groups are chosen.
"""

# mypy: disable-error-code="untyped-decorator"
# (numba has no type hints)

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
import torch
from numba import types

from radixserve.kernels.arrays import Longs
from radixserve.kernels.cpu import native
from radixserve.kernels.cpu.block import Block, Elements, Int, Int64s, UInt8s, addresses
from radixserve.kernels.cpu.compile import call_address, compiled, data_of, longs_at, on_stack
from radixserve.kernels.cpu.gemm.block import COUNTERS, GemmBlock
from radixserve.kernels.cpu.gemm.call import Gemm, scratch_memory

_LENGTH = GemmBlock.length
_LONG = 8  # bytes
_X, _OUT, _COUNTER, _SCRATCH, _ROWS, _SLICE, _PANELS = (
    GemmBlock.fields[name].place
    for name in ("x", "out", "counter", "scratch", "rows", "slice", "panels")
)
_FORM = np.dtype(
    [
        ("kernel", np.int64),  # its address
        ("most_rows", np.int64),  # of an item
        ("item_unit", np.int64),  # an item has a multiple of so many rows
        ("row_unit", np.int64),  # and scratch memory has room for a multiple of so many
        ("row_bytes", np.int64),  # of x as the kernel multiplies it
        ("most_as_is", np.int64),  # rows up to which x has that form already
        ("own_rows", np.int64),  # so few rows each thread brings into that form for itself
    ]
)
"""What a group's call needs to know of its weight, besides the block."""

_room_for_block = on_stack(types.int64, _LENGTH)


class GroupedBlock(Block):
    """out = x @ weight.T + bias for each group of rows."""

    blocks: Int64s  # [weights]: addresses of blocks in which all is set that no rows decide
    forms: Annotated[Any, Elements.of(_FORM)]  # [weights]
    starts: Int64s  # [weights + 1]: the first row of each group, and the number of rows
    counters: Int64s  # [weights * COUNTERS]; zero before each call
    scratch: UInt8s  # for x in the form that kernels multiply
    x: Int  # address of the rows
    x_row: Int  # bytes of a row
    out: Int
    out_row: Int
    inputs: Int
    outputs: Int
    threads: Int


@compiled
def _rounded_up(number: int, unit: int) -> Any:
    return (number + unit - 1) // unit * unit


@compiled
def _fill(b: Any, group: int, block: Any, scratch: int) -> Any:
    """Make `block` the block for a group; returns how many bytes at the address `scratch` it
    takes.
    """
    form, first = b.forms[group], b.starts[group]
    rows = b.starts[group + 1] - first
    template = longs_at(b.blocks[group], _LENGTH)
    for i in range(_LENGTH):
        block[i] = template[i]
    block[_X], block[_X + 1] = b.x + first * b.x_row, rows * b.inputs
    block[_OUT], block[_OUT + 1] = b.out + first * b.out_row, rows * b.outputs
    block[_COUNTER] = data_of(b.counters) + group * COUNTERS * _LONG
    block[_COUNTER + 1] = COUNTERS
    slices = (rows + form.most_rows - 1) // form.most_rows
    size = _rounded_up((rows + slices - 1) // slices, form.item_unit)
    block[_ROWS], block[_SLICE], block[_PANELS] = rows, size, 1
    if rows <= form.most_as_is:
        return 0
    taken = _rounded_up(rows, form.row_unit) * form.row_bytes
    if rows <= form.own_rows:
        taken *= b.threads
    block[_SCRATCH], block[_SCRATCH + 1] = scratch, taken
    return taken


@compiled
def _multiply(b: Any) -> None:
    """One thread: its part of all groups."""
    block, scratch = _room_for_block(), data_of(b.scratch)
    for group in range(len(b.forms)):
        if b.starts[group + 1] > b.starts[group]:
            scratch += _fill(b, group, block, scratch)
            call_address(b.forms[group].kernel, data_of(block))


def multiply_groups(address: Any) -> None:
    """Every thread calls this with the address of a `GroupedBlock`. `native` compiles it."""
    _multiply(GroupedBlock.read(address))


class GroupedGemm:
    """Weights [out, in] of one shape, each with its bias. They may be packed in different forms.
    As those of a `Gemm`, calls of one object must not overlap.
    """

    def __init__(self, weights: Sequence[Gemm]) -> None:
        self.weights = tuple(weights)
        first = self.weights[0]
        self.out_features, self.in_features = first.out_features, first.in_features
        self._gemm_blocks = [each.new_block() for each in self.weights]
        self._addresses = addresses(self._gemm_blocks)
        self._forms = np.array([_form(each) for each in self.weights], _FORM)

    def __len__(self) -> int:
        """The number of weights."""
        return len(self.weights)

    def launch(
        self, x: torch.Tensor, out: torch.Tensor, starts: Longs, counters: Longs
    ) -> tuple[int, GroupedBlock]:
        """A kernel's address, and the block with which all threads must call it to compute `out`
        [rows, out] from `x` [rows, in], both of the activations' type, whose rows are grouped as
        `starts` [weights + 1] says then.

        `counters` [weights, COUNTERS] must be zero before each call. All of these must outlive the
        block, and this object, too.
        """
        return native.address(multiply_groups), GroupedBlock(
            blocks=self._addresses,
            forms=self._forms,
            starts=starts,
            counters=counters,
            scratch=scratch_memory(self._scratch_bytes(len(x))),
            x=x.data_ptr(),
            x_row=self.in_features * x.element_size(),
            out=out.data_ptr(),
            out_row=self.out_features * out.element_size(),
            inputs=self.in_features,
            outputs=self.out_features,
            threads=torch.get_num_threads(),
        )

    def _scratch_bytes(self, rows: int) -> int:
        """What so many rows take at most, however they are grouped."""
        groups = min(rows, len(self))
        whole = rows + groups * (int(self._forms["row_unit"].max()) - 1)
        whole += groups * int(self._forms["own_rows"].max()) * (torch.get_num_threads() - 1)
        return whole * int(self._forms["row_bytes"].max())


def _form(weight: Gemm) -> tuple[int, ...]:
    """The fields of `_FORM`."""
    kernel = weight.kernel
    return (
        kernel.address,
        kernel.most_rows,
        kernel.item_unit,
        kernel.row_unit,
        weight.panels.padded * kernel.number_bytes,
        weight.most_as_is,
        kernel.own_rows,
    )
