"""The token ids of a step on the device: the host knows most of them, some only the device.

A chunk with `drawn_row` computes the token that the step before draws in that row. Its id is copied
on the device from that step's draws to this step's ids; the host learns it later. Knows chunks;
knows nothing of sequences.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from radixserve.step import Chunk
from radixserve.tensors.transfer import upload


def token_ids(
    chunks: Sequence[Chunk], drawn: torch.Tensor | None, device: torch.device
) -> torch.Tensor:
    """Ids of all rows in chunk order, int64 [rows] on the device; `drawn` as in `insert_drawn`."""
    ids = upload(np.concatenate([chunk.token_ids for chunk in chunks]).astype(np.int64), device)
    insert_drawn(ids, chunks, drawn)
    return ids


def insert_drawn(ids: torch.Tensor, chunks: Sequence[Chunk], drawn: torch.Tensor | None) -> None:
    """Write the ids that only the device knows into `ids`. `drawn` is what the step before drew,
    int64 [its chunks].
    """
    rows = [chunk.drawn_row for chunk in chunks]
    if all(row is None for row in rows):
        return
    assert drawn is not None, "a chunk needs a token of the step before, and there is none"
    ends = np.cumsum([len(chunk.token_ids) for chunk in chunks])
    places = [
        (row, end - 1) for row, end in zip(rows, ends.tolist(), strict=True) if row is not None
    ]
    where = upload(np.array(places, np.int64).T.copy(), ids.device)
    ids[where[1]] = drawn[where[0]]
