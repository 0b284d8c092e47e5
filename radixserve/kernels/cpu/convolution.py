"""The causal convolution of layers that have states: a channel of a row is a weighted sum of that
channel in the last few rows of its sequence, this one included.

    inputs of a channel      ... a  b  c | d  e        3 taps; the state before d is b, c
    out                                    w0 b + w1 c + w2 d,  w0 c + w1 d + w2 e

The inputs before a step's first row come from a state slot, and the last ones go to another
(`StateSpans`). A row is computed in one fixed order, oldest input first, in float32, whatever rows
are beside it and however its sequence is cut into steps.

A thread computes a piece of a sequence's channels at a time, row after row. Where a channel's
numbers lie in a row is given by pieces, because models mix them with others.
"""

# mypy: disable-error-code="untyped-decorator"
# (numba has no type hints)

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from numba import types

from radixserve.kernels.cpu.activation import times_sigmoid
from radixserve.kernels.cpu.block import Block, Float32s, Int, Int64s, Numbers
from radixserve.kernels.cpu.compile import compiled, on_stack
from radixserve.kernels.cpu.vector import (
    add_atomically,
    fma,
    number_at,
    put_number,
    tile_exp,
)

MOST_CHANNELS = 64
"""The most channels of a piece: what `tile_exp` takes."""

MOST_TAPS = 8
"""The most rows that a convolution sees."""

FIRST, END, SOURCE, TARGET = range(4)
PART = 4
"""The columns of `StateSpans.parts`, and how many there are."""

_ZERO = np.float32(0)
_window = on_stack(types.float32, MOST_TAPS * MOST_CHANNELS)
_sums = on_stack(types.float32, MOST_CHANNELS)
_powers = on_stack(types.float32, MOST_CHANNELS)


class SpansBlock(Block):
    """`StateSpans`."""

    count: Int64s  # [1], of sequences
    starts: Int64s  # [sequences + 1]
    parts: Int64s  # [parts * PART]


class ConvolutionBlock(Block):
    """out[row] = f(sum over taps of weight[tap] * input[row - taps + 1 + tap] + bias), times a gate
    where there is one; inputs are numbers of x, times a gate where there is one. f is SiLU, or
    nothing.
    """

    spans: SpansBlock
    x: Numbers  # [rows * columns]
    places: Int64s  # [pieces]: where the channels of a piece begin in a row of x
    input_gates: Int64s  # [pieces], or empty: likewise of what inputs are multiplied by
    output_gates: Int64s  # [pieces], or empty: of what outputs are multiplied by
    weight: Float32s  # [pieces * taps * channels of a piece]
    bias: Float32s  # [pieces * channels of a piece], or empty
    out: Numbers  # [rows * pieces * channels of a piece]
    inputs: Float32s  # [state slots * (taps - 1) * all channels]: the states
    counter: Int64s  # [1]: pieces of sequences that threads have taken; zero at the start
    columns: Int
    channels: Int  # of a piece
    taps: Int
    is_silu: Int


@compiled
def _load(b: Any, source: int, piece: int, window: Any) -> None:
    """The inputs before a part, from a state."""
    width, channels = b.places.shape[0] * b.channels, b.channels
    for tap in range(b.taps - 1):
        at = (source * (b.taps - 1) + tap) * width + piece * channels
        for j in range(channels):
            window[tap * channels + j] = b.inputs[at + j] if source >= 0 else _ZERO


@compiled
def _store(b: Any, target: int, piece: int, window: Any) -> None:
    """The last inputs of a part, to a state."""
    width, channels = b.places.shape[0] * b.channels, b.channels
    for tap in range(b.taps - 1):
        at = (target * (b.taps - 1) + tap) * width + piece * channels
        for j in range(channels):
            b.inputs[at + j] = window[tap * channels + j]


@compiled
def _read(b: Any, row: int, piece: int, window: Any) -> None:
    """The newest inputs, behind the others in the window."""
    at, to = row * b.columns + b.places[piece], (b.taps - 1) * b.channels
    if b.input_gates.shape[0] > 0:
        gate = row * b.columns + b.input_gates[piece]
        for j in range(b.channels):
            window[to + j] = number_at(b.x, gate + j) * number_at(b.x, at + j)
    else:
        for j in range(b.channels):
            window[to + j] = number_at(b.x, at + j)


@compiled
def _activate(b: Any, sums: Any, powers: Any) -> None:
    """SiLU of the sums."""
    powers[b.channels :] = _ZERO
    for j in range(b.channels):
        powers[j] = -abs(sums[j])
    tile_exp(powers, 0, _ZERO)
    for j in range(b.channels):
        sums[j] = times_sigmoid(sums[j], sums[j], powers[j])


@compiled
def _write(b: Any, row: int, piece: int, sums: Any) -> None:
    to = (row * b.places.shape[0] + piece) * b.channels
    if b.output_gates.shape[0] > 0:
        gate = row * b.columns + b.output_gates[piece]
        for j in range(b.channels):
            put_number(b.out, to + j, number_at(b.x, gate + j) * sums[j])
    else:
        for j in range(b.channels):
            put_number(b.out, to + j, sums[j])


@compiled
def _row(b: Any, row: int, piece: int, window: Any, sums: Any, powers: Any) -> None:
    """One row, whose older inputs are in the window; they move on by one."""
    channels = b.channels
    _read(b, row, piece, window)
    for j in range(channels):
        sums[j] = b.bias[piece * channels + j] if b.bias.shape[0] > 0 else _ZERO
    for tap in range(b.taps):
        weight = (piece * b.taps + tap) * channels
        for j in range(channels):
            sums[j] = fma(b.weight[weight + j], window[tap * channels + j], sums[j])
    if b.is_silu != 0:
        _activate(b, sums, powers)
    _write(b, row, piece, sums)
    for j in range((b.taps - 1) * channels):
        window[j] = window[j + channels]


@compiled
def _convolve(b: Any) -> None:
    """Every thread: take pieces of sequences until none is left."""
    window, sums, powers, pieces = _window(), _sums(), _powers(), b.places.shape[0]
    total = b.spans.count[0] * pieces
    item = add_atomically(b.counter, 0, 1)
    while item < total:
        sequence, piece = item // pieces, item % pieces
        for part in range(b.spans.starts[sequence], b.spans.starts[sequence + 1]):
            _load(b, b.spans.parts[part * PART + SOURCE], piece, window)
            for row in range(b.spans.parts[part * PART], b.spans.parts[part * PART + END]):
                _row(b, row, piece, window, sums, powers)
            _store(b, b.spans.parts[part * PART + TARGET], piece, window)
        item = add_atomically(b.counter, 0, 1)


@cache
def convolution_kernel(dtype: torch.dtype) -> Callable[[Any], None]:
    """The kernel of `ConvolutionBlock` for activations of `dtype`. Every thread calls it with the
    block's address. `native` compiles it.
    """
    read = ConvolutionBlock.reader(dtype)

    def convolve(address: Any) -> None:
        _convolve(read(address))

    convolve.__name__ = f"convolve_{dtype}".replace("torch.", "")
    return convolve
