"""Loading takes little more memory than what is loaded, and none of it stays mapped."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from radixserve.checkpoints.embedded import embedded_model
from radixserve.checkpoints.opened import open_model
from tests.tiny import CPU

_MIB = 1 << 20

# Run alone: the peak of a process never falls.
_LOAD = """
import json, sys, torch
import radixserve.kernels.cpu.attention.call, radixserve.model.decoder
from radixserve.model.load import load_model

def status():
    lines = (line.split() for line in open("/proc/self/status"))
    wanted = ("VmHWM:", "VmRSS:", "RssFile:")
    return {fields[0]: int(fields[1]) << 10 for fields in lines if fields[0] in wanted}

before = status()
bits = int(sys.argv[2]) or None
load_model(sys.argv[1], torch.device("cpu"), torch.float32, bits=bits)
after = status()
print(json.dumps({name: after[name] - before[name] for name in before}))
"""


@pytest.mark.slow
def test_the_peak_is_at_most_a_third_above_the_weights(tmp_path: Path) -> None:
    """A checkpoint in bfloat16, loaded as float32."""
    config = LlamaConfig(
        vocab_size=1000,
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=8,
        num_attention_heads=16,
        num_key_value_heads=4,
        max_position_embeddings=512,
    )
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model = empty.to_empty(device="cpu")
    for each in model.parameters():
        each.data = torch.linspace(-0.05, 0.05, each.numel(), dtype=torch.bfloat16).view(each.shape)
    model.save_pretrained(tmp_path, max_shard_size="100MB")
    weights = sum(each.numel() for each in model.parameters()) * torch.float32.itemsize
    grown = grown_by_loading(tmp_path)
    assert weights > 300 * _MIB
    assert weights < grown["VmHWM:"] < 1.3 * weights
    assert grown["RssFile:"] < 64 * _MIB
    # The checkpoint alone would take half; codes take 0.16, two weights that are joined 0.12.
    assert grown_by_loading(tmp_path, bits=4)["VmHWM:"] < 0.45 * weights


@pytest.mark.slow
@pytest.mark.model
def test_the_default_model_peaks_at_little_more_than_its_weights_and_keeps_its_codes_only() -> None:
    """Its output layer shares the embedding's weight, and its values all have codes."""
    folder = embedded_model(progress=False)
    weights = open_model(str(folder)).num_bytes(torch.float32, CPU)
    grown = grown_by_loading(folder)
    assert grown["VmHWM:"] < 1.3 * weights
    assert grown["VmRSS:"] < 0.5 * weights


def grown_by_loading(folder: Path, bits: int = 0) -> dict[str, int]:
    """By how many bytes a process grows that loads a model, quantised to so many bits. It loads
    it twice, so that compilers have run before: they take memory only at the first start.
    """
    for _ in range(2):
        ran = subprocess.run(
            [sys.executable, "-c", _LOAD, str(folder), str(bits)],
            capture_output=True,
            text=True,
            check=True,
        )
    grown: dict[str, int] = json.loads(ran.stdout.splitlines()[-1])
    return grown
