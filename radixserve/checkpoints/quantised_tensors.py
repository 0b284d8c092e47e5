"""The quantised weights of a checkpoint of safetensors, each made of several tensors: codes,
scales, zero points. Each is taken for one tensor of floats, which is what it is read as; weights in
groups are also given as their codes (`grouped_weight`).

Where the tensors lie in a file is in `quantised_modules`, which makes these.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import torch

from radixserve.checkpoints.grouped_weight import GroupedWeight, packed
from radixserve.checkpoints.headers import StoredTensor, Tensor, short
from radixserve.checkpoints.quantisation import Form
from radixserve.errors import ModelRefused
from radixserve.kernels.cpu.gemm.codes import Packing
from radixserve.kernels.cpu.gemm.formats import UNIT, Format

_SCALE_BYTES = 8  # of a scale and a zero point, which becomes a float


@dataclass(eq=False)
class CodedTensor:
    """A weight in groups, as codes, scales and zero points: a tensor of floats where it is read as
    one, else `StoredCodes`.
    """

    name: str
    file: Path
    shape: tuple[int, int]
    form: Form
    scales: StoredTensor
    order: StoredTensor | None  # the group of each input
    read: Callable[[], tuple[torch.Tensor, torch.Tensor, torch.Tensor | int]]
    """Codes uint8 [outputs, inputs], scales and zero points [outputs, groups]."""

    _grouped: GroupedWeight | None = None  # between being asked for the format and being packed

    holds_floats: ClassVar[bool] = True

    def get_shape(self) -> list[int]:
        """The shape of the weight."""
        return list(self.shape)

    def get_dtype(self) -> str:
        """The dtype of the scales."""
        return self.scales.get_dtype()

    @property
    def group(self) -> int:
        """Inputs that share a scale."""
        return min(self.form.group or self.shape[1], self.shape[1])

    @property
    def num_groups(self) -> int:
        """Groups of a row, of which the last one may have fewer inputs."""
        return -(-self.shape[1] // self.group)

    @cached_property
    def group_of_input(self) -> torch.Tensor | None:
        """The group of each input [inputs], int64; None if groups are neighbouring inputs.

        Raises:
            ModelRefused: the order is no order of whole groups.
        """
        if self.order is None:
            return None
        found = self.order[:].long()
        if bool((found == -1).all()):  # what is written where there is no order
            return None
        if not bool(((found >= 0) & (found < self.num_groups)).all()):
            raise self._damaged(
                f"{short(self.order.name)} names groups outside of the {self.num_groups}"
            )
        if torch.equal(found, self._neighbours()):
            return None
        if int(found.bincount().max()) > self.group:
            raise self._damaged(
                f"{short(self.order.name)} names groups of more than {self.group} inputs"
            )
        return found

    @property
    def keeps_codes(self) -> bool:
        """Whether kernels multiply it from its codes: groups are of whole units, in order."""
        return not self.group % UNIT and not self.shape[1] % UNIT and self.group_of_input is None

    def num_bytes(self) -> int:
        """Bytes of its codes and scales in memory, at most."""
        outputs, inputs = self.shape
        return outputs * (inputs * self.form.bits // 8 + self.num_groups * _SCALE_BYTES)

    @property
    def format(self) -> Format:
        """The format that it is packed in, which is seen from its zero points, so that it is read.

        Raises:
            ModelRefused: a file cannot be read, or scales are not finite.
        """
        self._grouped = self._grouped or self.grouped()
        return self._grouped.format

    def packed_with(self, others: Sequence[Self]) -> Packing:
        """Takes the memory of their codes, one a byte, once more."""
        weights = [each._taken() for each in (self, *others)]
        return packed(weights)

    def _taken(self) -> GroupedWeight:
        grouped, self._grouped = self._grouped, None
        return grouped or self.grouped()

    def grouped(self) -> GroupedWeight:
        """Its codes and scales.

        Raises:
            ModelRefused: a file cannot be read, or scales are not finite.
        """
        codes, scales, zeros = self.read()
        try:
            return GroupedWeight(codes, self.form.bits, self.group, scales, zeros)
        except ValueError as error:
            raise self._damaged(f"of {short(self.name)} {error}") from error

    def __getitem__(self, key: Any) -> torch.Tensor:
        """Its values, or those that `key` selects, float32.

        Raises:
            ModelRefused: a file cannot be read, or the values are not finite.
        """
        codes, scales, zeros = self.read()
        groups = self.group_of_input
        groups = self._neighbours() if groups is None else groups
        values = codes.float()
        values -= zeros.float()[:, groups] if isinstance(zeros, torch.Tensor) else zeros
        values *= scales.float()[:, groups]
        return _finite(values, self)[key]

    def __deepcopy__(self, memo: dict[int, Any]) -> CodedTensor:
        return self

    def _neighbours(self) -> torch.Tensor:
        """The group of each input where groups are neighbouring inputs."""
        return torch.arange(self.shape[1]) // self.group

    def _damaged(self, what: str) -> ModelRefused:
        return ModelRefused(f"{self.file} is damaged: {what}.")


@dataclass(frozen=True)
class WidenedTensor:
    """A weight that is read as floats: of FP8 or MXFP4."""

    name: str
    file: Path
    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], torch.Tensor]

    holds_floats = True

    def get_shape(self) -> list[int]:
        """The shape of the weight."""
        return list(self.shape)

    def get_dtype(self) -> str:
        """The dtype that most of such models are served in."""
        return self.dtype

    def __getitem__(self, key: Any) -> torch.Tensor:
        """Its values, or those that `key` selects.

        Raises:
            ModelRefused: a file cannot be read, or the values are not finite.
        """
        return _finite(self.read(), self)[key]

    def __deepcopy__(self, memo: dict[int, Any]) -> WidenedTensor:
        return self


def _finite(values: torch.Tensor, of: Tensor) -> torch.Tensor:
    if not values.isfinite().all():
        raise ModelRefused(f"{of.file} is damaged: {short(of.name)} holds NaN or infinity.")
    return values
