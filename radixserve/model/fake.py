"""A model without cost, for benchmarks and tests of everything around the model.

Its next token depends on the last one only: token t of the visible ASCII range is followed by t +
1, so a stream is readable, deterministic and independent of the cache. It writes no K/V.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from radixserve.step import Chunk

_CYCLE = 64  # distinct tokens that it generates


class FakeModel:
    """Implements the engine's `StepModel`."""

    def __init__(self, vocab_size: int, first_token: int = 33) -> None:
        self.vocab_size = vocab_size
        self._first = first_token
        tokens = torch.arange(_CYCLE) + first_token
        self._rows = torch.zeros(_CYCLE, vocab_size).index_put_(
            (torch.arange(_CYCLE), tokens), torch.tensor(99.0)
        )

    def forward(
        self,
        chunks: Sequence[Chunk],
        drawn: torch.Tensor | None = None,
        between_layers: Callable[[], None] | None = None,
    ) -> torch.Tensor:
        """float32 logits [sum of chunk.num_logits, vocab_size]. It runs on the CPU, where no step
        is launched ahead, so `drawn` is None. It has no layers.
        """
        assert drawn is None
        spoken = np.concatenate([chunk.token_ids[-chunk.num_logits :] for chunk in chunks])
        return self._rows[torch.from_numpy((spoken + 1 - self._first) % _CYCLE).long()]
