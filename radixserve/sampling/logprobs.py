"""Log probabilities under the model's own distribution: before penalties, bias and temperature.

The first k tokens are ordered by logit (order.py), so the first one is the token that greedy
decoding takes. They are computed on the device, and become Python values once they are on the host.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from radixserve.sampling.order import first_ids
from radixserve.step import TokenLogprob
from radixserve.tensors.transfer import Download, upload

_BLOCK = 64  # rows computed at once: 12 MiB per copy with 49,152 tokens


class PromptLogprobs:
    """Log probabilities of a prompt's own tokens, from one chunk's logits, on their way to the
    host.
    """

    @torch.inference_mode()
    def __init__(self, logits: torch.Tensor, next_ids: npt.ArrayLike, k: int) -> None:
        """Compute from row i of float32 logits [n, vocab] the log probability of `next_ids[i]`, and
        the row's first `k` tokens.

        Computed in blocks of rows, so that the extra memory does not grow with the prompt. Cost:
        O(n x vocab).
        """
        taken = upload(np.array(next_ids, np.int64), logits.device)
        cuts = range(0, len(taken), _BLOCK)
        blocks = [first_logprobs(logits[i : i + _BLOCK], taken[i : i + _BLOCK], k) for i in cuts]
        self._counts = [k] * len(taken)
        self._download = Download(*map(torch.cat, zip(*blocks, strict=True))) if blocks else None

    def wait(self) -> list[TokenLogprob]:
        """One entry per row. Waits until they have arrived on the host."""
        return token_logprobs(self._download.wait(), self._counts) if self._download else []


def first_logprobs(
    logits: torch.Tensor, taken: torch.Tensor, count: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and log probabilities of each row of logits [n, vocab]: first of the token `taken` [n],
    then of the first `count` tokens.

    Both are [n, 1 + count], or [n, 1 + vocab] if that is less.
    """
    ids = torch.cat((taken[:, None], first_ids(logits, min(count, logits.shape[-1]))), dim=-1)
    return ids, logits.log_softmax(-1).gather(-1, ids)


def token_logprobs(found: Sequence[torch.Tensor], counts: Sequence[int]) -> list[TokenLogprob]:
    """The result of `first_logprobs`, which is on the host by now, as Python values; for row i the
    first `counts[i]` tokens.
    """
    ids, values = found
    return [
        TokenLogprob(
            row_ids[0], row_values[0], list(zip(row_ids, row_values, strict=True))[1 : 1 + count]
        )
        for row_ids, row_values, count in zip(ids.tolist(), values.tolist(), counts, strict=True)
    ]
