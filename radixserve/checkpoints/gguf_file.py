"""The weights of a GGUF file, which stays where it is: quantised ones become packed codes, the
others float tensors.

A folder of such a model has the file under the name GGUF_FILE beside configuration and tokenizer;
`convert` makes it. Needs no transformers; `gguf_model` fills a model of transformers.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch

from radixserve.checkpoints.gguf_blocks import FORMATS, codes_of
from radixserve.checkpoints.gguf_header import GgufTensor, read_header
from radixserve.checkpoints.weight_files import Part
from radixserve.errors import ModelRefused
from radixserve.kernels.cpu.gemm.codes import Packing
from radixserve.kernels.cpu.gemm.formats import Format
from radixserve.kernels.cpu.gemm.panel_products import WIDTH
from radixserve.tensors.origins import Origin, note, note_stored

GGUF_FILE = "model.gguf"
_UNPACKED = 4 << 20  # codes that are unpacked at a time
_PACKED_MORE = 1.06  # times the bytes of blocks, at most
_FLOATS: dict[str, tuple[Any, torch.dtype]] = {
    "F32": (np.float32, torch.float32),
    "F16": (np.float16, torch.float16),
    "BF16": (np.int16, torch.bfloat16),
}
"""How numpy reads types of floats, and what they are."""


_CODES = "codes"


class GgufFile:
    """The tensors in a model's GGUF file."""

    dtype = torch.float32  # of activations, where no setting says

    def __init__(self, folder: Path) -> None:
        """Reads the header.

        Raises:
            ModelRefused: the file is damaged, or has tensors of a type that is not supported.
        """
        self.path = folder / GGUF_FILE
        self.read_names: set[str] = set()
        self._header = read_header(self.path)
        self.tensors = self._header.tensors

    def __len__(self) -> int:
        return len(self.tensors)

    @property
    def architecture(self) -> str:
        """The name of the architecture, such as llama."""
        return self._header.architecture

    @property
    def num_weights(self) -> int:
        """The number of values in all tensors together."""
        return sum(each.num_values for each in self.tensors.values())

    @property
    def is_quantised(self) -> bool:
        """Whether some tensors are codes."""
        return any(each.kind.name in FORMATS for each in self.tensors.values())

    def num_bytes(self, dtype: torch.dtype) -> int:
        """Bytes that the weights take in the memory of a CPU, as codes where they are quantised."""
        return sum(_bytes_in_memory(each, dtype) for each in self.tensors.values())

    @property
    def num_read(self) -> int:
        """How many tensors were read."""
        return len(self.read_names)

    def identity(self) -> list[str | int | bytes]:
        """The size of the file, and its header."""
        with self.path.open("rb") as file:
            begin = min(each.offset for each in self.tensors.values())
            return [os.fstat(file.fileno()).st_size, file.read(begin)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        """As `WeightFiles`; no file stays open."""

    def rows(self, tensor: GgufTensor) -> npt.NDArray[np.uint8]:
        """The bytes of a tensor, [rows, bytes of a row]."""
        found = np.fromfile(self.path, np.uint8, tensor.num_bytes, offset=tensor.offset)
        if len(found) < tensor.num_bytes:
            raise ModelRefused(f"{self.path} is damaged: it ends before {tensor.name} does.")
        self.read_names.add(tensor.name)
        return found.reshape(-1, tensor.row_bytes)

    def floats(self, tensor: GgufTensor) -> torch.Tensor:
        """The values of a tensor, float32."""
        rows, kind = self.rows(tensor), tensor.kind.name
        if kind in _FLOATS:
            as_read, dtype = _FLOATS[kind]
            values = torch.from_numpy(rows.view(as_read)).view(dtype).float()
        else:
            from gguf import GGMLQuantizationType, quants  # hardly ever needed

            values = torch.from_numpy(quants.dequantize(rows, GGMLQuantizationType[kind]))
        found = values.view(tensor.shape)
        if not found.isfinite().all():
            raise ModelRefused(f"{self.path} is damaged: {tensor.name} holds NaN or infinity.")
        note_stored(found, tensor.name)
        return found

    def read(self, *parts: Part) -> torch.Tensor:
        """As `WeightFiles.read`: the values of tensors, float32."""
        found = [self._values(part) for part in parts]
        return found[0] if len(found) == 1 else torch.cat(found)

    def _values(self, part: Part) -> torch.Tensor:
        name, index = (part, None) if isinstance(part, str) else part
        values = self.floats(self._named(name))
        return values if index is None else values[index]

    def _named(self, name: str) -> GgufTensor:
        if name not in self.tensors:
            raise ModelRefused(f"There is no tensor {name}.")
        return self.tensors[name]

    @property
    def functions(self) -> dict[str, Callable[..., Any]]:
        """What is made of its tensors in a way of its own, by the names that origins have."""
        return {_CODES: self._codes}

    def _codes(self, parts: Sequence[tuple[str, int]]) -> Packing:
        first, *others = [GgufCodes(self, self._named(name), heads) for name, heads in parts]
        return first.packed_with(others)


def _bytes_in_memory(tensor: GgufTensor, dtype: torch.dtype) -> int:
    if tensor.kind.name in FORMATS:
        return int(tensor.num_bytes * _PACKED_MORE)
    return tensor.num_values * (2 if tensor.kind.name == "BF16" else dtype.itemsize)


@dataclass(frozen=True, slots=True)
class GgufCodes:
    """A quantised weight that still lies in its file (`StoredCodes`)."""

    file: GgufFile
    tensor: GgufTensor
    heads: int = 0  # whose rows are in another order there (`reordered`); 0: in the same

    @property
    def format(self) -> Format:
        """The format of its type."""
        return FORMATS[self.tensor.kind.name]

    def packed_with(self, others: Sequence[Self]) -> Packing:
        """Takes the memory of their bytes once more, and some MB."""
        kind, inputs = self.tensor.kind.name, self.tensor.shape[1]
        parts = [self, *others]
        found = [each._rows() for each in parts]
        rows = found[0] if len(found) == 1 else np.concatenate(found)
        packing = Packing(self.format, (len(rows), inputs))
        step = max(1, _UNPACKED // (inputs * WIDTH)) * WIDTH
        starts = range(0, len(rows), step)
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # packing is faster
            unpacked = pool.map(lambda first: codes_of(kind, rows[first : first + step]), starts)
            for first, codes in zip(starts, unpacked, strict=True):
                if not codes.is_finite:
                    raise ModelRefused(
                        f"{self.file.path} is damaged: {self.tensor.name} holds NaN or infinity."
                    )
                packing.put(first, codes)
        places = [(each.tensor.name, each.heads) for each in parts]
        names = tuple(each.tensor.name for each in parts)
        note(packing.memory, Origin(_CODES, (places,), reads=names))
        return packing

    def _rows(self) -> npt.NDArray[np.uint8]:
        """The bytes of its blocks, [rows, bytes], in the order that transformers gives to rows."""
        found = self.file.rows(self.tensor)
        if not self.heads:
            return found
        order = reordered(torch.arange(len(found)), self.heads)
        rows: npt.NDArray[np.uint8] = found[order.numpy()]  # copies whole rows
        return rows


def reordered(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """The rows of the weights of queries or keys, of which the pairs that are rotated together are
    neighbours in files of the Llama kind: of each head first the first ones of all pairs.
    """
    return rows.reshape(heads, -1, 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)
