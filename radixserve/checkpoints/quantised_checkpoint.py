"""Makes the weights of a model out of the tensors of a quantised checkpoint, from what its
configuration and its headers say. Reads next to nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from radixserve.checkpoints.headers import Checkpoint, StoredTensor, Tensor
from radixserve.checkpoints.mxfp4 import weights_of_experts
from radixserve.checkpoints.quantisation import Layout, NotServed, Quantisation, quantisation_of
from radixserve.checkpoints.quantised_modules import ModuleTensors
from radixserve.checkpoints.quantised_tensors import CodedTensor
from radixserve.errors import ModelRefused

log = logging.getLogger(__name__)

_FLOATS = ("F32", "F16", "BF16")
_NOT_USED = (
    *("input_scale", "input_zero_point", "output_scale", "output_zero_point"),
    *("activation_scale", "q_scale", "k_scale", "v_scale"),
)
"""The names of tensors by which activations, keys and values would be rounded, which they are not
here.
"""


def read_quantised(checkpoint: Checkpoint, config: PretrainedConfig, folder: Path) -> None:
    """Give a checkpoint the weights that its quantised tensors make, and remove what says that they
    are quantised from the configuration, for which transformers would want other packages.

    Raises:
        ModelRefused: it is quantised in a way that is not served, or is damaged.
    """
    try:
        quantisation = quantisation_of(getattr(config, "quantization_config", None))
    except NotServed as error:
        raise ModelRefused(f"The model in {folder} {error}.") from error
    if quantisation is None:
        return
    del config.quantization_config
    checkpoint.tensors = whole_weights(checkpoint.stored, quantisation)
    if not checkpoint.is_quantised:
        raise ModelRefused(
            f"The model in {folder} is quantised by {quantisation.method} as its configuration "
            "says, but none of its weights is."
        )
    coded = sum(isinstance(each, CodedTensor) for each in checkpoint.tensors.values())
    log.info("quantised by %s, %d weights of integers", quantisation.method, coded)
    if quantisation.rounds_activations:
        log.info("activations stay as they are: they are not rounded to integers or to 8 bits")


def whole_weights(
    tensors: Mapping[str, StoredTensor], quantisation: Quantisation
) -> dict[str, Tensor]:
    """The weights of a checkpoint by the names that they have in its model: those that are
    quantised, made of their tensors, and all other tensors as they are.

    Raises:
        ModelRefused: tensors of a weight are missing, or do not fit together.
    """
    modules: dict[str, dict[str, StoredTensor]] = {}
    for name, tensor in tensors.items():
        module, _, part = name.rpartition(".")
        modules.setdefault(module, {})[part] = tensor
    return {
        f"{module}.{part}" if module else part: weight
        for module, parts in modules.items()
        for part, weight in _weights_of(module, parts, quantisation).items()
    }


def _weights_of(
    module: str, parts: Mapping[str, StoredTensor], quantisation: Quantisation
) -> dict[str, Tensor]:
    """The weights of a module by their last names."""
    layout = quantisation.layout
    if layout == Layout.MXFP4:
        return weights_of_experts(module, parts)
    reader, found = ModuleTensors(module, parts, quantisation), dict[str, Tensor]()
    if layout in (Layout.GPTQ, Layout.GPTQ_V2, Layout.AWQ):
        if "qweight" in parts:
            found["weight"] = reader.awq() if layout == Layout.AWQ else reader.gptq()
        return {**_left(parts, reader.taken), **found}
    if "weight_packed" in parts:
        found["weight"] = reader.packed()
    elif "weight" in parts and parts["weight"].get_dtype() not in _FLOATS:
        found["weight"] = reader.of_bytes()
    return {**_left(parts, {*reader.taken, *_NOT_USED}), **found}


def _left(parts: Mapping[str, StoredTensor], taken: set[str]) -> dict[str, Tensor]:
    return {part: each for part, each in parts.items() if part not in taken}


def coded_linears(checkpoint: Checkpoint, empty: PreTrainedModel) -> dict[str, CodedTensor]:
    """The weights, by name, that can stay codes: those of linears of a model, which is given
    without its weights.
    """
    modules, embedding = dict(empty.named_modules()), empty.get_input_embeddings()
    found = {}
    for name, tensor in checkpoint.tensors.items():
        module = modules.get(name.removesuffix(".weight"))
        if isinstance(tensor, CodedTensor) and type(module) is nn.Linear:
            is_shared = module.weight is getattr(embedding, "weight", None)
            if module.weight.shape == tensor.shape and not is_shared and tensor.keeps_codes:
                found[name] = tensor
    return found


def drop_zero_biases(checkpoint: Checkpoint, empty: PreTrainedModel) -> None:
    """Drop the biases that some tools write for quantised linears that have none: zeros."""
    wanted = {name for name, _ in empty.named_parameters()}
    for name, tensor in list(checkpoint.tensors.items()):
        bias = f"{name.removesuffix('weight')}bias"
        is_extra = isinstance(tensor, CodedTensor) and bias not in wanted
        if is_extra and bias in checkpoint.tensors and not checkpoint.tensors[bias][...].any():
            del checkpoint.tensors[bias]
