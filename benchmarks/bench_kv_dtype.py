"""What K/V of fewer bits (`kv_dtype`) costs in accuracy, and how many tokens a budget then holds.

    python benchmarks/bench_kv_dtype.py [--tokens 1000] [--dtype bfloat16] [--model FOLDER]

Some texts are prefilled, once with K/V of the weights' dtype and once with K/V of each other dtype.
Prints for each dtype, over all positions but the first 50, the mean divergence of the distributions
of the next token, how often the most likely token is the same, and how many tokens of K/V a GiB
holds.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from transformers import AutoTokenizer

from radixserve.checkpoints.embedded import embedded_model
from radixserve.model.load import load_model
from radixserve.model.runner import Runner
from radixserve.step import Chunk, Logits
from radixserve.tensors.kv import KV_DTYPES, KVPool, KVShape

CPU = torch.device("cpu")
STEP = 256
DOCS = Path(__file__).resolve().parent.parent / "docs"
TEXTS = (DOCS / "ARCHITECTURE.md", DOCS / "clients.md", Path(__file__))
SKIPPED = 50  # positions that see little of the K/V


def log_probabilities(runner: Runner, ids: np.ndarray) -> torch.Tensor:
    """[len(ids), vocab] in float32, computed in steps of STEP tokens."""
    slots, found = np.arange(len(ids), dtype=np.int32), []
    for start in range(0, len(ids), STEP):
        stop = min(start + STEP, len(ids))
        step = Chunk(ids[start:stop], start, slots[:stop], logits=Logits.ALL)
        found.append(torch.log_softmax(runner.forward([step]), -1))
    return torch.cat(found)


def all_texts(model: str, dtype: torch.dtype, kv: torch.dtype, tokens: int) -> list[torch.Tensor]:
    """Log probabilities of all texts, with K/V of one dtype."""
    loaded = load_model(model, CPU, dtype, kv)
    assert loaded.exact, loaded.inexact_reason
    tokenizer = AutoTokenizer.from_pretrained(model)
    runner = Runner(loaded, KVPool(loaded.shape, tokens, CPU))
    texts = [tokenizer(path.read_text())["input_ids"][:tokens] for path in TEXTS]
    return [log_probabilities(runner, np.asarray(ids, np.int32))[SKIPPED:] for ids in texts]


def row(name: str, shape: KVShape, own: list[torch.Tensor], other: list[torch.Tensor]) -> str:
    """One Markdown row."""
    p, q = torch.cat(own), torch.cat(other)
    divergence = (p.exp() * (p - q)).sum(-1).double()
    agree = (p.argmax(-1) == q.argmax(-1)).double().mean()
    cells = (f"{divergence.mean():.1e}", f"{divergence.max():.1e}", f"{agree:.2%}")
    return f"| {name} | {' | '.join(cells)} | {(1 << 30) // shape.slot_bytes:,} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=1000)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--model", default=None)
    chosen = parser.parse_args()
    torch.set_grad_enabled(False)
    model, dtype = chosen.model or str(embedded_model()), KV_DTYPES[chosen.dtype]
    own = all_texts(model, dtype, dtype, chosen.tokens)
    shape = load_model(model, CPU, dtype).shape
    print("| K/V | KL divergence, mean | largest | same most likely token | tokens per GiB |")
    print("|---|---|---|---|---|")
    for name in ("float32", "bfloat16", "int8", "fp8"):
        kv = KV_DTYPES[name]
        other = own if kv == dtype else all_texts(model, dtype, kv, chosen.tokens)
        sized = KVShape(shape.layers, shape.kv_heads, shape.k_dim, shape.v_dim, kv)
        print(row(name, sized, own, other), flush=True)


if __name__ == "__main__":
    main()
