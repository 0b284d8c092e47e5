"""The parts of a decoder layer between its linears and its attention, row by row: norms, rotary
positions, gating.

One path of code computes a row, whatever the number of rows and threads: nothing is reassociated,
sums run in one fixed order. Compiled by numba at first use. Rotary positions: Su et al. 2021
(arXiv:2104.09864); RMSNorm: Zhang & Sennrich 2019 (arXiv:1910.07467).
"""

# mypy: disable-error-code="untyped-decorator"
# (numba has no type hints)

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types

from radixserve.kernels.cpu.compile import compiled, on_stack
from radixserve.kernels.cpu.rows_block import Layer, read_layer
from radixserve.kernels.cpu.vector import add_atomically, copy, fma, tile_exp, tile_sum

_ZERO, _ONE = np.float32(0), np.float32(1)
_STRIPE = 64  # columns at a time: what `tile_exp` and `tile_sum` take
_GROUP = 16  # rows that a thread takes at a time
_room = on_stack(types.float32, _STRIPE)


@compiled
def _next_rows(layer: Layer) -> Any:
    """Take the next rows that no thread has taken: their first and their end."""
    first = add_atomically(layer.counter, 0, 1) * _GROUP
    return first, min(layer.rows, first + _GROUP)


@compiled
def _normalize(source: Any, weight: Any, epsilon: Any, target: Any, sums: Any) -> None:
    """target = source / sqrt(mean(source**2) + epsilon) * weight; target may be source. `sums` is
    scratch memory of 64 floats.
    """
    width = weight.shape[0]
    sums[:] = _ZERO
    for column in range(0, width, _STRIPE):
        stripe = source[column : min(width, column + _STRIPE)]
        for j in range(stripe.shape[0]):
            sums[j] = fma(stripe[j], stripe[j], sums[j])
    scale = _ONE / np.sqrt(tile_sum(sums, 0) / np.float32(width) + epsilon)
    for j in range(width):
        target[j] = source[j] * scale * weight[j]


@compiled
def _add_norm(layer: Layer) -> None:
    """hidden += delta; normed = norm(hidden)."""
    width, sums = layer.weight.shape[0], _room()
    first, end = _next_rows(layer)
    while first < end:
        for row in range(first, end):
            at = row * width
            hidden = layer.hidden[at : at + width]
            if layer.delta.shape[0] > 0:
                delta = layer.delta[at : at + width]
                for j in range(width):
                    hidden[j] = hidden[j] + delta[j]
            _normalize(hidden, layer.weight, layer.epsilon[0], layer.normed[at : at + width], sums)
        first, end = _next_rows(layer)


@compiled
def _rotate_head(head: Any, cos: Any, sin: Any, target: Any) -> None:
    """Rotate the two halves of one head against each other. `target` must not be `head`."""
    half = head.shape[0] // 2
    low, high = head[:half], head[half:]
    for j in range(half):
        target[j] = low[j] * cos[j] - high[j] * sin[j]
        target[half + j] = high[j] * cos[half + j] + low[j] * sin[half + j]


@compiled
def _rotate_row(layer: Layer, row: int, sums: Any) -> None:
    """Norm and rotate one row: its queries go to `q`, its K and V to their slot."""
    heads, kv_heads, dim = layer.heads, layer.kv_heads, layer.dim
    source = layer.qkv[row * (heads + 2 * kv_heads) * dim :]
    cos, sin = layer.cos[row * dim :][:dim], layer.sin[row * dim :][:dim]
    q, place = layer.q[row * heads * dim :], layer.slots[row] * kv_heads * dim
    for index in range(heads + kv_heads):
        head = source[index * dim :][:dim]
        weight = layer.q_weight if index < heads else layer.k_weight
        if weight.shape[0] > 0:
            _normalize(head, weight, layer.epsilon[0], head, sums)
        if index < heads:
            _rotate_head(head, cos, sin, q[index * dim :][:dim])
        else:
            _rotate_head(head, cos, sin, layer.k[place + (index - heads) * dim :][:dim])
    copy(source, (heads + kv_heads) * dim, layer.v, place, kv_heads * dim)


@compiled
def _rotate(layer: Layer) -> None:
    sums = _room()
    first, end = _next_rows(layer)
    while first < end:
        for row in range(first, end):
            _rotate_row(layer, row, sums)
        first, end = _next_rows(layer)


@compiled
def _gate_stripe(gate: Any, up: Any, target: Any, powers: Any) -> None:
    """target = up * silu(gate), for at most 64 columns. It takes e to powers <= 0 only, which
    cannot overflow.
    """
    count = gate.shape[0]
    powers[count:] = _ZERO
    for j in range(count):
        powers[j] = -abs(gate[j])
    tile_exp(powers, 0, _ZERO)
    for j in range(count):
        power = powers[j]
        target[j] = up[j] * (gate[j] * (_ONE if gate[j] >= _ZERO else power) / (_ONE + power))


@compiled
def _gate(layer: Layer) -> None:
    inner, powers = layer.gate_up.shape[0] // layer.rows // 2, _room()
    first, end = _next_rows(layer)
    while first < end:
        for row in range(first, end):
            gate, up = (
                layer.gate_up[2 * row * inner :][:inner],
                layer.gate_up[(2 * row + 1) * inner :][:inner],
            )
            target = layer.gated[row * inner :][:inner]
            for column in range(0, inner, _STRIPE):
                stop = min(inner, column + _STRIPE)
                _gate_stripe(gate[column:stop], up[column:stop], target[column:stop], powers)
        first, end = _next_rows(layer)


def add_norm(address: Any) -> None:
    """hidden += delta; normed = norm(hidden). Every thread calls this, and the two below, with the
    address of a `LayerBlock`.
    """
    _add_norm(read_layer(address))


def rotate(address: Any) -> None:
    """Splits `qkv`: rotated queries go to `q`, rotated K and V to their slots."""
    _rotate(read_layer(address))


def gate(address: Any) -> None:
    """gated = silu(first half of gate_up) * second half, row by row."""
    _gate(read_layer(address))
