"""Reads which activation a module of transformers is."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from radixserve.kernels.cpu.activation import Activation

_ACTIVATIONS = {
    "SiLU": Activation.SILU,
    "SiLUActivation": Activation.SILU,
    "GELUActivation": Activation.GELU,
    "GELUTanh": Activation.GELU_TANH,
    "NewGELUActivation": Activation.GELU_TANH,
    "FastGELUActivation": Activation.GELU_TANH,
    "AccurateGELUActivation": Activation.GELU_TANH,
    "BloomGelu": Activation.GELU_TANH,
    "GELU": Activation.GELU,
    "ReLU": Activation.RELU,
    "ReLUSquaredActivation": Activation.RELU_SQUARED,
    "XIELUActivation": Activation.XIELU,
}


class NotRead(Exception):
    """The kernels do not compute what a module does; the sentence says what that is."""


def activation_of(module: Any) -> Activation:
    """The function that a module is.

    Raises:
        NotRead: there is no kernel for it.
    """
    if module is F.silu:  # some classes call it without a module
        return Activation.SILU
    name = type(_inner(module)).__name__
    if name not in _ACTIVATIONS:
        raise NotRead(f"there is no kernel for the activation {name}")
    return _ACTIVATIONS[name]


def constants_of(module: Any, function: Activation) -> torch.Tensor | None:
    """The constants of an activation, as its kernel reads them."""
    if function != Activation.XIELU:
        return None
    own = _inner(module)
    positive, negative = F.softplus(own.alpha_p), own.beta + F.softplus(own.alpha_n)
    parts = positive, negative, own.beta, own.eps
    return torch.cat([each.detach().float().reshape(1) for each in parts])


def _inner(module: Any) -> Any:
    """The activation in a `RowwiseActivation`."""
    return getattr(module, "inner", module)
