"""What a mixture of experts does around its products, row by row: choosing experts for each row,
bringing rows into groups, one for each expert, and adding the results of a row's experts.

    logits of rows       route     row 0: experts 5, 2 with their weights    row 1: experts 2, 7
    rows                 gather    grouped: row 0, row 1 (expert 2) | row 0 (5) | row 1 (7)
    results, grouped     combine   row 0: its weight * result of 5, + its weight * result of 2

One path of code computes a row, whatever rows are beside it. Experts of equal score are chosen in
the order of their numbers. The results of a row are added in the order in which its experts were
chosen, best first, in float32; the sum is rounded once.

Scores: softmax (Shazeer et al. 2017, arXiv:1701.06538) or sigmoid, with a correction that counts
for the choice only (Wang et al. 2024, arXiv:2408.15664), and groups of which the best are kept
(DeepSeek-V2, arXiv:2405.04434).
"""

# mypy: disable-error-code="untyped-decorator"
# (numba has no type hints)

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numba import types

from radixserve.kernels.cpu.block import Block, Float, Float32s, Int, Int64s, Numbers
from radixserve.kernels.cpu.compile import compiled, on_stack
from radixserve.kernels.cpu.rows import next_rows
from radixserve.kernels.cpu.vector import add_atomically, copy, exp, fma, number_at, put_number

MOST_EXPERTS = 1024
"""The most experts of a layer."""

_ZERO, _ONE, _LEAST = np.float32(0), np.float32(1), np.float32(-np.inf)
_STRIPE = 64  # columns at a time
_DONE = 1  # the place in a counter for the rows that are routed
_scores, _ranks, _of_groups = (on_stack(types.float32, MOST_EXPERTS) for _ in range(3))
_stripe = on_stack(types.float32, _STRIPE)
_next_places = on_stack(types.int64, MOST_EXPERTS)


class Scores(IntEnum):
    """How scores are made of a row's logits."""

    SOFTMAX = 0
    SIGMOID = 1


class RouteBlock(Block):
    """For each row the experts that it chooses, their weights, and where in its group the row is.
    Groups lie in the order of experts, and rows of a group in theirs.
    """

    logits: Float32s  # [rows * experts]
    correction: Float32s  # [experts], added to scores for the choice only; or empty
    chosen: Int64s  # [rows * choices]
    weights: Float32s  # [rows * choices]
    places: Int64s  # [rows * choices]: the row's place among the grouped rows
    starts: Int64s  # [experts + 1]: the first row of each group, and the number of grouped rows
    zeroed: Int64s  # counters that are zero afterwards
    counter: Int64s  # [2]: groups of rows that threads have taken, rows that are routed
    rows: Int
    experts: Int
    choices: Int  # of a row
    scores: Int  # one of `Scores`
    groups: Int  # of experts, equally large
    kept_groups: Int  # whose experts can be chosen
    best_of_group: Int  # experts whose scores make that of a group
    is_normalised: Int  # whether the weights of a row are divided by their sum
    least_sum: Float  # which they are divided by
    scale: Float  # of weights


class GatherBlock(Block):
    """grouped[places[row, choice]] = x[row]."""

    x: Numbers  # [rows * width]
    grouped: Numbers  # [rows * choices * width]
    places: Int64s  # [rows * choices]
    counter: Int64s
    rows: Int
    width: Int


class CombineBlock(Block):
    """out[row] = scale * (sum of weights[row, choice] * results[places[row, choice]] + shared[row]
    * sigmoid(gates[row])).
    """

    results: Numbers  # [rows * choices * width]
    weights: Float32s  # [rows * choices]
    places: Int64s  # [rows * choices]
    shared: Numbers  # [rows * width], or empty
    gates: Float32s  # [rows], or empty: 1 in the place of the sigmoid
    out: Numbers  # [rows * width]
    counter: Int64s
    rows: Int
    width: Int
    scale: Float


class _Room(NamedTuple):
    """A thread's working memory, [experts] each."""

    scores: Any
    ranks: Any  # what the choice goes by
    of_groups: Any


@compiled
def _sigmoid(x: Any) -> Any:
    power = exp(-abs(x))
    return (_ONE if x >= _ZERO else power) / (_ONE + power)


@compiled
def _find_scores(b: Any, at: int, scores: Any) -> None:
    """The scores of the row whose logits begin at element `at`."""
    if b.scores == 1:
        for i in range(b.experts):
            scores[i] = _sigmoid(b.logits[at + i])
        return
    peak, total = _LEAST, _ZERO
    for i in range(b.experts):
        peak = max(peak, b.logits[at + i])
    for i in range(b.experts):
        scores[i] = exp(b.logits[at + i] - peak)
        total += scores[i]
    for i in range(b.experts):
        scores[i] /= total


@compiled
def _best(values: Any, first: int, count: int) -> Any:
    """The place of the largest of `count` values from `first` on; the first of equal ones."""
    found = first
    for i in range(first + 1, first + count):
        if values[i] > values[found]:
            found = i
    return found


