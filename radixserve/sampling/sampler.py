"""The order of events in which a batch of logits becomes a batch of tokens.

Owns the grouping of rows (greedy, drawn from all tokens, drawn from the first few) and decides what
goes to the host. Knows no formulas: edits.py changes logits, draw.py draws, logprobs.py reports.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from radixserve.request import Sampling
from radixserve.sampling.draw import draw_any, draw_first, prepare
from radixserve.sampling.edits import edit, is_changed, is_edited
from radixserve.sampling.logprobs import first_logprobs, token_logprobs
from radixserve.sampling.order import best
from radixserve.sampling.row import Row, Sampled
from radixserve.tensors.transfer import Download, upload_ids

_FEW = 256  # first tokens that are tried when only top_p limits the choice
_MANY = 1024  # a larger top_k sorts the whole row


class Samples:
    """The tokens drawn for a batch: on the device at once, on the host after `wait`."""

    def __init__(
        self, logits: torch.Tensor, rows: Sequence[Row], ids: torch.Tensor, usable: torch.Tensor
    ) -> None:
        self.ids = ids  # int64 [rows] on the device; any token where a row failed
        self._num_rows = len(rows)
        self._asked = {
            i: k for i, row in enumerate(rows) if (k := row.sampling.logprobs) is not None
        }
        listed: tuple[torch.Tensor, ...] = ()
        if self._asked:
            at = upload_ids(list(self._asked), logits.device)
            listed = first_logprobs(logits[at], ids[at], max(self._asked.values()))
        self._download = Download(ids, usable, *listed)

    def wait(self) -> list[Sampled | None]:
        """One entry per row, None for a row that failed. The host waits for the device here."""
        ids, usable, *listed = self._download.wait()
        found = token_logprobs(listed, [*self._asked.values()]) if listed else []
        logprobs = dict(zip(self._asked, found, strict=True))
        drawn = zip(range(self._num_rows), ids.tolist(), usable.tolist(), strict=True)
        return [Sampled(token_id, logprobs.get(i)) if fine else None for i, token_id, fine in drawn]


@torch.inference_mode()
def sample(logits: torch.Tensor, rows: Sequence[Row], *, ahead: bool = False) -> Samples:
    """Draw the next token of each row from float32 logits [len(rows), vocab], which stay unchanged.

    A row with a NaN, with +inf, or without a finite logit fails; the other rows do not. A token
    with logit -inf cannot be drawn. Cost: O(rows x vocab). Where only top_p limits the choice the
    host checks whether the first 256 tokens were enough, for which it waits; with `ahead` it never
    waits: whole rows are sorted, and the tokens are the same.
    """
    edited = edit(logits, rows) if any(map(is_edited, rows)) else logits
    highest, ids = best(edited)
    usable = torch.isfinite(highest)
    if any(map(is_changed, rows)):
        usable &= torch.isfinite(logits.amax(-1))
    for count, index in _groups(rows, logits.shape[-1], ahead):
        _draw(edited, highest, rows, index, count, ids)
    return Samples(logits, rows, ids, usable)


def _draw(
    logits: torch.Tensor,
    highest: torch.Tensor,
    rows: Sequence[Row],
    index: list[int],
    count: int,
    ids: torch.Tensor,
) -> None:
    """Draw the rows at `index` from their first `count` tokens (0: all, unordered) into `ids`.

    Rows for which these were too few are drawn again from 16 times as many, until all are drawn.
    """
    vocab = logits.shape[-1]
    while index:
        d, at = prepare(logits, highest, rows, index), upload_ids(index, logits.device)
        if not count:
            ids[at] = draw_any(d)
            return
        ids[at], complete = draw_first(d, count)
        if count == vocab or not d.unlimited:
            return
        index = [i for i, done in zip(index, complete.tolist(), strict=True) if not done]
        count = min(count * 16, vocab)


def _groups(rows: Sequence[Row], vocab: int, ahead: bool) -> list[tuple[int, list[int]]]:
    """Rows with temperature above 0, grouped by how many of their first tokens are drawn from; 0
    means all, unordered.
    """
    reach = {
        i: _reach(row.sampling, vocab, ahead)
        for i, row in enumerate(rows)
        if row.sampling.temperature > 0
    }
    anyhow = [i for i, count in reach.items() if count == 0]
    few = [i for i, count in reach.items() if 0 < count <= _MANY]
    most = [i for i, count in reach.items() if count > _MANY]
    groups = [(0, anyhow), (max((reach[i] for i in few), default=0), few), (vocab, most)]
    return [(count, index) for count, index in groups if index]


def _reach(sampling: Sampling, vocab: int, ahead: bool) -> int:
    """How many of the first tokens a row is drawn from at first; 0: all, unordered."""
    if 0 < sampling.top_k < vocab:
        return sampling.top_k
    if sampling.top_p >= 1:
        return 0
    return vocab if ahead else min(_FEW, vocab)
