"""The kernels of layers with a state against their definitions in float64, one row after the other,
and the bits of a sequence that is computed in parts.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from radixserve.kernels.cpu import native, threads
from radixserve.kernels.cpu.convolution import convolution_kernel
from radixserve.kernels.cpu.delta_rule import delta_kernel
from radixserve.kernels.cpu.state_space import space_kernel
from radixserve.kernels.step import StateSpans
from radixserve.model.recurrent import convolution_block, delta_block, space_block
from radixserve.model.weights import Convolution, DeltaRule, Norm, StateSpace

ROWS, SLOTS = 30, 5
TAPS, WIDTH = 4, 96
KEY_HEADS, HEADS, K_DIM = 2, 4, 8


def spans_of(*parts: tuple[int, int, int, int]) -> StateSpans:
    """One sequence in these parts."""
    count, starts = np.array([1], np.int64), np.array([0, len(parts)], np.int64)
    return StateSpans(count, starts, np.array(parts, np.int64))


WHOLE = spans_of((0, ROWS, -1, 0))
IN_PARTS = spans_of((0, 1, -1, 1), (1, 2, 1, 2), (2, 19, 2, 3), (19, ROWS, 3, 0))


def call(kernel: object, block: object) -> None:
    counter = np.zeros(1, np.int64)
    block.counter = counter  # type: ignore[attr-defined]
    threads.run(native.address(kernel), block.address, True)  # type: ignore[arg-type,attr-defined]


def convolution(is_silu: bool) -> Convolution:
    pieces = torch.arange(0, WIDTH, 32)
    return Convolution(
        weight=torch.randn(3, TAPS, 32),
        bias=torch.randn(WIDTH),
        places=pieces + WIDTH,
        input_gates=None if is_silu else pieces,
        output_gates=None if is_silu else pieces + 2 * WIDTH,
        is_silu=is_silu,
    )


@pytest.mark.parametrize("is_silu", [True, False])
def test_a_convolution(is_silu: bool) -> None:
    torch.manual_seed(0)
    layer, x = convolution(is_silu), torch.randn(ROWS, 3 * WIDTH)

    def computed(spans: StateSpans) -> tuple[torch.Tensor, torch.Tensor]:
        out, states = torch.empty(ROWS, WIDTH), torch.randn(SLOTS, 1, (TAPS - 1) * WIDTH)
        block = convolution_block(layer, x, out, states, spans)
        call(convolution_kernel(x.dtype), block)
        return out, states[0]

    out, state = computed(WHOLE)
    first, middle, last = x.double().split(WIDTH, 1)
    inputs = middle if is_silu else first * middle
    weight = layer.weight.double().transpose(1, 2).reshape(WIDTH, 1, TAPS)
    assert layer.bias is not None
    padded = F.pad(inputs.T, (TAPS - 1, 0))
    expected = F.conv1d(padded, weight, layer.bias.double(), groups=WIDTH).T
    expected = F.silu(expected) if is_silu else last * expected
    assert torch.allclose(out.double(), expected, atol=1e-5)
    assert torch.allclose(state.view(TAPS - 1, WIDTH).double(), inputs[1 - TAPS :], atol=1e-6)
    for each, same in zip(computed(IN_PARTS), (out, state), strict=True):
        assert torch.equal(each, same)


def delta_rule(v_dim: int) -> DeltaRule:
    heads = torch.arange(HEADS)
    return DeltaRule(
        key_heads=KEY_HEADS,
        k_dim=K_DIM,
        z_places=heads * v_dim,
        a_places=HEADS * v_dim + heads,
        b_places=HEADS * v_dim + HEADS + heads,
        rates=-torch.rand(HEADS),
        biases=torch.randn(HEADS),
        norm=Norm(torch.randn(v_dim), None, 1e-6),
    )


def by_definition(rule: DeltaRule, qkv: torch.Tensor, gates: torch.Tensor) -> torch.Tensor:
    v_dim, keys = rule.v_dim, KEY_HEADS * K_DIM
    q, k, v = qkv.double().split([keys, keys, HEADS * v_dim], 1)
    z, a, b = gates.double().split([HEADS * v_dim, HEADS, HEADS], 1)
    out = torch.empty(len(qkv), HEADS * v_dim, dtype=torch.float64)
    for head in range(HEADS):
        key, value = head * KEY_HEADS // HEADS * K_DIM, head * v_dim
        matrix = torch.zeros(K_DIM, v_dim, dtype=torch.float64)
        for row in range(len(qkv)):
            q_row, k_row = (F.normalize(each[row, key : key + K_DIM], dim=0) for each in (q, k))
            decay = torch.exp(rule.rates[head] * F.softplus(a[row, head] + rule.biases[head]))
            matrix = decay * matrix
            error = v[row, value : value + v_dim] - k_row @ matrix
            matrix = matrix + torch.outer(k_row, torch.sigmoid(b[row, head]) * error)
            found = q_row @ matrix / math.sqrt(K_DIM)
            normed = found * torch.rsqrt(found.square().mean() + 1e-6) * rule.norm.weight
            out[row, value : value + v_dim] = normed * F.silu(z[row, value : value + v_dim])
    return out


@pytest.mark.parametrize("v_dim", [16, 64, 144])
def test_the_gated_delta_rule(v_dim: int) -> None:
    torch.manual_seed(0)
    rule = delta_rule(v_dim)
    qkv = torch.randn(ROWS, 2 * KEY_HEADS * K_DIM + HEADS * v_dim)
    gates = 3 * torch.randn(ROWS, HEADS * (v_dim + 2))

    def computed(spans: StateSpans) -> tuple[torch.Tensor, torch.Tensor]:
        out, states = torch.empty(ROWS, HEADS * v_dim), torch.randn(SLOTS, 1, rule.matrices)
        call(delta_kernel(qkv.dtype), delta_block(rule, qkv, gates, out, states, spans))
        return out, states[0]

    out, state = computed(WHOLE)
    assert torch.allclose(out.double(), by_definition(rule, qkv, gates), atol=2e-4)
    for each, same in zip(computed(IN_PARTS), (out, state), strict=True):
        assert torch.equal(each, same)


def test_the_state_space() -> None:
    torch.manual_seed(0)
    groups, n_dim, p_dim = 2, 12, 48
    space = StateSpace(
        groups=groups,
        n_dim=n_dim,
        p_dim=p_dim,
        step_places=torch.arange(HEADS),
        gate_places=torch.zeros(1, dtype=torch.int64),
        rates=-torch.rand(HEADS),
        biases=torch.randn(HEADS),
        skips=torch.randn(HEADS),
        least=0.3,
        most=2.0,
        norm=Norm(torch.ones(HEADS * p_dim), None, 1e-6),
    )
    x, steps = torch.randn(ROWS, HEADS * p_dim + 2 * groups * n_dim), torch.randn(ROWS, HEADS)

    def computed(spans: StateSpans) -> tuple[torch.Tensor, torch.Tensor]:
        out, states = torch.empty(ROWS, HEADS * p_dim), torch.randn(SLOTS, 1, space.matrices)
        call(space_kernel(x.dtype), space_block(space, x, steps, out, states, spans))
        return out, states[0]

    out, state = computed(WHOLE)
    inputs, writes, reads = x.double().split([HEADS * p_dim, groups * n_dim, groups * n_dim], 1)
    for head in range(HEADS):
        matrix, group = torch.zeros(n_dim, p_dim).double(), head * groups // HEADS * n_dim
        columns = slice(head * p_dim, (head + 1) * p_dim)
        for row in range(ROWS):
            dt = F.softplus(steps[row, head].double() + space.biases[head]).clamp(0.3, 2.0)
            added = torch.outer(writes[row, group : group + n_dim], dt * inputs[row, columns])
            matrix = torch.exp(space.rates[head] * dt) * matrix + added
            expected = reads[row, group : group + n_dim] @ matrix
            expected += space.skips[head] * inputs[row, columns]
            assert torch.allclose(out[row, columns].double(), expected, atol=1e-4)
    for each, same in zip(computed(IN_PARTS), (out, state), strict=True):
        assert torch.equal(each, same)
