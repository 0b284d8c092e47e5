"""The activation of an MLP, row by row: one of a few functions, of a number or of the gate beside
it.

As in `kernels.cpu.rows`, one path of code computes a row, arithmetic is float32, and each value is
rounded once, when it is written. Each function is written with one power of e for each number, at
most, whose exponent is not above 0, so that it cannot overflow. SiLU: Elfwing et al. 2017
(arXiv:1702.03118); GELU: Hendrycks & Gimpel 2016 (arXiv:1606.08415); xIELU: Huang & Schlag 2024
(arXiv:2411.13010).
"""

# mypy: disable-error-code="untyped-decorator"
# (numba has no type hints)

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from functools import cache
from typing import Any

import numpy as np
import torch
from numba import types

from radixserve.kernels.cpu.block import Block, Float32s, Int, Int64s, Numbers
from radixserve.kernels.cpu.compile import compiled, on_stack
from radixserve.kernels.cpu.rows import next_rows
from radixserve.kernels.cpu.vector import fma, number_at, put_number, tile_exp

_ZERO, _HALF, _ONE = np.float32(0), np.float32(0.5), np.float32(1)
_STRIPE = 64  # columns at a time: what `tile_exp` takes
_stripe = on_stack(types.float32, _STRIPE)

_TANH_INNER = np.float32(2 * (2 / np.pi) ** 0.5)
_TANH_CUBE = np.float32(0.044715)
_ROOT_HALF = np.float32(0.5**0.5)


class Activation(IntEnum):
    """The functions that there are kernels for."""

    SILU = 0  # x * sigmoid(x)
    GELU = 1  # x times the normal distribution function at x
    GELU_TANH = 2  # the same, approximated by tanh
    RELU = 3
    RELU_SQUARED = 4
    XIELU = 5  # has constants of its own in every layer
    CLAMPED_SWIGLU = 6  # gate * sigmoid(alpha * gate) * (up + 1) of numbers within a limit


class ActivationBlock(Block):
    """out = function(x), or function(gate) * up where x is gate and up."""

    x: Numbers  # [rows * inner], or [rows * 2 * inner]: gate, then up
    out: Numbers  # [rows * inner]
    constants: Float32s  # of XIELU: alpha_p, alpha_n, beta, eps; of CLAMPED_SWIGLU: alpha, limit
    counter: Int64s  # [1]: groups of rows that threads have taken; zero at the start
    rows: Int


@compiled
def times_sigmoid(x: Any, inner: Any, power: Any) -> Any:
    """x * sigmoid(inner), where `power` is e**-abs(inner)."""
    return x * (_ONE if inner >= _ZERO else power) / (_ONE + power)


@compiled
def _silu_exponent(x: Any, constants: Any) -> Any:
    return -abs(x)


@compiled
def _silu(x: Any, power: Any, constants: Any) -> Any:
    return times_sigmoid(x, x, power)


@compiled
def _gelu_tanh_inner(x: Any) -> Any:
    """gelu_tanh(x) is x * sigmoid of this."""
    return _TANH_INNER * (x + _TANH_CUBE * (x * x * x))


@compiled
def _gelu_tanh_exponent(x: Any, constants: Any) -> Any:
    return -abs(_gelu_tanh_inner(x))


@compiled
def _gelu_tanh(x: Any, power: Any, constants: Any) -> Any:
    return times_sigmoid(x, _gelu_tanh_inner(x), power)


@compiled
def _gelu_t(z: Any) -> Any:
    return _ONE / fma(_HALF, z, _ONE)


@compiled
def _gelu_exponent(x: Any, constants: Any) -> Any:
    """ln(erfc(z) / t), where z = abs(x) / sqrt(2) and t = 1 / (1 + z / 2): -z**2 and a Chebyshev
    fit, within 1.2e-7 of erfc(z).
    """
    z = abs(x) * _ROOT_HALF
    t = _gelu_t(z)
    found = fma(np.float32(0.17087277), t, np.float32(-0.82215223))
    found = fma(found, t, np.float32(1.48851587))
    found = fma(found, t, np.float32(-1.13520398))
    found = fma(found, t, np.float32(0.27886807))
    found = fma(found, t, np.float32(-0.18628806))
    found = fma(found, t, np.float32(0.09678418))
    found = fma(found, t, np.float32(0.37409196))
    found = fma(found, t, np.float32(1.00002368))
    found = fma(found, t, np.float32(-1.26551223))
    return fma(-z, z, found)


