"""What keeping K/V as float8 below the device (`tier_dtype`) costs in accuracy, against K/V as it
was computed.

    python benchmarks/bench_float8.py [--prefix 1400] [--tokens 400] [--model FOLDER_OR_NAME]

A text is prefilled; the K/V of its prefix goes through float8 and back, as a visit to the host or
disk tier does; the rest of the text is then computed behind both. Prints the error of K and of V,
and for every following position how the distributions of the next token differ.
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
from radixserve.step import Chunk, Logits, Slots
from radixserve.tensors.copies import converted, read_slots, write_slots
from radixserve.tensors.kv import KVPool

CPU = torch.device("cpu")
STEP = 256
TEXT = Path(__file__).resolve().parent.parent / "docs" / "ARCHITECTURE.md"


def prefill(runner: Runner, ids: Slots, slots: Slots) -> None:
    for start in range(0, len(ids), STEP):
        stop = min(start + STEP, len(ids))
        runner.forward([Chunk(ids[start:stop], start, slots[:stop])])


def relative(found: torch.Tensor, exact: torch.Tensor) -> float:
    """Root of the mean square error over that of the values."""
    return float((found - exact).norm() / exact.norm())


def behind(runner: Runner, ids: Slots, start: int, slots: Slots) -> torch.Tensor:
    """Log probabilities [tokens, vocab] at the positions from `start` on, in float64."""
    logits = runner.forward([Chunk(ids[start:], start, slots, logits=Logits.ALL)])
    return torch.log_softmax(logits.double(), -1)


def report(exact: torch.Tensor, lossy: torch.Tensor, errors: list[float]) -> None:
    """One Markdown row."""
    divergence = (exact.exp() * (exact - lossy)).sum(-1)
    agree = (exact.argmax(-1) == lossy.argmax(-1)).double().mean()
    largest = (exact - lossy).gather(-1, exact.argmax(-1, keepdim=True)).abs().max()
    heads = (
        "positions",
        "error of K",
        "error of V",
        "same most likely token",
        "KL divergence, mean",
        "its largest",
    )
    print(
        "| "
        + " | ".join((*heads, "largest change of the most likely token's logprob"))
        + " |\n|"
        + "---|" * 7
    )
    cells = [str(len(exact)), *(f"{error:.2%}" for error in errors), f"{agree:.1%}"]
    print(
        "| "
        + " | ".join(
            [*cells, f"{divergence.mean():.1e}", f"{divergence.max():.1e}", f"{largest:.2f}"]
        )
        + " |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prefix", type=int, default=1400)
    parser.add_argument("--tokens", type=int, default=400)
    parser.add_argument("--model", default=None)
    chosen = parser.parse_args()
    torch.set_grad_enabled(False)
    folder, length = chosen.model or str(embedded_model()), chosen.prefix + chosen.tokens
    loaded = load_model(folder, CPU, torch.float32)
    ids = np.asarray(
        AutoTokenizer.from_pretrained(folder)(TEXT.read_text())["input_ids"][:length], np.int32
    )
    pool = KVPool(loaded.shape, 2 * length, CPU)
    runner, slots = Runner(loaded, pool), np.arange(2 * length, dtype=np.int32)
    first, second = slots[:length], slots[length:]
    prefill(runner, ids[: chosen.prefix], first)
    kv = read_slots(pool, first[: chosen.prefix])
    back = [converted(each, torch.float8_e4m3fn).to(torch.float32) for each in kv]
    write_slots(pool, second[: chosen.prefix], (back[0], back[1]))
    errors = [relative(found, exact) for found, exact in zip(back, kv, strict=True)]
    report(
        behind(runner, ids, chosen.prefix, first),
        behind(runner, ids, chosen.prefix, second),
        errors,
    )


if __name__ == "__main__":
    main()
