"""Makes a loaded transformers module row-wise: what a token's row computes does not depend on how
many other rows there are.

It replaces linears by packed ones (linears of the same input are fused), an embedding that shares
its weight with one of them by a lookup in the packed weight, and keeps activations and
rotary tables on the vectorised path of torch: an element that falls into a scalar remainder, at the
end of a tensor or of a thread's share, is rounded by other code. The structure of the model stays
transformers'.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from itertools import groupby
from typing import Any, TypeGuard, cast

import torch
from torch import nn
from transformers.activations import ACT2CLS
from transformers.models.falcon.modeling_falcon import FalconLinear
from transformers.pytorch_utils import Conv1D

from radixserve.checkpoints.stored_codes import StoredCodes
from radixserve.checkpoints.unread import UnreadLinear
from radixserve.kernels.cpu.gemm.call import Gemm
from radixserve.kernels.cpu.gemm.formats import Format
from radixserve.kernels.cpu.gemm.stacked import StackedGemm
from radixserve.model.elementwise import RowwiseActivation, RowwiseRotary
from radixserve.model.experts import (
    PackedExperts,
    compute_rowwise,
    in_common_form,
    is_packable,
)
from radixserve.model.linear import (
    FusedLinears,
    FusedPart,
    PackedEmbedding,
    PackedLinear,
)
from radixserve.model.quantise import OUTPUT_BITS, packed_linear
from radixserve.progress import long_stage

_SIBLINGS = (
    ("q_proj", "k_proj", "v_proj"),
    ("query", "key", "value"),
    ("gate_proj", "up_proj"),
    ("w1", "w3"),
    ("in_proj_qkvz", "in_proj_ba"),
    ("in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a"),
)

_ROUTERS = ("gate", "router", "shared_expert_gate")
"""Names of linears that are not quantised, because they decide which experts compute."""

_SCALED_EMBEDDING = "ScaledWordEmbedding"  # the end of the names of such classes
_LINEARS = (nn.Linear, Conv1D, FalconLinear)
_ACTIVATIONS = tuple(
    {entry[0] if isinstance(entry, tuple) else entry for entry in ACT2CLS.values()}
)


def make_rowwise(model: nn.Module, bits: int | None = None) -> str | None:
    """Change `model` (on the CPU) in place. Returns None, or why rows may still depend on each
    other. An original weight is dropped as soon as it is packed. Weights of floats are quantised to
    codes of so many `bits`.
    """
    _replace_elementwise(model)
    packing = _Packing(model, bits)
    with long_stage("packing linear layers", packing.total, lambda: packing.done):
        packing.run()
    blocks = _pack_experts(model, bits)
    return _unpacked(model, {id(each) for block in blocks for each in block.modules()})


def _pack_experts(model: nn.Module, bits: int | None) -> list[nn.Module]:
    """Pack the experts of each layer; returns those modules that call them which are row-wise
    then.
    """
    blocks = [parent for parent in model.modules() if any(map(is_packable, parent.children()))]
    for parent in blocks:
        for name, child in list(parent.named_children()):
            if is_packable(child):
                setattr(parent, name, PackedExperts(in_common_form(child), bits))
    return [block for block in blocks if compute_rowwise(block)]


class _Packing:
    """Replaces the linears of one model and counts them."""

    def __init__(self, model: nn.Module, bits: int | None) -> None:
        self._model, self._bits = model, bits
        output = getattr(model, "get_output_embeddings", lambda: None)()
        self._output = output
        self._tables = {id(each.weight) for each in model.modules() if _is_plain_embedding(each)}
        self.total = sum(type(each) in _LINEARS for each in model.modules())
        self.done = 0

    def run(self) -> None:
        """The output layer comes last: if its weight is that of the embedding, both are there
        until it is packed.
        """
        parents = [each for each in self._model.modules() if type(each) not in _LINEARS]
        for parent in reversed(parents):
            for names in _SIBLINGS:
                self._fuse(parent, names)
            for name in [name for name, child in parent.named_children() if _is_linear(child)]:
                self._replace(parent, name)
        for embedding in [each for each in self._model.modules() if _is_plain_embedding(each)]:
            if embedding.weight.is_meta:
                self._share(embedding.weight, _packed([embedding], None))

    def _replace(self, parent: nn.Module, name: str) -> None:
        linear = getattr(parent, name)
        packed = self._packed([linear], self._bits_of(linear, name))
        setattr(parent, name, PackedLinear(packed))
        if id(linear.weight) in self._tables:
            self._share(linear.weight, packed)

    def _share(self, table: torch.Tensor, packed: Gemm) -> None:
        """Look embeddings with the weight `table` up in `packed`."""
        for parent in list(self._model.modules()):
            for name, child in list(parent.named_children()):
                if _is_plain_embedding(child) and child.weight is table:
                    shared = PackedEmbedding.of(child, packed, is_quantised=self._bits is not None)
                    if shared is not None:
                        setattr(parent, name, shared)

    def _fuse(self, parent: nn.Module, names: tuple[str, ...]) -> None:
        linears = [getattr(parent, name, None) for name in names]
        plain = [linear for linear in linears if type(linear) is nn.Linear]
        if len(plain) < len(names) or len({linear.in_features for linear in plain}) > 1:
            return
        fused = FusedLinears(
            self._packed(plain, self._bits), [linear.out_features for linear in plain]
        )
        for index, name in enumerate(names):
            setattr(parent, name, FusedPart(fused, index))

    def _bits_of(self, linear: nn.Module, name: str) -> int | None:
        """To codes of how many bits a linear of this name is quantised."""
        if self._bits is None or name in _ROUTERS:
            return None
        return OUTPUT_BITS if linear is self._output else self._bits

    def _packed(self, linears: Sequence[nn.Module], bits: int | None) -> Gemm:
        packed = _packed(linears, bits)
        self.done += len(linears)
        return packed


def _is_linear(module: nn.Module) -> bool:
    """Whether it is exactly one of these classes: a subclass may have a forward of its own, as
    routers and quantised linears do.
    """
    return type(module) in _LINEARS


def _is_plain_embedding(module: nn.Module) -> TypeGuard[nn.Embedding]:
    """Whether it only looks rows up, and perhaps scales them."""
    kind = type(module)
    is_scaled = isinstance(module, nn.Embedding) and kind.__name__.endswith(_SCALED_EMBEDDING)
    return (kind is nn.Embedding or is_scaled) and module.max_norm is None


def _unpacked(model: nn.Module, rowwise: Container[int]) -> str | None:
    """Why rows may depend on their number although all linears are packed; None if they do not.
    `rowwise` are the identities of modules whose products are row-wise all the same.
    """
    for module in model.modules():
        if isinstance(module, nn.Embedding) or id(module) in rowwise:
            continue  # of an embedding a row is looked up, nothing is multiplied
        if type(module).__name__.endswith("Norm") or _is_depthwise(module):
            continue  # numbers are multiplied one by one
        if any(weight.dim() > 1 for weight in module.parameters(recurse=False)):
            return (
                f"{type(module).__name__} (experts, or a linear layer of its own kind) multiplies "
                "by weights that are not packed"
            )
    return None


def _is_depthwise(module: nn.Module) -> bool:
    """Whether it is a convolution of each channel by itself."""
    return isinstance(module, nn.Conv1d) and module.groups == module.in_channels


def _packed(linears: Sequence[nn.Module], bits: int | None) -> Gemm:
    """The packed weights of some linears, one below the other; floats are quantised to `bits`."""
    parts = [_packed_alike(list(each), bits) for _, each in groupby(linears, _format_of)]
    return parts[0] if len(parts) == 1 else StackedGemm(parts)


def _stored(linear: nn.Module) -> StoredCodes | None:
    """The weight of a linear if it is codes that are still in their file."""
    return cast(StoredCodes | None, getattr(linear, "stored", None))


def _format_of(linear: nn.Module) -> Format | None:
    """The format of a weight that is codes."""
    stored = _stored(linear)
    return None if stored is None else stored.format


def _packed_alike(linears: Sequence[nn.Module], bits: int | None) -> Gemm:
    """The packed weights of linears whose codes have one format, or which have floats."""
    first, *others = [_stored(linear) for linear in linears]
    if first is None:
        return packed_linear(*_weight_and_bias(linears), bits)
    weight = linears[0].weight
    assert isinstance(weight, torch.Tensor)
    codes = first.packed_with([each for each in others if each is not None])
    return Gemm(codes, _bias(linears), weight.dtype)


def _weight_and_bias(
    linears: Sequence[nn.Module],
) -> tuple[torch.Tensor, torch.Tensor | None]:
    weights = [_weight(linear) for linear in linears]
    return torch.cat(weights) if len(weights) > 1 else weights[0], _bias(linears)


def _bias(linears: Sequence[Any]) -> torch.Tensor | None:
    biases = [getattr(linear, "bias", None) for linear in linears]
    if all(each is None for each in biases):
        return None
    lengths = [linear.weight.shape[0] for linear in linears]
    return torch.cat(
        [torch.zeros(n) if b is None else b for n, b in zip(lengths, biases, strict=True)]
    )


def _weight(linear: nn.Module) -> torch.Tensor:
    unread, weight = getattr(linear, "unread", None), linear.weight
    assert isinstance(weight, torch.Tensor), "a linear layer has a weight"
    if isinstance(unread, UnreadLinear):
        weight = unread.read(weight.dtype)
    return weight.T if isinstance(linear, Conv1D) else weight


def _replace_elementwise(model: nn.Module) -> None:
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, _ACTIVATIONS):
                setattr(parent, name, RowwiseActivation(child))
            elif type(child).__name__.endswith("RotaryEmbedding"):
                setattr(parent, name, RowwiseRotary(child))
