"""The weights in a model's folder: the names, shapes and dtypes in the headers of its safetensors
files, and the tensors themselves, read one at a time.

Nothing is mapped into memory: a tensor that was read belongs to the caller, and its memory is free
again when the caller drops it. Errors about damage name the file and the tensor. Knows nothing of
architectures.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open

from radixserve.checkpoints.folder_files import present
from radixserve.errors import ModelRefused, first_line
from radixserve.tensors.origins import JustRead, note_stored

_WHOLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_MOST_SHOWN = 120  # characters of a name
MOST_TENSORS = 300_000
"""That are read. The largest published checkpoints, of 384 experts a layer, hold 210,000; a header
may name a million, which transformers would compare with its own names for half a minute.
"""
FLOATS = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


class Tensor(Protocol):
    """A tensor of floats that is read when it is indexed."""

    @property
    def name(self) -> str:
        """Its name in the model, or in the file."""

    @property
    def file(self) -> Path:
        """Where it is stored, or most of it."""

    @property
    def holds_floats(self) -> bool:
        """Whether its values are floats of some kind."""

    def get_shape(self) -> list[int]:
        """The shape of the whole tensor."""

    def get_dtype(self) -> str:
        """The dtype as safetensors names it, such as "BF16"."""

    def __getitem__(self, key: Any) -> torch.Tensor:
        """Read the tensor, or the part that `key` selects."""


class StoredTensor:
    """A tensor in a file, which is read when it is indexed. transformers takes it for a tensor
    while it loads.
    """

    def __init__(self, name: str, file: Path, content: Any, on_read: Callable[[str], None]) -> None:
        self.name = name
        self.file = file
        self._content = content
        self._on_read = on_read

    def get_shape(self) -> list[int]:
        """The shape of the whole tensor."""
        return list(self._content.get_shape())

    def get_dtype(self) -> str:
        """The dtype as safetensors names it, such as "BF16"."""
        return str(self._content.get_dtype())

    @property
    def holds_floats(self) -> bool:
        """Whether its values are floats of some kind."""
        return self.get_dtype().startswith(("F", "BF"))

    def __getitem__(self, key: Any) -> torch.Tensor:
        """Read the tensor, or the part that `key` selects.

        Raises:
            ModelRefused: the file cannot be read, or the tensor holds NaN.
        """
        try:
            tensor: torch.Tensor = self._content[key]
        except (SafetensorError, OSError) as error:
            raise ModelRefused(f"Cannot read {self.file}: {first_line(error)}") from error
        if tensor.is_floating_point() and tensor.itemsize > 1 and tensor.numel():
            least = torch.aminmax(tensor).min  # NaN if any value is NaN
            if least.isnan():
                raise ModelRefused(f"{self.file} is damaged: {short(self.name)} holds NaN.")
        self._on_read(self.name)
        if key is ...:
            note_stored(tensor, self.name)
        return tensor.as_subclass(JustRead)

    def __deepcopy__(self, memo: dict[int, Any]) -> StoredTensor:
        return self


class Checkpoint:
    """The tensors in some safetensors files: `stored` as they lie there, and `tensors`, the weights
    of a model that they are, or that are made of them (`quantised_tensors`). Both by name.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        """Reads the headers.

        Raises:
            ModelRefused: a file is damaged, or there are more than MOST_TENSORS tensors; names it.
        """
        self.read: set[str] = set()
        self.stored: dict[str, StoredTensor] = {}
        for file in files:
            for name, content in _open(file, MOST_TENSORS - len(self.stored)):
                self._refuse_twice(name, file)
                self.stored[name] = StoredTensor(name, file, content, self.read.add)
        self.tensors: dict[str, Tensor] = dict(self.stored)

    def __len__(self) -> int:
        return len(self.stored)

    @property
    def is_quantised(self) -> bool:
        """Whether some weights are made of several tensors."""
        return self.tensors.keys() != self.stored.keys()

    def keep(self, names: Mapping[str, str]) -> None:
        """Keep only the tensors that `names` has, under the names that it gives them."""
        self.stored = {new: self.stored[old] for old, new in names.items()}
        self.tensors = dict(self.stored)

    @property
    def num_weights(self) -> int:
        """The number of values in all tensors together."""
        return sum(math.prod(each.get_shape()) for each in self.tensors.values())

    @property
    def dtype(self) -> torch.dtype:
        """The float dtype of most values; float32 if there is none that a model is served in."""
        counts = Counter[str]()
        for each in self.tensors.values():
            counts[each.get_dtype()] += math.prod(each.get_shape())
        return FLOATS[max(FLOATS, key=lambda name: counts[name])]

    @property
    def num_read(self) -> int:
        """How many tensors were read."""
        return len(self.read)

    def _refuse_twice(self, name: str, file: Path) -> None:
        if name in self.stored:
            raise ModelRefused(f"{self.stored[name].file} and {file} both hold {short(name)}.")


def files_of(folder: Path) -> list[Path]:
    """The only file, or the files that the index names."""
    if present(folder / _WHOLE):
        return [folder / _WHOLE]
    index = folder / _INDEX
    if not present(index):
        raise ModelRefused(f"There are no weights in {folder}: {_WHOLE} or {_INDEX} is needed.")
    files = [folder / name for name in _indexed(index)]
    missing = [file.name for file in files if not present(file)]
    if missing:
        raise ModelRefused(
            f"{len(missing)} of {len(files)} files of weights are missing in {folder}: "
            f"{listed(missing)}."
        )
    return files


def _indexed(index: Path) -> list[str]:
    """The names of the files in an index. They lie beside it: an index that names other files of
    the machine is refused before any is opened.
    """
    try:
        names = set(json.loads(index.read_text())["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelRefused(f"{index} is damaged: {first_line(error)}") from error
    wrong = [each for each in names if not _is_file_name(each)]
    if wrong:
        raise ModelRefused(
            f"{index} is damaged: it names {short(repr(wrong[0]))}, which is no safetensors file "
            "of its folder."
        )
    if not names:
        raise ModelRefused(f"{index} is damaged: it names no files.")
    return sorted(names)


def _is_file_name(name: object) -> bool:
    return (
        isinstance(name, str)
        and name.endswith(".safetensors")
        and len(name) < 256
        and not set("/\\\0") & set(name)
    )


def _open(file: Path, most: int) -> Iterator[tuple[str, Any]]:
    """The names and contents of the tensors in a file; it is refused if there are more than
    `most`.
    """
    try:
        opened: Any = safe_open(file, framework="pt", backend="pread")
        names = opened.keys()
        if len(names) > most:
            raise ModelRefused(
                f"{file} holds {len(names):,} tensors; of one model at most {MOST_TENSORS:,} are "
                "read."
            )
        for name in names:
            yield name, opened.get_slice(name)
    except (SafetensorError, OSError, MemoryError) as error:
        raise ModelRefused(f"{file} is damaged: {first_line(error)}") from error


def listed(names: list[str], most: int = 3) -> str:
    """The first `most` of `names`, and how many more there are, as text."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(map(short, names[:most])) + more


def short(name: str) -> str:
    """A name from a file, cut to a length that a sentence can hold."""
    return name if len(name) <= _MOST_SHOWN else f"{name[:_MOST_SHOWN]}..."
