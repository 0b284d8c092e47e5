"""Reads the mixtures of experts of a transformers model that was made row-wise, as the row of its
class in the table of families says (`model.mixtures`).
"""

from __future__ import annotations

from operator import attrgetter
from typing import Any

import torch
from torch import nn

from radixserve.kernels.cpu.activation import Activation
from radixserve.kernels.cpu.experts import MOST_EXPERTS
from radixserve.kernels.cpu.gemm.call import Gemm
from radixserve.model.experts import PackedExperts
from radixserve.model.families import Mixture
from radixserve.model.linear import PackedLinear
from radixserve.model.read_activation import NotRead, activation_of, constants_of
from radixserve.model.weights import Experts, Mlp, Norm, Router

_CORRECTIONS = ("e_score_correction_bias", "moe_statics.e_score_correction_bias", "expert_bias")
_SCALES = ("routed_scaling_factor", "router_scaling_factor", "route_scale")


def has_experts(layer: nn.Module, mixture: Mixture | None) -> bool:
    """Whether a layer has experts in the place of an MLP."""
    return mixture is not None and find(layer, mixture.experts) is not None


def find(module: Any, path: str) -> Any:
    """What stands at a path of attributes; None if there is no such thing."""
    try:
        return attrgetter(path)(module)
    except AttributeError:
        return None


def experts_of(
    layer: Any,
    config: Any,
    mixture: Mixture,
    shared: Mlp | None,
    norm: Norm | None,
    post_norm: Norm | None,
) -> Experts:
    """The mixture of experts of a layer.

    Raises:
        NotRead: the kernels do not compute what it does.
    """
    experts = find(layer, mixture.experts)
    if not isinstance(experts, PackedExperts):
        raise NotRead(f"{type(experts).__name__} holds its experts in a form of its own")
    clamp, module = mixture.clamp(config), experts.activation
    activation = Activation.CLAMPED_SWIGLU if clamp else activation_of(module)
    gate = find(layer, mixture.shared_gate)
    return Experts(
        norm=norm,
        router=_router(layer, config, mixture, experts.up.weights[0].dtype),
        up=experts.up,
        activation=activation,
        is_gated=experts.has_gate,
        down=experts.down,
        constants=torch.tensor(clamp) if clamp else constants_of(module, activation),
        shared=shared,
        shared_gate=None if gate is None else gate.packed,
        scale=0.5 if mixture.halves(config) else 1.0,
        post_norm=post_norm,
    )


def _router(layer: Any, config: Any, mixture: Mixture, dtype: torch.dtype) -> Router:
    """How experts are chosen. The modules of routers have attributes of common names; which of two
    parents has one differs.
    """
    parents = [find(layer, mixture.router)]
    parents += [find(layer, path.rpartition(".")[0]) for path in (mixture.router, mixture.experts)]
    logits = _logits(parents[0], dtype)
    if logits.out_features > MOST_EXPERTS:
        raise NotRead(f"{logits.out_features} experts are too many")
    correction = _first(parents, *_CORRECTIONS)
    return Router(
        logits=logits,
        choices=int(_first(parents, "top_k")),
        scores=mixture.scores(config),
        correction=None if correction is None else correction.detach().float().reshape(-1),
        groups=int(_first(parents, "num_group") or 1),
        kept_groups=int(_first(parents, "topk_group") or 1),
        best_of_group=mixture.best_of_group,
        is_normalised=mixture.normalises(parents[0]),
        least_sum=float(_first(parents, "norm_min") or 1e-20),
        scale=float(_first(parents, *_SCALES) or 1.0),
    )


def _logits(router: Any, dtype: torch.dtype) -> Gemm:
    """The weight of a router, packed for activations of `dtype`."""
    if not isinstance(router, PackedLinear):
        return Gemm(router.weight, getattr(router, "bias", None), dtype)
    if router.packed.dtype != dtype:
        raise NotRead("the router computes in another dtype than the rest")
    return router.packed


def _first(parents: list[Any], *paths: str) -> Any:
    """The first of some attributes that one of some modules has; None if none has one."""
    found = (find(parent, path) for parent in parents for path in paths)
    return next((each for each in found if each is not None), None)
