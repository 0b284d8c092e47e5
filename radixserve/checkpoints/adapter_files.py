"""An adapter's folder in PEFT's format: which modules there are factors of, from the header of its
file, and the factors themselves, read one pair at a time.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from radixserve.checkpoints.adapter_config import AdapterConfig, read_config
from radixserve.checkpoints.folder_files import present
from radixserve.checkpoints.headers import FLOATS, Checkpoint, StoredTensor, listed, short
from radixserve.errors import AdapterRefused, ModelRefused

WEIGHTS: Final = "adapter_model.safetensors"
_PREFIX: Final = "base_model.model."
_FIRST, _SECOND = ".lora_A.weight", ".lora_B.weight"


@dataclass(frozen=True, slots=True)
class Pair:
    """The two factors of one module, in the file."""

    module: str  # its name in the model
    first: StoredTensor  # [rank, inputs]
    second: StoredTensor  # [outputs, rank]
    scale: float

    @property
    def rank(self) -> int:
        return self.first.get_shape()[0]

    @property
    def inputs(self) -> int:
        return self.first.get_shape()[1]

    @property
    def outputs(self) -> int:
        return self.second.get_shape()[0]

    def read(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Both, float32 or bfloat16. Raises AdapterRefused if they are damaged."""
        try:
            return _served(self.first[:]), _served(self.second[:])
        except ModelRefused as error:
            raise AdapterRefused(str(error)) from error

    def digest(self, first: torch.Tensor, second: torch.Tensor) -> bytes:
        """Of all that decides what the module computes."""
        told = f"{self.module} {self.scale!r} {first.shape} {second.shape}"
        found = hashlib.sha256(told.encode())
        for each in (first, second):
            found.update(each.float().contiguous().numpy().data)
        return found.digest()


@dataclass(frozen=True, slots=True)
class OpenedAdapter:
    """The configuration of an adapter and the header of its file. Nothing large is in memory."""

    folder: Path
    config: AdapterConfig
    pairs: list[Pair]  # by the names of their modules

    @property
    def num_bytes(self) -> int:
        """The memory that its factors take at most."""
        shapes = [each.get_shape() for pair in self.pairs for each in (pair.first, pair.second)]
        return sum(4 * math.prod(shape) for shape in shapes)


def open_adapter(folder: Path) -> OpenedAdapter:
    """Read configuration and header.

    Raises:
        AdapterRefused: the folder is damaged, or the adapter is of a kind that is not served; one
            sentence says why.
    """
    config = read_config(folder)
    try:
        if not present(folder / WEIGHTS):
            raise AdapterRefused(f"There is no {WEIGHTS} in {folder}.")
        tensors = Checkpoint([folder / WEIGHTS]).stored
    except OSError as error:
        raise AdapterRefused(f"Cannot read {folder}: {error.strerror or error}.") from error
    except ModelRefused as error:
        raise AdapterRefused(str(error)) from error
    pairs = [_pair(module, each, config) for module, each in sorted(_modules(tensors).items())]
    if not pairs:
        raise AdapterRefused(f"{folder / WEIGHTS} holds no tensors.")
    return OpenedAdapter(folder, config, pairs)


def _modules(tensors: dict[str, StoredTensor]) -> dict[str, dict[str, StoredTensor]]:
    """The tensors of each module, by the end of their names."""
    found: dict[str, dict[str, StoredTensor]] = {}
    for name, tensor in tensors.items():
        end = next((each for each in (_FIRST, _SECOND) if name.endswith(each)), None)
        if end is None or not name.startswith(_PREFIX):
            raise AdapterRefused(
                f"{tensor.file} holds {short(name)}, which is no factor of a linear layer (lora_A, "
                "lora_B)."
            )
        if tensor.get_dtype() not in FLOATS or len(tensor.get_shape()) != 2:
            raise AdapterRefused(f"{tensor.file}: {short(name)} is no matrix of floats.")
        found.setdefault(name[len(_PREFIX) : -len(end)], {})[end] = tensor
    return found


def _pair(module: str, tensors: dict[str, StoredTensor], config: AdapterConfig) -> Pair:
    """Raises AdapterRefused unless both factors are there, and have the rank that was told."""
    file = next(iter(tensors.values())).file
    missing = [end for end in (_FIRST, _SECOND) if end not in tensors]
    if missing:
        raise AdapterRefused(f"{file} has no {short(module)}{missing[0]}.")
    first, second, rank = tensors[_FIRST], tensors[_SECOND], config.rank_of(module)
    if first.get_shape()[0] != rank or second.get_shape()[1] != rank:
        shapes = f"{first.get_shape()} and {second.get_shape()}"
        raise AdapterRefused(
            f"{file}: the factors of {short(module)} have the shapes {shapes}, which are not of "
            f"rank {rank}."
        )
    if not config.names(module):
        raise AdapterRefused(f"{file} changes {short(module)}, which its configuration does not.")
    return Pair(module, first, second, config.scale_of(module))


def refuse_missing(opened: OpenedAdapter, modules: list[str]) -> None:
    """Refuse an adapter that lacks some of `modules`, those of the model, although its
    configuration names them.
    """
    if opened.config.targets is None:
        return
    there = {pair.module for pair in opened.pairs}
    missing = [each for each in modules if opened.config.names(each) and each not in there]
    if missing:
        raise AdapterRefused(
            f"{opened.folder / WEIGHTS} lacks {len(missing):,} modules that its configuration "
            f"names: {listed(missing)}."
        )


def _served(tensor: torch.Tensor) -> Any:
    if not bool(tensor.isfinite().all()):
        raise AdapterRefused("A factor holds a number that is not finite.")
    return tensor.float() if tensor.dtype == torch.float16 else tensor
