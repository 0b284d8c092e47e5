"""Reads weights of a checkpoint that was read before, straight from its safetensors files into
memory that is used again for each of them.

Fresh memory for every tensor would cost as much as reading, because the system fills it with zeros
page by page. Nothing is mapped: a file that shrinks is an error and no signal. What the headers
claim was checked when the model was first loaded (`checkpoints.headers`), and
`stored.identity` tells whether they are the same.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch

from radixserve.checkpoints.headers import FLOATS, files_of
from radixserve.errors import ModelRefused

_LENGTH_BYTES = 8
_MOST_HEADER_BYTES = 100_000_000  # the limit of safetensors
_METADATA = "__metadata__"


def headers(folder: Path) -> list[str | int | bytes]:
    """The name, size and header of each file of weights.

    Raises:
        ModelRefused: one of them is damaged.
        OSError: it cannot be read.
    """
    fields: list[str | int | bytes] = []
    for path in files_of(folder):
        with open(path, "rb") as file:
            fields += [path.name, os.fstat(file.fileno()).st_size, _header(file.fileno(), path)]
    return fields


Part = str | tuple[str, int]
"""A tensor by its name, or what it holds at a number of its first dimension."""


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
            ModelRefused: a header is damaged.
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

    @property
    def functions(self) -> dict[str, Callable[..., Any]]:
        """What is made of its tensors in a way of its own: nothing."""
        return {}

    def read(self, *parts: Part) -> torch.Tensor:
        """The tensors of these names, or parts of them, as one, joined along their first dimension.
        The next call overwrites it.

        Raises:
            ModelRefused: there is no such tensor of floats, they do not fit together, or a file
                ends too soon.
            OSError: a file cannot be read.
        """
        places = [self._place(part) for part in parts]
        first = places[0]
        if first.shape == () and len(parts) == 1:
            return self._bytes(places).view(first.dtype)[0]
        if any((each.dtype, each.shape[1:]) != (first.dtype, first.shape[1:]) for each in places):
            raise ModelRefused(f"The tensors {', '.join(map(str, parts))} do not fit together.")
        rows = sum(each.shape[0] for each in places)
        return self._bytes(places).view(first.dtype).view(rows, *first.shape[1:])

    def _bytes(self, places: Sequence[_Place]) -> torch.Tensor:
        """The bytes of tensors one behind the other, in the memory that is used again."""
        size = sum(each.size for each in places)
        if len(self._memory) < size:
            self._memory = torch.empty(size, dtype=torch.uint8)
        room: memoryview = self._memory.numpy().data
        for place in places:
            _fill(room[: place.size], place)
            room = room[place.size :]
        return self._memory[:size]

    def _place(self, part: Part) -> _Place:
        name, index = (part, None) if isinstance(part, str) else part
        if name not in self._places:
            raise ModelRefused(f"There is no tensor {name}.")
        place = self._places[name]
        if index is None:
            return place
        if len(place.shape) < 2 or not 0 <= index < place.shape[0]:
            raise ModelRefused(f"The tensor {name} has no part {index}.")
        size = place.size // place.shape[0]
        return replace(place, offset=place.offset + index * size, size=size, shape=place.shape[1:])


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
    """The tensors of floats that the header of a file names."""
    header, found = _header(file, path), {}
    try:
        for name, told in json.loads(header).items():
            if name != _METADATA:
                begin, end = told["data_offsets"]
                dtype, shape = FLOATS.get(told["dtype"]), tuple(told["shape"])
                if dtype is None:
                    continue
                if end - begin != math.prod(shape) * dtype.itemsize:
                    raise ValueError(name)
                offset = _LENGTH_BYTES + len(header) + begin
                found[name] = _Place(file, offset, end - begin, dtype, shape)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelRefused(f"{path} is not read without transformers: {error}") from error
    return found
