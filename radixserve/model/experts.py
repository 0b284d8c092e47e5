"""Mixtures of experts, row-wise: what a token's row computes does not depend on which other rows
choose the same expert.

`PackedExperts` takes the place of the module that holds the experts of a layer. Each expert is two
packed linears (`kernels.cpu.gemm`), and the results of the experts that a token chose are added in
the order of its choices. What surrounds the experts in a layer (the router, which chooses them)
stays transformers' code. Its products and curves are computed row-wise while it runs
(`RowwiseCalls`).

The classes of transformers whose experts lie in tensors of three dimensions have a common form,
because transformers has several implementations for all of them. Their attributes tell it: whether
weights are transposed, whether there are biases, and what stands between the two linears.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers.models.dbrx.modeling_dbrx import DbrxExperts

from radixserve.kernels.cpu.gemm.call import Gemm
from radixserve.kernels.cpu.gemm.grouped import GroupedGemm
from radixserve.model.elementwise import in_blocks
from radixserve.model.quantise import packed_linear

_CURVES = {
    *(torch.sigmoid, torch.Tensor.sigmoid, torch.tanh, torch.Tensor.tanh, torch.exp),
    *(torch.Tensor.exp, F.silu, F.gelu, F.sigmoid, F.softplus, F.tanh),
}


class PackedExperts(nn.Module):
    """The experts of one layer."""

    def __init__(self, experts: Any, bits: int | None = None) -> None:
        """Packs the weights of `experts` in the common form, which are dropped there, quantised to
        codes of so many `bits`.
        """
        super().__init__()
        self.has_gate = bool(experts.has_gate)
        self._in_pairs = self.has_gate and not experts.is_concatenated
        name = "gate_up_proj" if self.has_gate else "up_proj"
        self.up = GroupedGemm(_packed(experts, name, bits, self._in_pairs))
        self.down = GroupedGemm(_packed(experts, "down_proj", bits))
        self.activation = getattr(experts, "act_fn", None)
        self._between = experts._apply_gate if experts.has_gate else experts.act_fn
        self._norm = experts.post_expert_norm if experts.has_post_expert_norm else None

    def forward(
        self, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        """The sum of the results [rows, width] of the experts that each row of `hidden` chose:
        `index` [rows, choices], weighted by `weights` of the same shape. It has the shape of
        `hidden`, of which the last dimension is the width.
        """
        rows, choices = index.shape
        x, chosen = hidden.reshape(rows, -1), index.reshape(-1)
        out = hidden.new_empty(rows * choices, self.down.out_features)
        for expert in np.unique(chosen.numpy()).tolist():
            places = (chosen == expert).nonzero()[:, 0]
            out[places] = self._expert(expert, x[places // choices])
        total = _sum_of_choices(out.view(rows, choices, -1), weights)
        return total.to(hidden.dtype).view(hidden.shape)

    def _expert(self, number: int, x: torch.Tensor) -> torch.Tensor:
        inner = self.up.weights[number](x)
        if self._in_pairs:
            inner = torch.stack(inner.chunk(2, -1), -1).flatten(-2)
        out = self.down.weights[number](self._between(inner))
        return out if self._norm is None else self._norm(out)


def _sum_of_choices(out: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """The sum over the second of three dimensions, in its order, float32."""
    total = out[:, 0].float() * weights[:, :1].float()
    for choice in range(1, out.shape[1]):
        total += out[:, choice].float() * weights[:, choice, None].float()
    return total


def _packed(experts: Any, name: str, bits: int | None, in_pairs: bool = False) -> list[Gemm]:
    """One of the weights of all experts, packed; the tensor of all is dropped. If outputs of gate
    and up take turns (`in_pairs`), those of the gate come first in what is packed.
    """
    weight = getattr(experts, name)
    biases = getattr(experts, f"{name}_bias") if experts.has_bias else [None] * len(weight)
    packed = []
    for each, bias in zip(weight, biases, strict=True):
        rows = each.T if experts.is_transposed else each
        if in_pairs:
            rows = torch.cat([rows[::2], rows[1::2]])
            bias = None if bias is None else torch.cat([bias[::2], bias[1::2]])
        packed.append(packed_linear(rows.contiguous(), bias, bits))
    delattr(experts, name)
    return packed


def is_packable(module: nn.Module) -> bool:
    """Whether `module` holds experts that can be packed."""
    return isinstance(module, DbrxExperts) or (
        hasattr(module, "_apply_gate") and hasattr(module, "is_transposed")
    )


def in_common_form(module: nn.Module) -> Any:
    """Experts in the common form. Those of DBRX lie one behind the other in three matrices, the
    last one transposed.
    """
    return _DbrxForm(module) if isinstance(module, DbrxExperts) else module


class _DbrxForm:
    """The common form of `DbrxExperts`."""

    has_gate = is_concatenated = True
    is_transposed = has_bias = has_post_expert_norm = False

    def __init__(self, experts: DbrxExperts) -> None:
        own, shape = experts.mlp, (experts.num_experts, experts.ffn_hidden_size, -1)
        self.gate_up_proj = torch.cat([own.w1.view(shape), own.v1.view(shape)], 1)
        self.down_proj = own.w2.view(shape).transpose(1, 2)
        self.act_fn = own.activation_fn

    def _apply_gate(self, gate_up: torch.Tensor) -> torch.Tensor:
        gate, up = gate_up.chunk(2, -1)
        result: torch.Tensor = self.act_fn(gate) * up
        return result


class RowwiseCalls(TorchFunctionMode):
    """While it is active, products with the given weights are packed ones, and curves are computed
    in blocks of whole vectors.
    """

    def __init__(self, weights: Mapping[torch.Size, torch.Tensor]) -> None:
        """`weights` are known by their shapes, because code converts them before it uses them."""
        super().__init__()
        self._weights = weights
        self._packed: dict[tuple[torch.Size, torch.dtype], Gemm] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.linear and args[1].shape in self._weights:
            return self._linear(*args, **kwargs)
        if func in _CURVES:
            return in_blocks(lambda part: func(part, *args[1:], **kwargs), args[0])
        return func(*args, **kwargs)

    def _linear(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        key = weight.shape, x.dtype
        if key not in self._packed:
            self._packed[key] = Gemm(self._weights[weight.shape], bias, x.dtype)
        return self._packed[key](x)


def compute_rowwise(block: nn.Module) -> bool:
    """Have `block` run its forward pass with `RowwiseCalls`, for the weights of its modules that
    are not packed. False if it cannot, because two of them have the same shape.
    """
    unpacked = [each.detach() for each in block.parameters() if each.dim() == 2]
    weights = {each.shape: each for each in unpacked}
    if len(weights) < len(unpacked):
        return False
    block.forward = _within(RowwiseCalls(weights), block.forward)
    return True


def compute_curves_rowwise(module: nn.Module) -> None:
    """Have `module` run its forward pass with `RowwiseCalls`, for what it computes by curves."""
    module.forward = _within(RowwiseCalls({}), module.forward)


def _within(calls: RowwiseCalls, forward: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(forward)
    def run(*args: Any, **kwargs: Any) -> Any:
        with calls:
            return forward(*args, **kwargs)

    return run
