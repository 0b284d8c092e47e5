"""The blocks with which the kernels of latent attention (`kernels.cpu.latent`) are called, but for
what is rotated.
"""

from __future__ import annotations

import torch

from radixserve.kernels.cpu.latent import HeadsBlock, HeadWeights, LatentBlock
from radixserve.model.weights import Latent
from radixserve.tensors.kv import KVPool


def latent_block(
    latent: Latent, kv: torch.Tensor, pool: KVPool, layer: int, slots: torch.Tensor
) -> LatentBlock:
    """For K and V of a layer, which are made of `kv` [rows, rank + rotated]."""
    return LatentBlock(
        kv=kv,
        weight=latent.norm.weight,
        k=pool.k[layer],
        v=pool.v[layer],
        slots=slots,
        rows=len(kv),
        rank=pool.shape.v_dim,
        rotated=latent.rotated,
        k_row=pool.shape.k_row,
        v_row=pool.shape.v_row,
        epsilon=latent.norm.epsilon,
    )


def heads_block(
    weights: HeadWeights, x: torch.Tensor, out: torch.Tensor, rotated: int
) -> HeadsBlock:
    """For x [rows, heads * (inputs + rotated)], whose product with the heads' weights goes to
    `out` [rows, heads * (outputs + rotated)].
    """
    heads, inputs, padded = weights.weight.shape
    return HeadsBlock(
        x=x,
        weight=weights.weight,
        order=weights.order,
        out=out,
        rows=len(x),
        heads=heads,
        inputs=inputs,
        outputs=weights.outputs,
        padded=padded,
        rotated=rotated,
    )
