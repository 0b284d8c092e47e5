"""The weights of a GGUF file, which stays where it is: quantised ones become packed codes, the
others float tensors.

A folder of such a model has the file under the name GGUF_FILE beside configuration and tokenizer;
`convert` makes it. `read_codes` fills a transformers model; `read_gguf` lets transformers
dequantise all of it, for architectures whose tensors it rearranges in other ways.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from gguf import GGMLQuantizationType, quants
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers import modeling_gguf_pytorch_utils as hf_gguf

from radixserve.checkpoints.gguf_blocks import FORMATS, codes_of
from radixserve.checkpoints.gguf_header import GgufTensor, read_header
from radixserve.errors import ModelRefused
from radixserve.kernels.cpu.gemm.codes import Packing
from radixserve.kernels.cpu.gemm.formats import Format
from radixserve.kernels.cpu.gemm.panel_products import WIDTH

GGUF_FILE = "model.gguf"
_ROPE = "rope_freqs.weight"  # divisors of rotary frequencies, which models of the Llama 3 kind have
_UNPACKED = 4 << 20  # codes that are unpacked at a time
_PACKED_MORE = 1.06  # times the bytes of blocks, at most
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


class GgufFile:
    """The tensors in a model's GGUF file."""

    dtype = torch.float32  # of activations, where no setting says

    def __init__(self, folder: Path) -> None:
        """Reads the header.

        Raises:
            ModelRefused: the file is damaged, or has tensors of a type that is not supported.
        """
        self.path = folder / GGUF_FILE
        self.num_read = 0
        self._header = read_header(self.path)
        self.tensors = self._header.tensors
        self.keeps_codes = keeps_codes(self._header.architecture)

    def __len__(self) -> int:
        return len(self.tensors)

    @property
    def architecture(self) -> str:
        """The name of the architecture, such as llama."""
        return self._header.architecture

    @property
    def num_weights(self) -> int:
        """The number of values in all tensors together."""
        return sum(each.num_values for each in self.tensors.values())

    def num_bytes(self, dtype: torch.dtype) -> int:
        """Bytes that the weights take in the memory of a CPU."""
        if not self.keeps_codes:
            return self.num_weights * dtype.itemsize
        return sum(_bytes_in_memory(each, dtype) for each in self.tensors.values())

    def rows(self, tensor: GgufTensor) -> npt.NDArray[np.uint8]:
        """The bytes of a tensor, [rows, bytes of a row]."""
        found = np.fromfile(self.path, np.uint8, tensor.num_bytes, offset=tensor.offset)
        if len(found) < tensor.num_bytes:
            raise ModelRefused(f"{self.path} is damaged: it ends before {tensor.name} does.")
        self.num_read += 1
        return found.reshape(-1, tensor.row_bytes)

    def floats(self, tensor: GgufTensor) -> torch.Tensor:
        """The values of a tensor, float32."""
        values = quants.dequantize(self.rows(tensor), GGMLQuantizationType[tensor.kind.name])
        found = torch.from_numpy(np.array(values, np.float32)).view(tensor.shape)
        if not found.isfinite().all():
            raise ModelRefused(f"{self.path} is damaged: {tensor.name} holds NaN or infinity.")
        return found


def _bytes_in_memory(tensor: GgufTensor, dtype: torch.dtype) -> int:
    if tensor.kind.name in FORMATS:
        return int(tensor.num_bytes * _PACKED_MORE)
    return tensor.num_values * (2 if tensor.kind.name == "BF16" else dtype.itemsize)


@dataclass(frozen=True, slots=True)
class GgufCodes:
    """A quantised weight that still lies in its file (`StoredCodes`)."""

    file: GgufFile
    tensor: GgufTensor
    processor: hf_gguf.TensorProcessor

    @property
    def format(self) -> Format:
        """The format of its type."""
        return FORMATS[self.tensor.kind.name]

    def packed_with(self, others: Sequence[Self]) -> Packing:
        """Takes the memory of their bytes once more, and some MB."""
        kind, inputs = self.tensor.kind.name, self.tensor.shape[1]
        parts = [each._rows() for each in (self, *others)]
        rows = parts[0] if len(parts) == 1 else np.concatenate(parts)
        packing = Packing(self.format, (len(rows), inputs))
        step = max(1, _UNPACKED // (inputs * WIDTH)) * WIDTH
        starts = range(0, len(rows), step)
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # packing is faster
            unpacked = pool.map(lambda first: codes_of(kind, rows[first : first + step]), starts)
            for first, codes in zip(starts, unpacked, strict=True):
                if not codes.is_finite:
                    raise ModelRefused(
                        f"{self.file.path} is damaged: {self.tensor.name} holds NaN or infinity."
                    )
                packing.put(first, codes)
        return packing

    def _rows(self) -> npt.NDArray[np.uint8]:
        """The bytes of its blocks, [rows, bytes], in the order that transformers gives to rows."""
        found = self.processor.process(weights=self.file.rows(self.tensor), name=self.tensor.name)
        return np.ascontiguousarray(found.weights)


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
                _fill(modules[parent], part, GgufCodes(file, tensor, processor), dtype)
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


def _fill(module: nn.Module, part: str, stored: GgufCodes, dtype: torch.dtype) -> None:
    """Give a module one of its weights, or where that is."""
    is_replaced = type(module) is nn.Linear or isinstance(module, nn.Embedding)
    if stored.tensor.kind.name in FORMATS and is_replaced:
        module.stored = stored  # type: ignore[assignment]
        return
    values = stored.file.floats(stored.tensor).numpy()
    found = stored.processor.process(weights=values, name=stored.tensor.name).weights
    tensor = torch.from_numpy(np.ascontiguousarray(found)).to(dtype)
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
