"""The order of events when a batch of logits becomes a batch of tokens.

Owns the grouping of rows (greedy, drawn from all, drawn from the first few) and the single wait for the device. Knows
nothing of the formulas: edits.py changes logits, draw.py draws, logprobs.py reports.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from radixserve.request import Sampling
from radixserve.sampling.draw import draw_any, draw_first, prepare
from radixserve.sampling.edits import edit, is_edited
from radixserve.sampling.logprobs import sampled_logprobs
from radixserve.sampling.order import best
from radixserve.sampling.row import Row, Sampled

_FAILED, _DONE, _INCOMPLETE = 0, 1, 2
_FEW = 256  # tokens looked at first when only top_p limits the choice
_MANY = 1024  # a larger top_k sorts the whole row


@torch.inference_mode()
def sample(logits: torch.Tensor, rows: Sequence[Row]) -> list[Sampled | None]:
    """Draw the next token of each row from float32 logits [len(rows), vocab], which are left as they are.

    None for a row with a NaN, with +inf, or with no finite logit: only that request fails. A logit of -inf alone is
    a token that cannot be drawn. O(rows x vocab); waits for the device once, and once more for each of: log
    probabilities wanted; top_p above the weight of the first 256 tokens, and again of the first 4,096.
    """
    if not rows:
        return []
    highest, ids = best(logits)
    status = torch.isfinite(highest).long() * _DONE
    edited = logits
    if any(map(is_edited, rows)):
        edited = logits.clone()
        edit(edited, rows)
        highest, ids = best(edited)
        status *= torch.isfinite(highest)
    for count, index in _groups(rows, logits.shape[-1]):
        d = prepare(edited, highest, rows, index)
        drawn, complete = draw_first(d, count) if count else draw_any(d)
        at = torch.tensor(index, device=logits.device)
        ids[at] = drawn
        status[at] *= torch.where(complete, _DONE, _INCOMPLETE)
    token_ids, states = torch.stack((ids, status)).tolist()
    _draw_again(edited, highest, rows, token_ids, states)
    logprobs = sampled_logprobs(logits, rows, token_ids, [state != _FAILED for state in states])
    return [
        Sampled(token_id, logprob) if state != _FAILED else None
        for token_id, state, logprob in zip(token_ids, states, logprobs, strict=True)
    ]


def _draw_again(
    logits: torch.Tensor, highest: torch.Tensor, rows: Sequence[Row], token_ids: list[int], states: list[int]
) -> None:
    """Draw the incomplete rows from ever more first tokens, 16 times as many each time, until none is incomplete."""
    count = _FEW
    while incomplete := [i for i, state in enumerate(states) if state == _INCOMPLETE]:
        count = min(count * 16, logits.shape[-1])
        drawn, complete = draw_first(prepare(logits, highest, rows, incomplete), count)
        for i, token_id, done in zip(incomplete, drawn.tolist(), complete.tolist(), strict=True):
            token_ids[i], states[i] = token_id, _DONE if done else _INCOMPLETE


def _groups(rows: Sequence[Row], vocab: int) -> list[tuple[int, list[int]]]:
    """Rows with temperature above 0, grouped by how many first tokens to look at; 0 means all of them, unordered."""
    reach = {i: _reach(row.sampling, vocab) for i, row in enumerate(rows) if row.sampling.temperature > 0}
    anyhow = [i for i, count in reach.items() if count == 0]
    few = [i for i, count in reach.items() if 0 < count <= _MANY]
    most = [i for i, count in reach.items() if count > _MANY]
    groups = [(0, anyhow), (max((reach[i] for i in few), default=0), few), (vocab, most)]
    return [(count, index) for count, index in groups if index]


def _reach(sampling: Sampling, vocab: int) -> int:
    if 0 < sampling.top_k < vocab:
        return sampling.top_k
    return min(_FEW, vocab) if sampling.top_p < 1 else 0
