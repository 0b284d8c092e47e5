"""Random draws: temperature, top_k, top_p, min_p, then one uniform number against the cumulative
weights.

Float sums change with the order of their terms, and torch chooses that order by shape and device.
So a token's weight exp((logit - highest) / temperature) is turned into an integer multiple of
2**-40: integer sums are exact in any order. That makes a short list of the first tokens and a sort
of all of them give the same draw, and a row's draw independent of its batch. A token 2**40 times
less likely than the first one has weight 0 and is never drawn.

The draw walks the kept tokens by ascending id, so that rows which keep everything need no sort.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from radixserve.sampling.order import first_ids
from radixserve.sampling.row import Row
from radixserve.sampling.uniform import uniforms
from radixserve.tensors.transfer import upload, upload_ids

# The weight of the most likely token. Sums stay below 2**63 for vocabularies up to 2**22.
_ONE = 2.0**40
# An exponent that gives a weight of 0. Below -87 a processor takes a hundred times as long for exp.
_NOTHING = -60.0
_TINY = float(np.finfo(np.float32).tiny)


@dataclass(slots=True)
class Draw:
    """The rows of a batch that are drawn in the same way: their logits, and their parameters as
    columns [n, 1] on the device.
    """

    logits: torch.Tensor  # float32 [n, vocab], edited
    highest: torch.Tensor  # float32
    temperature: torch.Tensor  # float32, above 0
    top_k: torch.Tensor  # int64, 1 .. vocab
    unlimited: bool  # whether some row's top_k is the whole vocabulary
    top_p: torch.Tensor  # float64
    min_weight: torch.Tensor  # int64
    drops_unlikely: bool  # whether some row has a min_p
    uniform: torch.Tensor  # float64


def prepare(
    logits: torch.Tensor, highest: torch.Tensor, rows: Sequence[Row], index: list[int]
) -> Draw:
    """The draw of the rows at `index`, which all have a temperature above 0. Their logits are
    copied unless they are the whole batch.
    """
    vocab = logits.shape[-1]
    sampling = [rows[i].sampling for i in index]
    top_k = [min(s.top_k, vocab) if s.top_k > 0 else vocab for s in sampling]
    unlimited = vocab in top_k
    columns = (
        [max(s.temperature, _TINY) for s in sampling],
        top_k,
        [s.top_p for s in sampling],
        [np.ceil(s.min_p * _ONE) for s in sampling],
        uniforms([s.seed for s in sampling], [len(rows[i].output_ids) for i in index]),
    )
    t = upload(np.array(columns, dtype=np.float64)[:, :, None], logits.device)
    if len(index) < len(rows):
        at = upload_ids(index, logits.device)
        logits, highest = logits[at], highest[at]
    return Draw(
        logits,
        highest[:, None],
        t[0].float(),
        t[1].long(),
        unlimited,
        t[2],
        t[3].long(),
        any(s.min_p for s in sampling),
        t[4],
    )


def draw_any(d: Draw) -> torch.Tensor:
    """Ids [n] of rows in which neither top_k nor top_p limits the choice. Needs no sort."""
    weights = _weights(d, d.logits)
    if d.drops_unlikely:
        weights *= weights >= d.min_weight
    return _pick(weights, d.uniform)


def draw_first(d: Draw, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw from the first `count` tokens of each row: ids [n], and whether these tokens included
    all that top_k and top_p keep, bool [n]. Where they did not, the id is meaningless.

    Each row's top_k must be at most `count`, or the whole vocabulary.
    """
    ids = first_ids(d.logits, count)
    weights = _weights(d, d.logits.gather(-1, ids))
    weights *= torch.arange(count, device=ids.device) < d.top_k
    total = weights.sum(-1, keepdim=True)
    if d.unlimited:
        total = torch.where(d.top_k > count, _weights(d, d.logits).sum(-1, keepdim=True), total)
    wanted = (total.double() * d.top_p).ceil_().long().clamp_(min=1)
    upto = weights.cumsum(-1)
    complete = (d.top_k <= count) | (upto[:, -1:] >= wanted)
    weights *= (upto - weights < wanted) & (weights >= d.min_weight)
    ids, rank = ids.sort(-1)
    place = _pick(weights.gather(-1, rank), d.uniform)
    return ids.gather(-1, place[:, None])[:, 0], complete[:, 0]


def _weights(d: Draw, logits: torch.Tensor) -> torch.Tensor:
    """Integer weights of some logits [n, m]: the highest logit has 2**40, a token that cannot be
    drawn 0.
    """
    exponents = (logits - d.highest).div_(d.temperature).clamp_(min=_NOTHING)
    return exponents.exp_().mul_(_ONE).long()


def _pick(weights: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Inverse CDF: the first place [n] whose cumulative weight exceeds uniform x total."""
    upto = weights.cumsum(-1)
    total = upto[:, -1:]
    target = torch.minimum((uniform * total.double()).long(), total - 1)
    place = torch.searchsorted(upto, target, right=True)[:, 0]
    # Only a row of NaN, whose draw is dropped, has a place beyond the last.
    return place.clamp_(max=weights.shape[-1] - 1)
