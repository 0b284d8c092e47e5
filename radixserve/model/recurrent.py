"""The arguments of the kernels of layers with states: `kernels.cpu.convolution`,
`kernels.cpu.delta_rule` and `kernels.cpu.state_space`.
"""

from __future__ import annotations

import torch

from radixserve.kernels.cpu.convolution import ConvolutionBlock
from radixserve.kernels.cpu.delta_rule import DeltaBlock
from radixserve.kernels.cpu.state_space import SpaceBlock
from radixserve.kernels.step import StateSpans
from radixserve.model.weights import Convolution, DeltaRule, StateSpace


def convolution_block(
    convolution: Convolution,
    x: torch.Tensor,
    out: torch.Tensor,
    inputs: torch.Tensor,
    spans: StateSpans,
) -> ConvolutionBlock:
    """For computing `out` [rows, all channels] from x [rows, columns], with states `inputs` [state
    slots, 1, taps - 1 times all channels].
    """
    _, taps, channels = convolution.weight.shape
    block = ConvolutionBlock(
        x=x,
        places=convolution.places,
        input_gates=convolution.input_gates,
        output_gates=convolution.output_gates,
        weight=convolution.weight,
        bias=convolution.bias,
        out=out,
        inputs=inputs,
        columns=x.shape[1],
        channels=channels,
        taps=taps,
        is_silu=convolution.is_silu,
    )
    block.spans.set(count=spans.count, starts=spans.starts, parts=spans.parts)
    return block


def delta_block(
    delta: DeltaRule,
    qkv: torch.Tensor,
    gates: torch.Tensor,
    out: torch.Tensor,
    matrices: torch.Tensor,
    spans: StateSpans,
) -> DeltaBlock:
    """For computing `out` [rows, heads * v_dim] from qkv [rows, channels] and gates [rows,
    columns], with states `matrices` [state slots, 1, heads * k_dim * v_dim].
    """
    block = DeltaBlock(
        qkv=qkv,
        gates=gates,
        z_places=delta.z_places,
        a_places=delta.a_places,
        b_places=delta.b_places,
        rates=delta.rates,
        biases=delta.biases,
        weight=delta.norm.weight,
        out=out,
        matrices=matrices,
        columns=gates.shape[1],
        key_heads=delta.key_heads,
        heads=len(delta.rates),
        k_dim=delta.k_dim,
        v_dim=delta.v_dim,
        epsilon=delta.norm.epsilon,
    )
    block.spans.set(count=spans.count, starts=spans.starts, parts=spans.parts)
    return block


def space_block(
    space: StateSpace,
    x: torch.Tensor,
    steps: torch.Tensor,
    out: torch.Tensor,
    matrices: torch.Tensor,
    spans: StateSpans,
) -> SpaceBlock:
    """For computing `out` [rows, heads * p_dim] from x [rows, channels] and steps [rows, columns],
    with states `matrices` [state slots, 1, heads * n_dim * p_dim].
    """
    block = SpaceBlock(
        x=x,
        steps=steps,
        places=space.step_places,
        rates=space.rates,
        biases=space.biases,
        skips=space.skips,
        out=out,
        matrices=matrices,
        columns=steps.shape[1],
        groups=space.groups,
        n_dim=space.n_dim,
        p_dim=space.p_dim,
        least=space.least,
        most=space.most,
    )
    block.spans.set(count=spans.count, starts=spans.starts, parts=spans.parts)
    return block
