"""Turns a GGUF file into a transformers folder (float32 safetensors, tokenizer, chat template,
generation config).

Run as a child process: `python -m radixserve.model.convert SOURCE.gguf FOLDER`. Reports stages on
stderr as lines that start with "convert: ". Does not know where models are kept; `embedded` makes
the result visible.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel


def convert(source: Path, target: Path) -> None:
    """Write the model in `source` to the folder `target` (needs 5 bytes of memory per parameter and
    some seconds).
    """
    where = {
        "pretrained_model_name_or_path": str(source.parent),
        "gguf_file": source.name,
        "local_files_only": True,
    }
    _say("reading the tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(**where)
    tokenizer.save_pretrained(target)
    _say("dequantising the weights")
    model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    _forget_quantisation(model)
    _say("writing safetensors")
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model.save_pretrained(target)


def _forget_quantisation(model: PreTrainedModel) -> None:
    """The weights are plain float32 now; with these marks left, saving refuses."""
    model.is_quantized, model.hf_quantizer = False, None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config


def _say(stage: str) -> None:
    print(f"convert: {stage}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