@compiled
def _gelu(x: Any, power: Any, constants: Any) -> Any:
    """The normal distribution function at x is erfc(-x / sqrt(2)) / 2."""
    tail = power * (_HALF * _gelu_t(abs(x) * _ROOT_HALF))
    return x * (_ONE - tail if x >= _ZERO else tail)


@compiled
def _relu(x: Any, power: Any, constants: Any) -> Any:
    return _ZERO if x < _ZERO else x


@compiled
def _relu_squared(x: Any, power: Any, constants: Any) -> Any:
    above = _ZERO if x < _ZERO else x
    return above * above


@compiled
def _xielu_exponent(x: Any, constants: Any) -> Any:
    return constants[3] if x > constants[3] else x


@compiled
def _xielu(x: Any, power: Any, constants: Any) -> Any:
    """A parabola above 0; below, alpha_n * (e**x - 1 - x) + beta * x."""
    below = (power - _ONE - x) * constants[1]
    return (constants[0] * x * x if x > _ZERO else below) + constants[2] * x


@compiled
def _clamped_gate(x: Any, constants: Any) -> Any:
    return constants[1] if x > constants[1] else x


@compiled
def _clamped_swiglu_exponent(x: Any, constants: Any) -> Any:
    return -abs(constants[0] * _clamped_gate(x, constants))


@compiled
def _clamped_swiglu(x: Any, power: Any, constants: Any) -> Any:
    gate = _clamped_gate(x, constants)
    return times_sigmoid(gate, constants[0] * gate, power)


@compiled
def _clamped_up(up: Any, constants: Any) -> Any:
    up = constants[1] if up > constants[1] else up
    return (-constants[1] if up < -constants[1] else up) + _ONE


@compiled
def _plain_up(up: Any, constants: Any) -> Any:
    return up


# The exponent of the power that a function needs, if it needs one, and the function.
_FUNCTIONS: dict[Activation, tuple[Any, Any]] = {
    Activation.SILU: (_silu_exponent, _silu),
    Activation.GELU: (_gelu_exponent, _gelu),
    Activation.GELU_TANH: (_gelu_tanh_exponent, _gelu_tanh),
    Activation.RELU: (None, _relu),
    Activation.RELU_SQUARED: (None, _relu_squared),
    Activation.XIELU: (_xielu_exponent, _xielu),
    Activation.CLAMPED_SWIGLU: (_clamped_swiglu_exponent, _clamped_swiglu),
}


@cache
def activation_kernel(
    activation: Activation, is_gated: bool, dtype: torch.dtype
) -> Callable[[Any], None]:
    """The kernel of `ActivationBlock` for a function and activations of `dtype`. Every thread calls
    it with the block's address. `native` compiles it.
    """
    exponent, function = _FUNCTIONS[activation]
    has_power = exponent is not None
    exponent = exponent or _silu_exponent
    read_up = _clamped_up if activation == Activation.CLAMPED_SWIGLU else _plain_up
    read = ActivationBlock.reader(dtype)

    @compiled
    def stripe(b: Any, at: int, inner: int, count: int, to: int, powers: Any) -> None:
        """out[to : to + count], for at most 64 columns; their x (or gate) begins at element
        `at`.
        """
        if has_power:
            powers[count:] = _ZERO
            for j in range(count):
                powers[j] = exponent(number_at(b.x, at + j), b.constants)
            tile_exp(powers, 0, _ZERO)
        for j in range(count):
            found = function(number_at(b.x, at + j), powers[j], b.constants)
            if is_gated:
                found = read_up(number_at(b.x, at + inner + j), b.constants) * found
            put_number(b.out, to + j, found)

    @compiled
    def work(b: Any) -> None:
        """Every thread: the whole kernel."""
        inner, columns, powers = b.out.shape[0] // b.rows, b.x.shape[0] // b.rows, _stripe()
        first, end = next_rows(b)
        while first < end:
            for row in range(first, end):
                for column in range(0, inner, _STRIPE):
                    at, to = row * columns + column, row * inner + column
                    stripe(b, at, inner, min(_STRIPE, inner - column), to, powers)
            first, end = next_rows(b)

    def activate(address: Any) -> None:
        work(read(address))

    gated = "gated_" if is_gated else ""
    activate.__name__ = f"{gated}{activation.name.lower()}_{dtype}".replace("torch.", "")
    return activate
