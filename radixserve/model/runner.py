"""Runs one step: takes chunks of token ids, returns logits, and writes K/V to the pool.

Packs all chunks into one row of tokens; an `AttentionPlan` tells the attention kernel which row
attends what. Knows nothing of requests, of sampling or of who owns a slot.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from radixserve.kernels.arrays import Longs
from radixserve.kernels.step import AttentionPlan
from radixserve.model.current_plan import computing
from radixserve.model.graphs import DecodeGraphs
from radixserve.model.loaded import LoadedModel
from radixserve.model.token_ids import token_ids
from radixserve.step import Chunk, Logits
from radixserve.tensors.kv import KVPool
from radixserve.tensors.transfer import upload


class Runner:
    """One model over one pool. Calls must not overlap: a step owns the pool while it runs."""

    def __init__(
        self, loaded: LoadedModel, pool: KVPool, graphs: DecodeGraphs | None = None
    ) -> None:
        self.loaded = loaded
        self.pool = pool
        self._graphs = graphs

    @torch.inference_mode()
    def forward(
        self,
        chunks: Sequence[Chunk],
        drawn: torch.Tensor | None = None,
        between_layers: Callable[[], None] | None = None,
    ) -> torch.Tensor:
        """float32 logits [sum of chunk.num_logits, vocab_size], in chunk order. Writes K/V of all
        rows to the pool.

        It only launches work: on CUDA nothing here waits for the device. `drawn` holds the ids that
        the step before draws, int64 [its chunks] on the device, for chunks with `drawn_row`. The
        next step may overwrite the logits. `between_layers` is called now and then while our own
        decoder computes, and may raise: then K/V of the chunks is undefined.
        """
        replayed = self._graphs.forward(chunks, drawn) if self._graphs else None
        return (
            self.run(AttentionPlan.of(chunks, self.pool), chunks, drawn, between_layers)
            if replayed is None
            else replayed
        )

    def run(
        self,
        plan: AttentionPlan,
        chunks: Sequence[Chunk],
        drawn: torch.Tensor | None = None,
        between_layers: Callable[[], None] | None = None,
    ) -> torch.Tensor:
        """`forward` with a plan that was made before. Never uses a graph."""
        device = self.loaded.device
        ids = token_ids(chunks, drawn, device)
        wanted = upload(_wanted_rows(plan, chunks), device)
        if self.loaded.decoder:
            return self.loaded.decoder(ids, plan, wanted, between_layers, _adapters(chunks))
        with computing(plan):
            output = self.loaded.model(
                input_ids=ids[None],
                position_ids=upload(plan.positions.astype(np.int64), device)[None],
                use_cache=False,
                logits_to_keep=wanted,
            )
        logits: torch.Tensor = output.logits[0]
        return logits.float()


def _wanted_rows(
    plan: AttentionPlan, chunks: Sequence[Chunk]
) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Indices of the packed rows whose logits are needed."""
    ends = plan.spans.row + plan.spans.count
    firsts = np.array(
        [end - chunk.num_logits for end, chunk in zip(ends, chunks, strict=True)], np.int64
    )
    if all(chunk.logits is Logits.LAST for chunk in chunks):
        return firsts
    return np.concatenate([np.arange(first, end) for first, end in zip(firsts, ends, strict=True)])


def _adapters(chunks: Sequence[Chunk]) -> Longs | None:
    """The addresses of the adapters of the packed rows, 0 for none; None if no row has one."""
    if all(chunk.adapter is None for chunk in chunks):
        return None
    addresses = [0 if chunk.adapter is None else chunk.adapter.address for chunk in chunks]
    return np.repeat(np.array(addresses, np.int64), [len(each.token_ids) for each in chunks])
