"""What a weight that is served as codes is until it is packed, whatever kind of file holds it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, Self

from radixserve.kernels.cpu.gemm.codes import Packing
from radixserve.kernels.cpu.gemm.formats import Format


class StoredCodes(Protocol):
    """A weight [outputs, inputs] that still lies in its file. The linear or embedding that it
    belongs to has it as attribute `stored`, and no memory for the weight.
    """

    @property
    def format(self) -> Format:
        """The format that it is packed in."""

    def packed_with(self, others: Sequence[Self]) -> Packing:
        """Read it, and other weights of the same format and number of inputs; packed, one below the
        other.

        Raises:
            ModelRefused: their file is damaged.
        """
