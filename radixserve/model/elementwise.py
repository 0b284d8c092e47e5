"""Elementwise modules that are row-wise: what they compute for a token's row does not depend on how
many other rows there are. An element that falls into a scalar remainder, at the end of a tensor or
of a thread's share, is rounded by other code, so they keep torch on its vectorised path.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

_LANES = 32  # elements that torch's loops take at once, at most
_BLOCK = 16384  # elements up to which torch uses one thread for any elementwise operator


class RowwiseActivation(nn.Module):
    """Applies an elementwise module to contiguous blocks, each of which torch computes in one
    thread and in whole vectors.

    The blocks are always contiguous, because for other tensors some operators (gelu) call another
    library, which rounds differently.
    """

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return in_blocks(self.inner, x)


def in_blocks(function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """An elementwise function of `x`, computed as `RowwiseActivation` says."""
    flat, count = x.reshape(-1), x.numel()
    if count % _LANES:
        flat = F.pad(flat, (0, -count % _LANES))
    parts = [function(part) for part in torch.split(flat, _BLOCK)]
    out = parts[0] if len(parts) == 1 else torch.cat(parts)
    return out[:count].view(x.shape)


class RowwiseRotary(nn.Module):
    """Computes a rotary embedding's cosines and sines for blocks of positions. Some classes give it
    the kind of layers, too, and some want both tables as one complex tensor.
    """

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.config = getattr(inner, "config", None)  # some models read it there
        # positions per block: whole vectors for any even dimension, and few enough for one thread
        self._rows = 64

    def forward(
        self, x: torch.Tensor, position_ids: torch.Tensor, *rest: Any, **named: Any
    ) -> tuple[torch.Tensor, ...] | torch.Tensor:
        count = position_ids.shape[-1]
        padded = F.pad(position_ids, (0, -count % self._rows))
        blocks = torch.split(padded, self._rows, -1)
        parts = [self.inner(x, block, *rest, **named) for block in blocks]
        if isinstance(parts[0], torch.Tensor):
            return _joined(parts, count)
        return tuple(_joined(tables, count) for tables in zip(*parts, strict=True))


def _joined(blocks: Sequence[torch.Tensor], count: int) -> torch.Tensor:
    """Tables [..., rows, dim] of consecutive blocks as one of `count` rows."""
    return torch.cat(tuple(blocks), -2)[..., :count, :]
