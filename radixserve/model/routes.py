"""The routes of a layer with a mixture of experts: which experts compute the rows of a step. And
the arguments for the kernels that find them and use them (`kernels.cpu.experts`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from radixserve.kernels.arrays import Longs
from radixserve.kernels.cpu.experts import CombineBlock, GatherBlock, RouteBlock
from radixserve.kernels.cpu.gemm.block import COUNTERS
from radixserve.model.weights import Router

_GROUPED_LINEARS = 2  # of a layer


class Groups:
    """The groups of rows of the experts of a layer, as the kernels write and read them. Layers use
    it one after the other.
    """

    def __init__(self, experts: int) -> None:
        self.starts = np.zeros(experts + 1, np.int64)  # see `RouteBlock`
        self.counters = np.zeros((_GROUPED_LINEARS, experts, COUNTERS), np.int64)
        self._taken = 0

    def begin(self) -> None:
        """A layer begins, whose routing makes the counters zero."""
        self._taken = 0

    def next_counters(self) -> Longs:
        """Counters [experts, COUNTERS] for the next grouped linear of the layer."""
        counters: Longs = self.counters[self._taken]
        self._taken += 1
        return counters


@dataclass(frozen=True, slots=True)
class Routes:
    """Which experts compute the rows of a step."""

    chosen: torch.Tensor  # int64 [rows, choices], the experts
    weights: torch.Tensor  # float32 [rows, choices]
    places: torch.Tensor  # int64 [rows, choices], of rows in the groups of their experts
    groups: Groups


def route_block(router: Router, logits: torch.Tensor, routes: Routes) -> RouteBlock:
    """For filling `routes` from float32 logits [rows, experts]. Zeroes the counters of the layer's
    grouped linears.
    """
    routes.groups.begin()
    return RouteBlock(
        logits=logits,
        correction=router.correction,
        chosen=routes.chosen,
        weights=routes.weights,
        places=routes.places,
        starts=routes.groups.starts,
        zeroed=routes.groups.counters,
        rows=len(logits),
        experts=logits.shape[1],
        choices=router.choices,
        scores=router.scores,
        groups=router.groups,
        kept_groups=router.kept_groups,
        best_of_group=router.best_of_group,
        is_normalised=router.is_normalised,
        least_sum=router.least_sum,
        scale=router.scale,
    )


def gather_block(x: torch.Tensor, grouped: torch.Tensor, routes: Routes) -> GatherBlock:
    """For copying the rows of x [rows, width] into their groups [rows * choices, width]."""
    rows, width = x.shape
    return GatherBlock(x=x, grouped=grouped, places=routes.places, rows=rows, width=width)


def combine_block(results: torch.Tensor, routes: Routes, out: torch.Tensor) -> CombineBlock:
    """For adding grouped results [rows * choices, width] to `out` [rows, width]."""
    rows, width = out.shape
    block = CombineBlock(results=results, weights=routes.weights, places=routes.places, out=out)
    block.set(rows=rows, width=width, scale=1.0)
    return block
