"""Reads layers with states out of a transformers model that was made row-wise. Each function reads
the modules of one kind of layer; a row of the table of families names it (`Family.recurrence`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from radixserve.kernels.cpu.convolution import MOST_CHANNELS, MOST_TAPS
from radixserve.kernels.cpu.delta_rule import MOST_DIM
from radixserve.kernels.cpu.vector import LANES
from radixserve.model.linear import packed_weight
from radixserve.model.read_activation import NotRead
from radixserve.model.weights import Convolution, DeltaRule, Norm, Recurrence, StateSpace

Runs = Sequence[tuple[int, int]]
"""Where the channels of a convolution lie in a row: first column and number, in their order."""


def short_convolution(module: Any, config: Any) -> Recurrence:
    """The layer of LFM2: a convolution of b * x, times c, where a linear computes b, c and x.

    Raises:
        NotRead: the kernels do not compute what the modules do.
    """
    width = int(config.hidden_size)
    return Recurrence(
        inputs=packed_weight(module.in_proj),
        convolution=_convolution(
            module.conv, [(2 * width, width)], [(0, width)], [(width, width)], is_silu=False
        ),
        o=packed_weight(module.out_proj),
    )


def gated_delta(module: Any, config: Any) -> Recurrence:
    """The layer of Qwen3-Next and Qwen3.5: the gated delta rule on a convolution of queries, keys
    and values.

    Raises:
        NotRead: as `short_convolution`.
    """
    heads, key_heads = module.num_v_heads, module.num_k_heads
    k_dim, v_dim = module.head_k_dim, module.head_v_dim
    if max(k_dim, v_dim) > MOST_DIM or v_dim % LANES or module.activation != "silu":
        raise NotRead("there is no kernel for linear attention of these sizes, or its activation")
    in_groups = hasattr(module, "in_proj_qkvz")
    layout = (
        _groups(heads, key_heads, k_dim, v_dim)
        if in_groups
        else _rows(heads, key_heads, k_dim, v_dim)
    )
    return Recurrence(
        inputs=packed_weight(module.in_proj_qkvz if in_groups else module.in_proj_qkv),
        convolution=_convolution(module.conv1d, layout.qkv, is_silu=True),
        o=packed_weight(module.out_proj),
        rule=DeltaRule(
            key_heads=key_heads,
            k_dim=k_dim,
            z_places=torch.tensor(layout.z),
            a_places=torch.tensor(layout.a),
            b_places=torch.tensor(layout.b),
            rates=-module.A_log.detach().float().exp(),
            biases=module.dt_bias.detach().float().clone(),
            norm=Norm(
                module.norm.weight.detach().float().clone(), None, module.norm.variance_epsilon
            ),
        ),
    )


def mamba2(module: Any, config: Any) -> Recurrence:
    """The layer of Mamba 2 in Granite 4 hybrid and Bamba: a linear computes gates, x, B, C and
    steps.

    Raises:
        NotRead: as `short_convolution`.
    """
    heads, p_dim, groups = module.num_heads, module.head_dim, module.n_groups
    n_dim, inner, norm = module.ssm_state_size, module.intermediate_size, module.norm
    if max(n_dim, p_dim) > MOST_DIM or p_dim % LANES or module.activation != "silu":
        raise NotRead("there is no kernel for a state space of these sizes, or its activation")
    if getattr(norm, "group_size", inner) != inner:
        raise NotRead("there is no kernel for a state space whose groups are normed one by one")
    channels = inner + 2 * groups * n_dim
    least, most = module.time_step_limit
    return Recurrence(
        inputs=packed_weight(module.in_proj),
        convolution=_convolution(
            module.conv1d, [(inner, inner), (2 * inner, 2 * groups * n_dim)], is_silu=True
        ),
        o=packed_weight(module.out_proj),
        rule=StateSpace(
            groups=groups,
            n_dim=n_dim,
            p_dim=p_dim,
            step_places=inner + channels + torch.arange(heads),
            gate_places=torch.zeros(1, dtype=torch.int64),
            rates=-module.A_log.detach().float().exp(),
            biases=module.dt_bias.detach().float().clone(),
            skips=module.D.detach().float().clone(),
            least=float(least),
            most=float(most),
            norm=Norm(norm.weight.detach().float().clone(), None, norm.variance_epsilon),
        ),
    )


class _Layout(NamedTuple):
    """Where things lie in a row: the channels of q, k and v, and z, a and b of each head."""

    qkv: Runs
    z: list[int]
    a: list[int]
    b: list[int]


def _rows(heads: int, key_heads: int, k_dim: int, v_dim: int) -> _Layout:
    """The layout of Qwen3.5: q, k, v, z, b, a of all heads."""
    z = 2 * key_heads * k_dim + heads * v_dim
    b = z + heads * v_dim
    return _Layout(
        qkv=[(0, 2 * key_heads * k_dim), (2 * key_heads * k_dim, heads * v_dim)],
        z=[z + head * v_dim for head in range(heads)],
        a=[b + heads + head for head in range(heads)],
        b=[b + head for head in range(heads)],
    )


def _groups(heads: int, key_heads: int, k_dim: int, v_dim: int) -> _Layout:
    """The layout of Qwen3-Next: for each key head its q, k, and the v and z of its value heads;
    then for each key head the b and a of its value heads.
    """
    each = heads // key_heads  # value heads of a key head
    group = 2 * k_dim + 2 * each * v_dim
    q = [(key * group, k_dim) for key in range(key_heads)]
    k = [(first + k_dim, k_dim) for first, _ in q]
    v = [(first + 2 * k_dim, each * v_dim) for first, _ in q]
    gates = key_heads * group
    return _Layout(
        qkv=[*q, *k, *v],
        z=[first + each * v_dim + n * v_dim for first, _ in v for n in range(each)],
        a=[gates + key * 2 * each + each + n for key in range(key_heads) for n in range(each)],
        b=[gates + key * 2 * each + n for key in range(key_heads) for n in range(each)],
    )


def _convolution(
    module: Any,
    channels: Runs,
    input_gates: Runs = (),
    output_gates: Runs = (),
    *,
    is_silu: bool,
) -> Convolution:
    """The convolution that a depthwise `nn.Conv1d` is."""
    weight = module.weight.detach().float()[:, 0]
    if weight.shape[1] > MOST_TAPS:
        raise NotRead(f"there is no kernel for a convolution of {weight.shape[1]} rows")
    size = math.gcd(*(length for _, length in channels))
    size = max(each for each in range(1, MOST_CHANNELS + 1) if not size % each)
    return Convolution(
        weight=weight.view(-1, size, weight.shape[1]).transpose(1, 2).contiguous(),
        bias=None if module.bias is None else module.bias.detach().float().clone(),
        places=_pieces(channels, size),
        input_gates=_pieces(input_gates, size) if input_gates else None,
        output_gates=_pieces(output_gates, size) if output_gates else None,
        is_silu=is_silu,
    )


def _pieces(runs: Runs, size: int) -> torch.Tensor:
    """Where pieces of `size` columns begin, int64."""
    return torch.cat([torch.arange(first, first + count, size) for first, count in runs])
