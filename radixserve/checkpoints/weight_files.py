"""Reads weights of a checkpoint that was read before, straight from its safetensors files into
memory that is used again for each of them.

Fresh memory for every tensor would cost as much as reading, because the system fills it with zeros
page by page. Nothing is mapped: a file that shrinks is an error and no signal. What the headers
claim was checked when the model was first loaded (`checkpoints.headers`), and `identity` tells
whether they are the same.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch

from radixserve.checkpoints.folder_files import SMALL_FILES, check_files
from radixserve.checkpoints.headers import FLOATS, files_of
from radixserve.errors import ModelRefused
from radixserve.store.format.run_file import digest_fields

_LENGTH_BYTES = 8
_MOST_HEADER_BYTES = 100_000_000  # the limit of safetensors
_METADATA = "__metadata__"


def identity(folder: Path) -> str:
    """A digest of everything in a model's folder that decides how it is loaded, except the values
    of its weights: the names of all files, the content of small ones, and the headers and sizes of
    the files with weights. Takes some milliseconds.

    Raises:
        ModelRefused: the folder is damaged.
        OSError: it cannot be read.
    """
    check_files(folder)
    fields: list[str | int | bytes] = [str(path) for path in sorted(os.listdir(folder))]
    for name in SMALL_FILES:
        if (folder / name).is_file():
            fields += [name, hashlib.sha256((folder / name).read_bytes()).hexdigest()]
    for path in files_of(folder):
        with open(path, "rb") as file:
            fields += [path.name, os.fstat(file.fileno()).st_size, _header(file.fileno(), path)]
    return digest_fields("model folder", *fields)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a tensor lies."""

    file: int  # its descriptor
    offset: int
    size: int
    dtype: torch.dtype
    shape: tuple[int, ...]


class WeightFiles:
    """The tensors of a checkpoint; to be used in a `with` block, at whose end its files are
    closed.
    """

    def __init__(self, folder: Path) -> None:
        """Reads the headers.

        Raises:
            ModelRefused: a header is damaged, or a tensor holds no floats that are served.
            OSError: a file cannot be read.
        """
        self._places: dict[str, _Place] = {}
        self._memory = torch.empty(0, dtype=torch.uint8)
        with ExitStack() as files:
            for path in files_of(folder):
                file = files.enter_context(open(path, "rb", buffering=0)).fileno()
                self._places |= _places(file, path)
            self._files = files.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._files.close()

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def read(self, *names: str) -> torch.Tensor:
        """The tensors of these names as one, joined along their first dimension. The next call
        overwrites it.

        Raises:
            ModelRefused: there is no such tensor, they do not fit together, or a file ends too
                soon.
            OSError: a file cannot be read.
        """
        missing = [name for name in names if name not in self._places]
        if missing:
            raise ModelRefused(f"There is no tensor {missing[0]}.")
        places = [self._places[name] for name in names]
        first = places[0]
        if any((each.dtype, each.shape[1:]) != (first.dtype, first.shape[1:]) for each in places):
            raise ModelRefused(f"The tensors {', '.join(names)} do not fit together.")
        size = sum(each.size for each in places)
        if len(self._memory) < size:
            self._memory = torch.empty(size, dtype=torch.uint8)
        room: memoryview = self._memory.numpy().data
        for place in places:
            _fill(room[: place.size], place)
            room = room[place.size :]
        rows = sum(each.shape[0] for each in places)
        return self._memory[:size].view(first.dtype).view(rows, *first.shape[1:])


def _fill(room: memoryview, place: _Place) -> None:
    offset = place.offset
    while room:
        count = os.preadv(place.file, [room], offset)
        if count == 0:
            raise ModelRefused("A file of weights ends too soon.")
        room, offset = room[count:], offset + count


def _header(file: int, path: Path) -> bytes:
    """The header of a file of weights."""
    length = int.from_bytes(os.pread(file, _LENGTH_BYTES, 0), "little")
    header = os.pread(file, length, _LENGTH_BYTES) if length <= _MOST_HEADER_BYTES else b""
    if len(header) != length or not length:
        raise ModelRefused(f"{path} is damaged: its header is cut.")
    return header


def _places(file: int, path: Path) -> dict[str, _Place]:
    """The tensors that the header of a file names."""
    header, found = _header(file, path), {}
    try:
        for name, told in json.loads(header).items():
            if name != _METADATA:
                begin, end = told["data_offsets"]
                dtype, shape = FLOATS[told["dtype"]], tuple(told["shape"])
                if not shape or end - begin != math.prod(shape) * dtype.itemsize:
                    raise ValueError(name)
                offset = _LENGTH_BYTES + len(header) + begin
                found[name] = _Place(file, offset, end - begin, dtype, shape)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelRefused(f"{path} is not read without transformers: {error}") from error
    return found