@compiled
def _drop_groups(b: Any, room: _Room) -> None:
    """Leave only the ranks of experts in the best groups."""
    size = b.experts // b.groups
    for group in range(b.groups):
        total, first = _ZERO, group * size
        for i in range(size):
            room.of_groups[first + i] = room.ranks[first + i]
        for _ in range(b.best_of_group):
            best = _best(room.of_groups, first, size)
            total += room.of_groups[best]
            room.of_groups[best] = _LEAST
        room.of_groups[group] = total  # of this and earlier groups nothing else is read any more
    for _ in range(b.kept_groups):
        room.of_groups[_best(room.of_groups, 0, b.groups)] = _LEAST
    for group in range(b.groups):
        if room.of_groups[group] != _LEAST:
            room.ranks[group * size : group * size + size] = _LEAST


@compiled
def _choose(b: Any, row: int, room: _Room) -> None:
    """The experts of a row, best first, and their weights."""
    _find_scores(b, row * b.experts, room.scores)
    for i in range(b.experts):
        correction = b.correction[i] if len(b.correction) else _ZERO
        room.ranks[i] = room.scores[i] + correction
    if b.kept_groups < b.groups:
        _drop_groups(b, room)
    first, total = row * b.choices, _ZERO
    for choice in range(first, first + b.choices):
        best = _best(room.ranks, 0, b.experts)
        b.chosen[choice], b.weights[choice] = best, room.scores[best]
        total += room.scores[best]
        room.ranks[best] = _LEAST
    divisor = max(total, b.least_sum) if b.is_normalised != 0 else _ONE
    for choice in range(first, first + b.choices):
        b.weights[choice] = b.weights[choice] / divisor * b.scale


@compiled
def _group(b: Any) -> None:
    """Give each row a place in the group of each of its experts. One thread does this."""
    b.zeroed[:] = 0
    b.starts[:] = 0
    count, places = b.rows * b.choices, _next_places()
    for i in range(count):
        b.starts[b.chosen[i] + 1] += 1
    for expert in range(b.experts):
        places[expert] = b.starts[expert]
        b.starts[expert + 1] += b.starts[expert]
    for i in range(count):
        b.places[i] = places[b.chosen[i]]
        places[b.chosen[i]] += 1


@compiled
def _route(b: Any) -> None:
    """Every thread: choose for rows until none is left. The thread that finishes the last one
    groups them all.
    """
    room = _Room(_scores(), _ranks(), _of_groups())
    first, end = next_rows(b)
    while first < end:
        for row in range(first, end):
            _choose(b, row, room)
        if add_atomically(b.counter, _DONE, end - first) + end - first == b.rows:
            _group(b)
        first, end = next_rows(b)


@compiled
def _gather(b: Any) -> None:
    choices = b.places.shape[0] // b.rows
    first, end = next_rows(b)
    while first < end:
        for row in range(first, end):
            for choice in range(row * choices, (row + 1) * choices):
                copy(b.x, row * b.width, b.grouped, b.places[choice] * b.width, b.width)
        first, end = next_rows(b)


@compiled
def _combine_stripe(b: Any, row: int, column: int, count: int, sums: Any) -> None:
    """The result of a row in some columns."""
    choices, at = b.places.shape[0] // b.rows, row * b.width + column
    sums[:] = _ZERO
    for choice in range(row * choices, (row + 1) * choices):
        begin, weight = b.places[choice] * b.width + column, b.weights[choice]
        for j in range(count):
            sums[j] = fma(weight, number_at(b.results, begin + j), sums[j])
    if len(b.shared):
        weight = _sigmoid(b.gates[row]) if len(b.gates) else _ONE
        for j in range(count):
            sums[j] = fma(weight, number_at(b.shared, at + j), sums[j])
    for j in range(count):
        put_number(b.out, at + j, sums[j] * b.scale)


@compiled
def _combine(b: Any) -> None:
    sums = _stripe()
    first, end = next_rows(b)
    while first < end:
        for row in range(first, end):
            for column in range(0, b.width, _STRIPE):
                _combine_stripe(b, row, column, min(_STRIPE, b.width - column), sums)
        first, end = next_rows(b)


def route(address: Any) -> None:
    """Every thread calls this with the address of a `RouteBlock`. `native` compiles it, and those
    below.
    """
    _route(RouteBlock.read(address))


@cache
def gather_kernel(dtype: torch.dtype) -> Callable[[Any], None]:
    """The kernel of `GatherBlock` for activations of `dtype`."""
    read = GatherBlock.reader(dtype)

    def gather(address: Any) -> None:
        _gather(read(address))

    gather.__name__ = f"gather_{dtype}".replace("torch.", "")
    return gather


@cache
def combine_kernel(dtype: torch.dtype) -> Callable[[Any], None]:
    """The kernel of `CombineBlock` for activations of `dtype`."""
    read = CombineBlock.reader(dtype)

    def combine(address: Any) -> None:
        _combine(read(address))

    combine.__name__ = f"combine_{dtype}".replace("torch.", "")
    return combine
