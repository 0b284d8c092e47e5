"""Weights of experts in MXFP4, as gpt-oss has them: blocks of 32 inputs, two codes a byte, the
first one in its lower bits, and an exponent for each block. They are read as bfloat16, which holds
every value.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from radixserve.checkpoints.headers import StoredTensor, Tensor, short
from radixserve.checkpoints.quantised_tensors import WidenedTensor
from radixserve.errors import ModelRefused

_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def weights_of_experts(module: str, parts: Mapping[str, StoredTensor]) -> dict[str, Tensor]:
    """The weights of a module by their last names, of which some may be in MXFP4."""
    found: dict[str, Tensor] = dict(parts)
    for part in parts:
        if part.endswith("_blocks"):
            name = part.removesuffix("_blocks")
            blocks, scales = parts[part], parts.get(f"{name}_scales")
            found[name] = _weight(f"{module}.{name}", blocks, scales)
            del found[part], found[f"{name}_scales"]
    return found


def _weight(name: str, blocks: StoredTensor, scales: StoredTensor | None) -> WidenedTensor:
    shape = blocks.get_shape()
    fits = blocks.get_dtype() == "U8" and len(shape) == 4 and shape[3] == 16 and all(shape)
    is_whole = scales and scales.get_dtype() == "U8" and scales.get_shape() == shape[:3]
    if not fits or not is_whole or scales is None:
        raise ModelRefused(
            f"{blocks.file} is not served: the weight {short(name)} is no MXFP4 of experts with "
            "blocks of 16 bytes and a scale for each."
        )
    experts, outputs, groups, _ = shape
    # The model's own weight has inputs before outputs.
    whole = experts, groups * 32, outputs
    return WidenedTensor(
        name, blocks.file, whole, "BF16", lambda: values_of(blocks[...], scales[...])
    )


def values_of(blocks: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """The values [experts, inputs, outputs], bfloat16, of blocks [experts, outputs, blocks, 16] and
    exponents [experts, outputs, blocks], both bytes.
    """
    table = torch.tensor((*_E2M1, *(-each for each in _E2M1)), dtype=torch.bfloat16)
    codes, factors = blocks.int(), torch.exp2(scales.float() - 127).bfloat16()
    values = torch.stack([table[codes & 15], table[codes >> 4]], -1).flatten(3)
    values *= factors[..., None]
    return values.flatten(2).transpose(1, 2).contiguous()
