"""Packs codes into the records that kernels read (`formats`).

Whoever reads a quantised checkpoint makes `Codes` of some of its rows at a time and puts them into
a `Packing`, so that never more than these rows are there twice. Knows no checkpoints.
"""

# mypy: disable-error-code="untyped-decorator"
# (numba has no type hints)

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from radixserve.kernels.cpu import native, threads
from radixserve.kernels.cpu.block import Block, Float32s, Int, Int64s, UInt32s
from radixserve.kernels.cpu.compile import compiled, data_of, words_at
from radixserve.kernels.cpu.gemm.formats import QUAD, QUADS, UNIT, Format
from radixserve.kernels.cpu.gemm.panel_products import WIDTH
from radixserve.kernels.cpu.pages import empty
from radixserve.kernels.cpu.vector import add_atomically

_Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Codes:
    """Some rows of a weight in a format: what `Format` makes values of."""

    codes: _Bytes  # [rows, inputs]
    scales: npt.NDArray[Any]  # [rows, blocks], float16 or float32
    minimums: npt.NDArray[Any] | None = None  # the same, where the format has minimums
    scale_bytes: npt.NDArray[np.int8] | None = None  # [rows, groups], where it is nested
    minimum_bytes: npt.NDArray[np.int8] | None = None  # the same, where it has minimums, too

    def rows(self, begin: int, end: int) -> Codes:
        """The rows from number `begin` on, up to `end`."""

        def part(numbers: Any) -> Any:
            return None if numbers is None else numbers[begin:end]

        return Codes(**{field.name: part(getattr(self, field.name)) for field in fields(self)})

    @classmethod
    def joined(cls, parts: Sequence[Codes]) -> Codes:
        """The rows of all parts, which are in one format, one below the other."""
        if len(parts) == 1:
            return parts[0]

        def all_of(name: str) -> Any:
            numbers = [getattr(part, name) for part in parts]
            return None if numbers[0] is None else np.concatenate(numbers)

        return cls(**{field.name: all_of(field.name) for field in fields(cls)})

    @property
    def is_finite(self) -> bool:
        """Whether all of its scales are finite, so that its values are."""
        numbers = [self.scales] + ([] if self.minimums is None else [self.minimums])
        return all(bool(np.isfinite(each).all()) for each in numbers)


class PackBlock(Block):
    """The planes of whole panels of codes."""

    codes: UInt32s  # [outputs * inputs / 4], quads
    records: Float32s  # of all panels
    taken: Int64s  # [1]: how many panels threads have taken
    inputs: Int
    panels: Int


class Packing:
    """A weight [out, in] in a format that is filled with codes, some rows at a time."""

    def __init__(self, format: Format, shape: tuple[int, int]) -> None:
        """Outputs are padded to whole panels, with zeros.

        Raises:
            ValueError: the inputs are not whole blocks.
        """
        if shape[1] % format.block:
            raise ValueError(f"{shape[1]} inputs are not whole blocks of {format.block}")
        self.format, self.shape = format, shape
        self._panels = -(-shape[0] // WIDTH)
        self.memory = empty(self._panels * format.words(shape[1]))

    def put(self, first: int, rows: Codes) -> None:
        """Pack the rows from number `first` on, a multiple of 64. Their number must be one, too,
        unless they are the last ones.
        """
        missing = -len(rows.codes) % WIDTH
        assert first % WIDTH == 0, "whole panels"
        panels = (len(rows.codes) + missing) // WIDTH
        words = self.format.words(self.shape[1])
        part = self.memory[first // WIDTH * words :][: panels * words]
        self._put_codes(part, _padded(rows.codes, missing), panels)
        records = part.numpy().view(np.uint8).reshape(panels, -1, self.format.record_words * 4)
        at = 0
        for numbers in (rows.scales, rows.minimums, rows.scale_bytes, rows.minimum_bytes):
            if numbers is not None:
                each = _by_record(_padded(numbers, missing), records.shape[1])
                records[:, :, at : at + each.shape[2]] = each
                at += each.shape[2]
        assert at == 4 * self.format.codes_at, "all numbers of the format"

    def _put_codes(self, records: torch.Tensor, codes: _Bytes, panels: int) -> None:
        quads = np.ascontiguousarray(codes).reshape(-1).view(np.uint32)
        block = PackBlock(codes=quads)
        taken = np.zeros(1, np.int64)
        block.set(records=records, taken=taken, inputs=self.shape[1], panels=panels)
        threads.run(native.address(_packer(self.format)), block.address, panels > 1)


def _padded(rows: npt.NDArray[Any], missing: int) -> npt.NDArray[Any]:
    return np.pad(rows, ((0, missing), (0, 0))) if missing else rows


def _by_record(numbers: npt.NDArray[Any], records: int) -> _Bytes:
    """Numbers [rows, numbers of a row] as bytes [panels, records, bytes of a record]; those of 64
    rows lie one behind the other.
    """
    panels = len(numbers) // WIDTH
    split = numbers.reshape(panels, WIDTH, records, -1).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(split).view(np.uint8).reshape(panels, records, -1)


@cache
def _packer(format: Format) -> Callable[[Any], None]:
    """The kernel that writes the planes of a format. `native` compiles it."""
    planes, per_record, unit_words = format.planes, format.units, format.unit_words
    record_words, codes_at = format.record_words, format.codes_at

    @compiled
    def pack_quads(codes: Any, at: int, out: Any, to: int) -> None:
        """The planes of one unit of an output: words 64 apart."""
        position, word_of = 0, to
        for bits in planes:
            mask = np.uint32(((1 << bits) - 1) * 0x01010101)
            in_word = 8 // bits
            for k in range(bits):
                word = np.uint32(0)
                for s in range(in_word):
                    quad = codes[at + k * in_word + s] >> np.uint32(position)
                    word |= (quad & mask) << np.uint32(s * bits)
                out[word_of] = word
                word_of += WIDTH
            position += bits

    @compiled
    def pack_panel(b: Any, panel: int, out: Any) -> None:
        quads, units = b.inputs // QUAD, b.inputs // UNIT
        begin = panel * (units // per_record) * record_words
        for unit in range(units):
            record = begin + unit // per_record * record_words
            to = record + codes_at + unit % per_record * unit_words
            for lane in range(WIDTH):
                at = (panel * WIDTH + lane) * quads + unit * QUADS
                pack_quads(b.codes, at, out, to + lane)

    def pack(address: Any) -> None:
        """Every thread calls this with the address of a `PackBlock`: takes panels until none is
        left.
        """
        b = PackBlock.read(address)
        out = words_at(data_of(b.records), len(b.records))
        panel = add_atomically(b.taken, 0, 1)
        while panel < b.panels:
            pack_panel(b, panel, out)
            panel = add_atomically(b.taken, 0, 1)

    pack.__name__ = f"pack_{format.name}"
    return pack
