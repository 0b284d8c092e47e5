"""Fills a transformers model from a GGUF file.

`read_codes` keeps quantised weights as codes, or where they lie in the file; `read_gguf` lets
transformers dequantise all of them, for architectures whose tensors it rearranges in other ways.
"""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers import modeling_gguf_pytorch_utils as hf_gguf

from radixserve.checkpoints.gguf_blocks import FORMATS
from radixserve.checkpoints.gguf_file import GGUF_FILE, GgufCodes, GgufFile, reordered
from radixserve.checkpoints.gguf_header import GgufTensor
from radixserve.errors import ModelRefused

_ROPE = "rope_freqs.weight"  # divisors of rotary frequencies, which models of the Llama 3 kind have
_AS_STORED = (
    hf_gguf.TensorProcessor,
    hf_gguf.LlamaTensorProcessor,
    hf_gguf.Gemma2TensorProcessor,
    hf_gguf.NemotronTensorProcessor,
)
"""What transformers does with tensors of an architecture, where that reorders rows or changes norms
only, so that codes stay codes.
"""


def keeps_codes(architecture: str) -> bool:
    """Whether weights of a file of this architecture can be kept as codes."""
    known = architecture in hf_gguf.GGUF_SUPPORTED_ARCHITECTURES
    return known and _processor(architecture) in _AS_STORED


def serves_codes(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether weights are multiplied from codes on this device, by activations of this dtype."""
    return device.type == "cpu" and dtype in (torch.float32, torch.bfloat16)


def _processor(architecture: str) -> type[hf_gguf.TensorProcessor]:
    found = hf_gguf.TENSOR_PROCESSORS.get(architecture, hf_gguf.TensorProcessor)
    assert isinstance(found, type), "a table of classes"
    return found


def read_codes(
    file: GgufFile, config: PretrainedConfig, dtype: torch.dtype
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The model of a file that keeps codes, and a report such as transformers makes. Linears and
    embeddings whose weights are quantised have no memory for them, and an attribute `stored`, the
    `GgufCodes` of each.
    """
    model = _empty(config, dtype)
    processor = _processor(file.architecture)(config=config.to_dict())
    names = hf_gguf.get_gguf_hf_weights_map(model, processor)
    modules = dict(model.named_modules())
    filled, unexpected, misshapen = set[str](), [], []
    for name, tensor in file.tensors.items():
        if name == _ROPE:
            _divide_frequencies(model, file.floats(tensor))
        elif name not in names:
            unexpected.append(name)
        else:
            parent, _, part = names[name].rpartition(".")
            wanted = getattr(modules[parent], part)
            if tuple(wanted.shape) != tensor.shape:
                misshapen.append((names[name], tensor.shape, tuple(wanted.shape)))
            else:
                _fill(modules[parent], part, _Stored(file, tensor, processor), dtype)
            filled.add(names[name])
    model.tie_weights()
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if head.weight is embedding.weight and hasattr(embedding, "stored"):
        head.stored = embedding.stored
    missing = [
        name for name, each in model.named_parameters() if each.is_meta and name not in filled
    ]
    report = {
        "missing_keys": missing,
        "unexpected_keys": unexpected,
        "mismatched_keys": misshapen,
    }
    return model, report


def _empty(config: PretrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """A model without memory for weights; its buffers, such as rotary frequencies, are there."""
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)
    for module in model.modules():
        buffers = [name for name, each in module.named_buffers(recurse=False) if each.is_meta]
        for name in buffers:
            setattr(module, name, torch.empty_like(getattr(module, name), device="cpu"))
        if buffers:
            model._init_weights(module)
    return model


@dataclass(frozen=True, slots=True)
class _Stored:
    """A tensor in a file, and what transformers does with it."""

    file: GgufFile
    tensor: GgufTensor
    processor: hf_gguf.TensorProcessor

    def codes(self) -> GgufCodes:
        """The same with the order of rows that transformers gives it."""
        rows = torch.arange(self.tensor.shape[0])[:, None]
        wanted = self._processed(rows)
        for heads in (0, *self._heads()):
            if torch.equal(reordered(rows, heads) if heads else rows, wanted):
                return GgufCodes(self.file, self.tensor, heads)
        raise ModelRefused(f"The rows of {self.tensor.name} have an order that is not known.")

    def values(self) -> torch.Tensor:
        """The values that transformers makes of it, float32. Where it does one of the usual things,
        it is done here, so that the tensor has an origin.
        """
        values = self.file.floats(self.tensor)
        wanted = self._processed(values)
        ours = [values, values - 1.0, *(reordered(values, heads) for heads in self._heads())]
        return next((each for each in ours if torch.equal(each, wanted)), wanted)

    def _processed(self, values: torch.Tensor) -> torch.Tensor:
        found = self.processor.process(weights=values.numpy(), name=self.tensor.name).weights
        return torch.from_numpy(np.ascontiguousarray(found))

    def _heads(self) -> list[int]:
        """The numbers of heads that its rows may be ordered by."""
        config, rows = self.processor.config, self.tensor.shape[0]
        found = [config.get(name) for name in ("num_attention_heads", "num_key_value_heads")]
        return [each for each in found if each and rows % (2 * each) == 0]


def _fill(module: nn.Module, part: str, stored: _Stored, dtype: torch.dtype) -> None:
    """Give a module one of its weights, or where that is."""
    is_replaced = type(module) is nn.Linear or isinstance(module, nn.Embedding)
    if stored.tensor.kind.name in FORMATS and is_replaced:
        module.stored = stored.codes()  # type: ignore[assignment]
        return
    tensor = stored.values().to(dtype)
    setattr(module, part, nn.Parameter(tensor, requires_grad=False))


def _divide_frequencies(model: PreTrainedModel, factors: torch.Tensor) -> None:
    """Divide the rotary frequencies of a model by `factors` [pairs]."""
    for module in model.modules():
        frequencies = getattr(module, "inv_freq", None)
        if isinstance(frequencies, torch.Tensor) and frequencies.shape == factors.shape:
            module.inv_freq = frequencies / factors


def read_gguf(kind: type[PreTrainedModel], folder: Path, **how: Any) -> tuple[Any, dict[str, Any]]:
    """The model in `folder` with weights in the dtype that `how` names, and transformers' report.
    `how` are arguments of `from_pretrained`. Takes up to twice the memory of the weights.
    """
    with contextlib.redirect_stderr(io.StringIO()):  # a progress bar that cannot be turned off
        model, report = kind.from_pretrained(
            folder, gguf_file=GGUF_FILE, local_files_only=True, **how
        )
    forget_quantisation(model)
    return model, report


def forget_quantisation(model: PreTrainedModel) -> None:
    """Remove the marks of quantisation from a model that was read from a GGUF file: its weights are
    plain floats. Saving it would be refused with them.
    """
    model.is_quantized, model.hf_quantizer = False, None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
