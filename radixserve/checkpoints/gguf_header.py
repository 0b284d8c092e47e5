"""Reads the header of a GGUF file: what it says of the model, and where its tensors lie.

The file is not mapped, and of long lists, such as a vocabulary, only the length is kept. Everything
that the header claims is checked against the size of the file. Imports no torch.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from radixserve.errors import ModelRefused

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_STRING, _LIST, _BOOL = 8, 9, 7
_NUMBERS = {0: "B", 1: "b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "?"} | {
    10: "<Q",
    11: "<q",
    12: "<d",
}
_MOST_TEXT = 64 << 20  # bytes
_MOST_DIMENSIONS = 4
_MOST_TENSORS = 300_000
_ALIGNMENT = 32  # bytes, where the header does not say


@dataclass(frozen=True, slots=True)
class Kind:
    """A type of tensors: how many values a block has, and how many bytes."""

    name: str
    values: int
    size: int


KINDS = {
    0: Kind("F32", 1, 4),
    1: Kind("F16", 1, 2),
    2: Kind("Q4_0", 32, 18),
    3: Kind("Q4_1", 32, 20),
    6: Kind("Q5_0", 32, 22),
    7: Kind("Q5_1", 32, 24),
    8: Kind("Q8_0", 32, 34),
    10: Kind("Q2_K", 256, 84),
    11: Kind("Q3_K", 256, 110),
    12: Kind("Q4_K", 256, 144),
    13: Kind("Q5_K", 256, 176),
    14: Kind("Q6_K", 256, 210),
    30: Kind("BF16", 1, 2),
}
"""The types that are read, by their number in a file."""

_OTHERS = {
    9: "Q8_1", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL",
    21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64",
    29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """A tensor in a file."""

    name: str
    kind: Kind
    shape: tuple[int, ...]  # rows first, as torch has it
    offset: int  # of its first byte in the file

    @property
    def num_values(self) -> int:
        """Its number of values."""
        return math.prod(self.shape)

    @property
    def row_bytes(self) -> int:
        """Bytes of a row, of the last dimension."""
        return self.shape[-1] // self.kind.values * self.kind.size

    @property
    def num_bytes(self) -> int:
        """Bytes of all of it."""
        return self.num_values // self.kind.values * self.kind.size


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """The header of a file."""

    values: dict[str, Any]  # numbers and texts; of a list its length
    tensors: dict[str, GgufTensor]

    @property
    def architecture(self) -> str:
        """The name of the architecture, such as llama."""
        return str(self.values.get("general.architecture", ""))


def read_header(path: Path) -> GgufHeader:
    """The header of the file at `path`.

    Raises:
        ModelRefused: it is damaged, or holds tensors of a type that is not read; names it.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        try:
            return _Reader(file, path).header()
        except (struct.error, ValueError, KeyError, MemoryError) as error:
            raise ModelRefused(f"{path} is damaged: its header cannot be read.") from error


class _Reader:
    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file, self._path = file, path
        self._size = os.fstat(file.fileno()).st_size

    def header(self) -> GgufHeader:
        if self._file.read(4) != _MAGIC:
            raise ModelRefused(f"{self._path} is no GGUF file.")
        version = self._number("<I")
        if version not in _VERSIONS:
            raise ModelRefused(f"{self._path} has version {version} of GGUF, which is not read.")
        count, num_values = self._number("<Q"), self._number("<Q")
        if count > _MOST_TENSORS or num_values > _MOST_TENSORS:
            raise ValueError("too many")
        values = {self._text(): self._value() for _ in range(num_values)}
        tensors = [self._tensor() for _ in range(count)]
        alignment = int(values.get("general.alignment", _ALIGNMENT))
        begin = -(-self._file.tell() // alignment) * alignment
        found = {}
        for name, kind, shape, offset in tensors:
            each = GgufTensor(name, self._kind(name, kind), shape, begin + offset)
            self._check(each)
            found[name] = each
        return GgufHeader(values, found)

    def _number(self, code: str) -> Any:
        return struct.unpack(code, self._file.read(struct.calcsize(code)))[0]

    def _text(self) -> str:
        length = self._number("<Q")
        if length > min(_MOST_TEXT, self._size):
            raise ValueError("a text that is longer than the file")
        return self._file.read(length).decode(errors="replace")

    def _value(self) -> Any:
        return self._reader_of(self._number("<I"))()

    def _reader_of(self, kind: int) -> Callable[[], Any]:
        if kind == _STRING:
            return self._text
        if kind == _LIST:
            return self._skip_list
        code = _NUMBERS[kind]
        return lambda: self._number(code)

    def _skip_list(self) -> int:
        kind, length = self._number("<I"), int(self._number("<Q"))
        if length > self._size:
            raise ValueError("a list that is longer than the file")
        if kind in _NUMBERS:
            self._file.seek(length * struct.calcsize(_NUMBERS[kind]), os.SEEK_CUR)
        elif kind == _STRING:
            for _ in range(length):
                self._file.seek(self._number("<Q"), os.SEEK_CUR)
        else:
            raise ValueError("a list of lists")
        return length

    def _tensor(self) -> tuple[str, int, tuple[int, ...], int]:
        name, dimensions = self._text(), self._number("<I")
        if not 0 < dimensions <= _MOST_DIMENSIONS:
            raise ValueError("dimensions")
        shape = tuple(self._number("<Q") for _ in range(dimensions))
        return name, self._number("<I"), shape[::-1], self._number("<Q")

    def _kind(self, name: str, number: int) -> Kind:
        if number not in KINDS:
            told = _OTHERS.get(number, f"number {number}")
            raise ModelRefused(
                f"{self._path} holds tensors of type {told} ({name:.80s}), which is not supported."
            )
        return KINDS[number]

    def _check(self, tensor: GgufTensor) -> None:
        whole = tensor.shape[-1] % tensor.kind.values == 0 and tensor.num_values
        if not whole or tensor.offset + tensor.num_bytes > self._size:
            raise ModelRefused(f"{self._path} is damaged: it ends before {tensor.name:.80s} does.")
