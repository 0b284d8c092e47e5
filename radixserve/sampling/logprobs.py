"""Log probabilities under the model's own distribution: before penalties, bias and temperature.

The first k tokens are ordered by logit (order.py), so that the first is what greedy decoding would take.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from radixserve.sampling.order import first_ids
from radixserve.sampling.row import Row
from radixserve.step import TokenLogprob

_BLOCK = 64  # rows worked on at once: 12 MiB per copy with 49,152 tokens


def sampled_logprobs(
    logits: torch.Tensor, rows: Sequence[Row], token_ids: Sequence[int], usable: Sequence[bool]
) -> list[TokenLogprob | None]:
    """One entry per row of logits [n, vocab]: None where logprobs are not wanted or the row is not usable."""
    result: list[TokenLogprob | None] = [None] * len(rows)
    wanted = [i for i, row in enumerate(rows) if row.sampling.logprobs is not None and usable[i]]
    counts = [rows[i].sampling.logprobs or 0 for i in wanted]
    if wanted:
        found = _token_logprobs(logits[wanted], [token_ids[i] for i in wanted], counts)
        for i, logprob in zip(wanted, found, strict=True):
            result[i] = logprob
    return result


@torch.inference_mode()
def prompt_logprobs(logits: torch.Tensor, next_ids: Sequence[int], k: int) -> list[TokenLogprob]:
    """What row i of float32 logits [n, vocab] says of `next_ids[i]`, and its first `k` tokens.

    Worked on in blocks, so that the extra memory does not grow with the prompt. O(n x vocab).
    """
    result: list[TokenLogprob] = []
    for start in range(0, len(next_ids), _BLOCK):
        ids = [int(i) for i in next_ids[start : start + _BLOCK]]
        result += _token_logprobs(logits[start : start + len(ids)], ids, [k] * len(ids))
    return result


def _token_logprobs(logits: torch.Tensor, token_ids: Sequence[int], counts: Sequence[int]) -> list[TokenLogprob]:
    logprobs = logits.log_softmax(-1)
    taken = torch.tensor(token_ids, device=logits.device)[:, None]
    ids = torch.cat((taken, first_ids(logits, min(max(counts), logits.shape[-1]))), dim=-1)
    rows = zip(token_ids, counts, ids.tolist(), logprobs.gather(-1, ids).tolist(), strict=True)
    return [
        TokenLogprob(token_id, values[0], list(zip(row_ids, values, strict=True))[1 : 1 + count])
        for token_id, count, row_ids, values in rows
    ]
