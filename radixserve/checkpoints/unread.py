"""Weights of linears that stay in their files while transformers builds a model, and are read when
they are packed: those that stay codes, and those that are quantised then, so that the model never
lies in memory whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from radixserve.checkpoints.headers import Checkpoint, Tensor


@dataclass(frozen=True, slots=True)
class UnreadLinear:
    """Stands for a tensor while transformers builds its model: zeros that share their memory."""

    tensor: Tensor
    dtype: torch.dtype  # of the zeros

    def get_shape(self) -> list[int]:
        """The shape of the whole tensor."""
        return self.tensor.get_shape()

    def get_dtype(self) -> str:
        """The dtype as safetensors names it."""
        return self.tensor.get_dtype()

    def __getitem__(self, key: Any) -> torch.Tensor:
        return torch.zeros((), dtype=self.dtype).expand(self.get_shape())[key]

    def __deepcopy__(self, memo: dict[int, Any]) -> UnreadLinear:
        return self

    def read(self, dtype: torch.dtype) -> torch.Tensor:
        """The tensor itself."""
        return self.tensor[...].to(dtype)


def weights_of_linears(checkpoint: Checkpoint, empty: PreTrainedModel) -> frozenset[str]:
    """The names of the tensors that are, as they are stored, the weight of a linear and of nothing
    else. `empty` is the model without memory.
    """
    table = getattr(empty.get_input_embeddings(), "weight", None)
    linears = {
        f"{name}.weight": list(module.weight.shape)
        for name, module in empty.named_modules()
        if type(module) is nn.Linear and module.weight is not table
    }
    tensors = checkpoint.tensors
    return frozenset(
        name
        for name, shape in linears.items()
        if name in tensors and tensors[name].get_shape() == shape and tensors[name].holds_floats
    )


def leave_unread(model: PreTrainedModel, tensors: dict[str, UnreadLinear]) -> None:
    """Mark linears of a model whose weights were not read: they have no memory, and an attribute
    `unread`.
    """
    for name, tensor in tensors.items():
        linear = model.get_submodule(name.removesuffix(".weight"))
        linear.unread = tensor
        linear.weight = nn.Parameter(linear.weight.to("meta"), requires_grad=False)
