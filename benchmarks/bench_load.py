"""How long does loading a model take, and how much memory beside its weights?

    python benchmarks/bench_load.py [--megabytes 1000] [--threads 2] [--kinds llama qwen3_moe gguf]

Writes models of random weights into a temporary folder, which is removed at the end: one of the
Llama kind and a mixture of experts in bfloat16, and one in a GGUF file (Q4_K, V in Q6_K). Each is
loaded twice, in processes of their own: the first is checked against transformers, the second is
made straight from its files. Tells seconds, and as parts of the weights the peak of memory and what
stays of it, both counted from before the load. Kernels are compiled at the first run ever, so run
it twice.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PretrainedConfig, Qwen3MoeConfig

from radixserve.checkpoints.gguf_file import GGUF_FILE
from tests.checkpoints.test_gguf_file import write

COMMON = {
    "vocab_size": 32000,
    "hidden_size": 2048,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "max_position_embeddings": 4096,
}
LLAMA_LAYER = (2 * 20 * 128 + 3 * 5632) * 2048 + 16 * 128 * 2048  # values, about
MOE_LAYER = (2 * 20 * 128 + 32 * 3 * 512) * 2048
Q4_K_BYTES = 144 / 256  # of a value
LOAD = """
import json, sys, time
import torch
import radixserve.kernels.cpu.attention.call, radixserve.model.decoder
from radixserve.config import Settings
from radixserve.engine.load import load

def status():
    lines = (line.split() for line in open("/proc/self/status"))
    return {each[0]: int(each[1]) << 10 for each in lines if each[0] in ("VmHWM:", "VmRSS:")}

torch.set_num_threads(int(sys.argv[2]))
before, started = status(), time.perf_counter()
found = load(Settings(), sys.argv[1], torch.device("cpu"))
seconds, after = time.perf_counter() - started, status()
weights = sum(each.nbytes for each in found.model.decoder.weights.tensors().values())
print(json.dumps({
    "check": found.load_check,
    "seconds": round(seconds, 2),
    "weights, MB": weights // 10**6,
    "peak": round((after["VmHWM:"] - before["VmRSS:"]) / weights, 2),
    "stays": round((after["VmRSS:"] - before["VmRSS:"]) / weights, 2),
}))
"""


def config_of(kind: str, num_bytes: int) -> PretrainedConfig:
    """A model of about so many bytes."""
    if kind == "qwen3_moe":
        return Qwen3MoeConfig(
            **COMMON,
            num_hidden_layers=max(1, num_bytes // (2 * MOE_LAYER)),
            num_experts=32,
            num_experts_per_tok=4,
            moe_intermediate_size=512,
        )
    value = Q4_K_BYTES if kind == "gguf" else 2
    layers = max(1, int(num_bytes / (value * LLAMA_LAYER)))
    return LlamaConfig(**COMMON, intermediate_size=5632, num_hidden_layers=layers)


def save(kind: str, folder: Path, num_bytes: int) -> None:
    """Write a model."""
    config = config_of(kind, num_bytes)
    if kind == "gguf":
        config.architectures = ["LlamaForCausalLM"]
        config.tie_word_embeddings = True
        write(folder / GGUF_FILE, lambda name: "Q6_K" if "attn_v" in name else "Q4_K", config)
        config.save_pretrained(folder)
        return
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model = empty.to_empty(device="cpu")
    for each in model.parameters():
        each.data.normal_(0.0, 0.02) if each.dim() > 1 else each.data.fill_(1.0)
    model.save_pretrained(folder, max_shard_size="400MB")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--megabytes", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--kinds", nargs="+", default=["llama", "qwen3_moe", "gguf"])
    options = parser.parse_args()
    for kind in options.kinds:
        with tempfile.TemporaryDirectory() as folder:
            save(kind, Path(folder), options.megabytes * 10**6)
            size = sum(each.stat().st_size for each in Path(folder).iterdir())
            print(f"{kind}: files of {size / 1e6:,.0f} MB")
            for _ in range(2):
                tell(folder, options.threads)


def tell(folder: str, threads: int) -> None:
    """Load a model in a process of its own, and print what that took."""
    command = [sys.executable, "-c", LOAD, folder, str(threads)]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(ran.stdout.splitlines()[-1])
    print("   ", ", ".join(f"{name} {value}" for name, value in found.items()), flush=True)


if __name__ == "__main__":
    main()
