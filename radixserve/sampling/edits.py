"""Changes a request's logits before a token is drawn: penalties, bias, forbidden stop tokens,
grammars.

Values are gathered and written back for the whole batch in one operation per kind; rows without an
edit are not touched. Formulas: repetition penalty as in CTRL (Keskar et al. 2019, section 4.1);
presence and frequency as in the OpenAI API reference.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache, lru_cache

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from radixserve.request import Sampling
from radixserve.sampling.row import Row
from radixserve.tensors.transfer import upload, upload_ids


def is_edited(row: Row) -> bool:
    """Whether any of the edits below changes a logit of this row."""
    return row.allowed is not None or is_changed(row)


def is_changed(row: Row) -> bool:
    """Whether an edit other than the mask changes a logit of this row. Such an edit can hide a NaN
    or an infinite logit; a mask adds 0 or -inf, which leaves a NaN or makes one.
    """
    sampling = row.sampling
    lists = sampling.logit_bias, sampling.allowed_token_ids, sampling.bad_words
    return any(lists) or _counts(row) or _forbids_stop(row)


def reads_output(row: Row) -> bool:
    """Whether an edit depends on which tokens the output holds. Then the host must know all of them
    before the next draw.
    """
    words = any(len(word) > 1 for word in row.sampling.bad_words)
    return _counts(row) or words or row.sampling.grammar is not None


def leaves_no_token(row: Row) -> bool:
    """Whether the edits forbid every token of this row. Cost: O(listed and allowed tokens); for
    rows for which no token could be drawn.
    """
    sampling, left = row.sampling, set(row.sampling.allowed_token_ids)
    if row.allowed is not None:
        bits = np.unpackbits(row.allowed.view(np.uint8), bitorder="little")
        allowed = set(np.flatnonzero(bits).tolist())
        left = left & allowed if left else allowed
    elif not left:
        return False  # what is forbidden alone is never the whole vocabulary
    forbidden = set(sampling.stop_token_ids) if _forbids_stop(row) else set()
    return left <= forbidden.union(_completing(row))


def edit(logits: torch.Tensor, rows: Sequence[Row]) -> torch.Tensor:
    """A copy of float32 logits [len(rows), vocab] with all edits. Cost: O(prompt + output) per row
    with penalties.
    """
    if all(row.allowed is not None and not is_changed(row) for row in rows):
        return _added_by_masks(rows, logits).add_(logits)
    edited = logits.clone()
    _penalise_repetition(edited, rows)
    _penalise_output(edited, rows)
    _add_bias(edited, rows)
    _forbid_stop(edited, rows)
    _keep_listed(edited, rows)
    _forbid_words(edited, rows)
    _keep_allowed(edited, rows)
    return edited


def _counts(row: Row) -> bool:
    return row.sampling.repetition_penalty != 1.0 or _counts_output(row.sampling)


def _counts_output(sampling: Sampling) -> bool:
    return sampling.presence_penalty != 0.0 or sampling.frequency_penalty != 0.0


def _forbids_stop(row: Row) -> bool:
    """Whether stop tokens are forbidden here. A row with a grammar has that in `allowed`."""
    if row.allowed is not None:
        return False
    return len(row.output_ids) < row.sampling.min_tokens and bool(row.sampling.stop_token_ids)


def _penalise_repetition(logits: torch.Tensor, rows: Sequence[Row]) -> None:
    chosen = [i for i, row in enumerate(rows) if row.sampling.repetition_penalty != 1.0]
    if not chosen:
        return
    where = _where(
        logits, chosen, (np.concatenate((rows[i].prompt_ids, rows[i].output_ids)) for i in chosen)
    )
    penalties = np.array([row.sampling.repetition_penalty for row in rows], dtype=np.float32)
    penalty = upload(penalties, logits.device)[where[0]]
    old = logits[where]
    # An id that occurs twice is written twice, with the same value.
    logits[where] = torch.where(old > 0, old / penalty, old * penalty)


def _penalise_output(logits: torch.Tensor, rows: Sequence[Row]) -> None:
    chosen = [
        i for i, row in enumerate(rows) if _counts_output(row.sampling) and len(row.output_ids)
    ]
    if not chosen:
        return
    counted = [np.unique(rows[i].output_ids, return_counts=True) for i in chosen]
    amounts = [
        rows[i].sampling.presence_penalty + counts * rows[i].sampling.frequency_penalty
        for i, (_, counts) in zip(chosen, counted, strict=True)
    ]
    _add(
        logits, _where(logits, chosen, (ids for ids, _ in counted)), [-amount for amount in amounts]
    )


def _add_bias(logits: torch.Tensor, rows: Sequence[Row]) -> None:
    chosen = [i for i, row in enumerate(rows) if row.sampling.logit_bias]
    if not chosen:
        return
    biases = [rows[i].sampling.logit_bias for i in chosen]
    where = _where(logits, chosen, (np.fromiter(bias.keys(), np.int64) for bias in biases))
    _add(logits, where, [np.fromiter(bias.values(), np.float64) for bias in biases])


def _forbid_stop(logits: torch.Tensor, rows: Sequence[Row]) -> None:
    chosen = [i for i, row in enumerate(rows) if _forbids_stop(row)]
    if chosen:
        logits[
            _where(logits, chosen, (np.array(rows[i].sampling.stop_token_ids) for i in chosen))
        ] = -torch.inf


def _keep_listed(logits: torch.Tensor, rows: Sequence[Row]) -> None:
    """Set the logits of all tokens that a row's `allowed_token_ids` leaves out to -inf."""
    chosen = [i for i, row in enumerate(rows) if row.sampling.allowed_token_ids]
    if chosen:
        where = _where(
            logits, chosen, (np.array(rows[i].sampling.allowed_token_ids) for i in chosen)
        )
        kept = logits[where]
        logits[upload_ids(chosen, logits.device)] = -torch.inf
        logits[where] = kept


