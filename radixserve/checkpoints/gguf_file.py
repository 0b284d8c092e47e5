"""Weights that stay in their GGUF file, where no disk has room for them as safetensors: the headers
of the file, and the transformers model filled from it.

Dequantising takes some seconds at each start. The folder of such a model has the file under the
name GGUF_FILE beside configuration and tokenizer; `convert` makes it.
"""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import torch
from gguf import GGUFReader
from transformers import PreTrainedModel

from radixserve.errors import ModelRefused, first_line

GGUF_FILE = "model.gguf"


class GgufFile:
    """The names and shapes of the tensors in a model's GGUF file."""

    num_read = 0  # transformers does not tell how far it is
    dtype = torch.float32  # of the weights once they are dequantised

    def __init__(self, folder: Path) -> None:
        """Reads the headers.

        Raises:
            ModelRefused: the file is damaged.
        """
        file = folder / GGUF_FILE
        try:
            self._sizes = [int(tensor.n_elements) for tensor in GGUFReader(file).tensors]
        except Exception as error:  # of a reader that checks nothing
            raise ModelRefused(f"{file} is damaged: {first_line(error)}") from error

    def __len__(self) -> int:
        return len(self._sizes)

    @property
    def num_weights(self) -> int:
        """The number of values in all tensors together."""
        return sum(self._sizes)


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
