"""The adapters of the rows of one step."""

from __future__ import annotations

import numpy as np
import torch

from radixserve.kernels.arrays import Longs
from radixserve.kernels.cpu import threads
from radixserve.kernels.cpu.low_rank import (
    INNER,
    LowRankBlock,
    add_products,
    groups_of,
    most_words,
)


class RowAdapters:
    """Which row has which adapter, and the scratch memory for their products."""

    def __init__(self, addresses: Longs, groups: Longs) -> None:
        """`addresses` [rows] are those of adapters, 0 for none; `groups` are these rows as the
        kernel reads them.
        """
        self._addresses, self._groups = addresses, groups
        self._inner = torch.empty(len(addresses) * INNER)

    @classmethod
    def of_addresses(cls, addresses: Longs) -> RowAdapters:
        """Of rows whose adapters have these addresses, 0 for none."""
        return cls(addresses, groups_of(addresses))

    @classmethod
    def empty(cls, most: int) -> RowAdapters:
        """Memory for up to `most` rows, which `copy` fills."""
        return cls(np.zeros(most, np.int64), np.zeros(most_words(most), np.int64))

    def copy(self, other: RowAdapters) -> None:
        """Let blocks that were made from this compute with the adapters of `other`."""
        self._groups[: len(other._groups)] = other._groups

    def of(self, rows: torch.Tensor) -> RowAdapters:
        """Those of some rows only."""
        return RowAdapters.of_addresses(self._addresses[rows.numpy()])

    def block(self, linear: int, x: torch.Tensor, out: torch.Tensor) -> LowRankBlock:
        """The arguments for adding to what a linear has computed of `x`. This object must outlive
        it.
        """
        return LowRankBlock(
            x=x,
            out=out,
            inner=self._inner,
            groups=self._groups,
            inputs=x.shape[1],
            outputs=out.shape[1],
            linear=linear,
            barrier=threads.barrier(),
        )

    def add(self, linear: int, x: torch.Tensor, out: torch.Tensor) -> None:
        """Add to what a linear has computed of `x`, now."""
        add_products(x, out, self._groups, linear, self._inner)