def _forbid_words(logits: torch.Tensor, rows: Sequence[Row]) -> None:
    """Set the logits of tokens that would complete one of a row's `bad_words` to -inf."""
    forbidden = {i: ids for i, row in enumerate(rows) if (ids := _completing(row))}
    if forbidden:
        last = (np.array(each) for each in forbidden.values())
        logits[_where(logits, list(forbidden), last)] = -torch.inf


def _completing(row: Row) -> list[int]:
    """The last tokens of those `bad_words` whose other tokens end the output."""
    if not row.sampling.bad_words:
        return []
    found, output = list[int](), row.output_ids
    for length, last in _by_beginning(row.sampling.bad_words).items():
        if length <= len(output):
            found += last.get(tuple(output[len(output) - length :].tolist()), ())
    return found


@lru_cache(maxsize=64)
def _by_beginning(
    words: tuple[tuple[int, ...], ...],
) -> dict[int, dict[tuple[int, ...], list[int]]]:
    """The last tokens of `words`, by the length of what is before them, and by what it is: one
    look-up for each length finds the words that an output has begun.
    """
    found: dict[int, dict[tuple[int, ...], list[int]]] = {}
    for *beginning, last in words:
        by_beginning = found.setdefault(len(beginning), {})
        by_beginning.setdefault(tuple(beginning), []).append(last)
    return found


def _keep_allowed(logits: torch.Tensor, rows: Sequence[Row]) -> None:
    """Set the logits of all tokens that a row's `allowed` leaves out to -inf."""
    masked = [i for i, row in enumerate(rows) if row.allowed is not None]
    if masked:
        added = _added_by_masks([rows[i] for i in masked], logits)
        logits.index_add_(0, upload_ids(masked, logits.device), added)


def _added_by_masks(rows: Sequence[Row], logits: torch.Tensor) -> torch.Tensor:
    """What the masks of `rows`, which all have one, add to their logits: 0 or -inf, float32
    [len(rows), vocab].
    """
    vocab = logits.shape[-1]
    words = np.zeros((len(rows), (vocab + 31) // 32), np.uint32)
    for line, row in zip(words, rows, strict=True):
        assert row.allowed is not None
        line[: len(row.allowed)] = row.allowed[: len(line)]
    octets = upload(words.view(np.uint8), logits.device).int()
    return F.embedding(octets, _added_by_octet(logits.device)).view(len(rows), -1)[:, :vocab]


@cache
def _added_by_octet(device: torch.device) -> torch.Tensor:
    """For each value of 8 bits of a mask, what is added to 8 logits: 0 or -inf, float32 [256, 8].

    Adding is several times as fast as filling in by a mask, whose bits are hard to foresee for a
    processor.
    """
    values, bits = torch.arange(256, device=device), torch.arange(8, device=device)
    is_left_out = values[:, None] >> bits & 1 == 0
    return torch.zeros(256, 8, device=device).masked_fill_(is_left_out, -torch.inf)


def _where(
    logits: torch.Tensor, chosen: Sequence[int], ids: Iterable[npt.NDArray[np.integer]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices (rows, ids) of `ids[j]` in row `chosen[j]`, for all j at once."""
    parts = list(ids)
    row = np.repeat(np.array(chosen, dtype=np.int64), [len(part) for part in parts])
    both = upload(np.stack((row, np.concatenate(parts, dtype=np.int64))), logits.device)
    return both[0], both[1]


def _add(
    logits: torch.Tensor,
    where: tuple[torch.Tensor, torch.Tensor],
    amounts: list[npt.NDArray[np.floating]],
) -> None:
    """Add `amounts` to `logits[where]`. All places differ, so the result does not depend on the
    order of additions.
    """
    logits[where] += upload(np.concatenate(amounts).astype(np.float32), logits.device)
