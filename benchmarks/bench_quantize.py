"""What quantising the weights at load (`quantize`) costs in accuracy, and what it saves.

    python benchmarks/bench_quantize.py [--tokens 500] [--model FOLDER] [--dtype bfloat16] [--as-is]

The weights of the embedded model were made of codes of 4 bits, which `quantize` nearly finds again.
So, but for --as-is, what is measured is another model of the Llama kind, which computes the same
with other weights: each input of a linear is multiplied by a random number, and what computes that
input is divided by it.

Some texts are prefilled with the weights as they are and with those of each value of `quantize`.
Prints for each, over all positions but the first 50: the mean divergence of the distributions of
the next token from those in float32, how often the most likely token is the same, and the
perplexity. Then the memory of the weights, and the times of a prefill of 256 tokens and of a decode
step of one sequence behind 256 tokens, which all models take in turn; quotients are medians of
those of neighbouring runs.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoTokenizer

from radixserve.checkpoints.embedded import embedded_model
from radixserve.checkpoints.headers import Checkpoint
from radixserve.checkpoints.opened import open_model
from radixserve.model.dtypes import dtype_name
from radixserve.model.load import load_model
from radixserve.model.quantise import BITS, Quantize
from radixserve.model.runner import Runner
from radixserve.step import Chunk, Logits
from radixserve.tensors.kv import KV_DTYPES, KVPool

CPU = torch.device("cpu")
STEP = 256
DOCS = Path(__file__).resolve().parent.parent / "docs"
TEXTS = (DOCS / "ARCHITECTURE.md", DOCS / "clients.md", Path(__file__))
SKIPPED = 50  # positions that see little of a text
ROUNDS, DECODES = 16, 20  # the first round is not counted


@dataclass(frozen=True, slots=True)
class Served:
    """A loaded model, under the name of its row."""

    name: str
    runner: Runner
    megabytes: float  # of its weights

    @classmethod
    def load(
        cls, name: str, model: str, dtype: torch.dtype, quantize: Quantize, tokens: int
    ) -> Served:
        loaded = load_model(model, CPU, dtype, bits=BITS[quantize])
        assert loaded.exact, loaded.inexact_reason
        assert loaded.decoder is not None, loaded.generic_reason
        tensors = loaded.decoder.weights.tensors().values()
        size = sum({each.data_ptr(): each.nbytes for each in tensors}.values())
        return cls(name, Runner(loaded, KVPool(loaded.shape, tokens, CPU)), size / 1e6)

    def log_probabilities(self, ids: np.ndarray) -> torch.Tensor:
        """[len(ids), vocab] in float32, computed in steps of STEP tokens."""
        slots, found = np.arange(len(ids), dtype=np.int32), []
        for start in range(0, len(ids), STEP):
            stop = min(start + STEP, len(ids))
            step = Chunk(ids[start:stop], start, slots[:stop], logits=Logits.ALL)
            found.append(torch.log_softmax(self.runner.forward([step]), -1))
        return torch.cat(found)

    def seconds(self, ids: np.ndarray, start: int, stop: int) -> float:
        """Seconds of a step for the tokens from `start` to `stop`, behind those before them."""
        step = Chunk(ids[start:stop], start, np.arange(stop, dtype=np.int32))
        begin = time.perf_counter()
        self.runner.forward([step])
        return time.perf_counter() - begin


def with_other_weights(model: str, folder: Path) -> str:
    """A model in `folder` that computes what `model` does, whose weights are on no grid."""
    checkpoint = open_model(model).checkpoint
    assert isinstance(checkpoint, Checkpoint), "safetensors are rewritten"
    tensors = {name: each[...].float() for name, each in checkpoint.tensors.items()}
    draw = torch.Generator().manual_seed(0)

    def factors(count: int) -> torch.Tensor:
        return torch.rand(count, generator=draw) * 0.7 + 0.7

    for name in [each for each in tensors if each.endswith("down_proj.weight")]:
        layer = name.removesuffix("mlp.down_proj.weight")
        for norm, linears in (
            ("input_layernorm", ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]),
            ("post_attention_layernorm", ["mlp.gate_proj", "mlp.up_proj"]),
        ):
            by = factors(len(tensors[f"{layer}{norm}.weight"]))
            tensors[f"{layer}{norm}.weight"] *= by
            for linear in linears:
                tensors[f"{layer}{linear}.weight"] /= by
        by = factors(tensors[name].shape[1])
        tensors[f"{layer}mlp.up_proj.weight"] *= by[:, None]
        tensors[name] /= by
        v, o = (f"{layer}self_attn.{each}_proj.weight" for each in "vo")
        shared = tensors[o].shape[1] // tensors[v].shape[0]  # query heads of a head of V
        head = AutoConfig.from_pretrained(model).head_dim
        by = factors(tensors[v].shape[0])
        tensors[v] *= by[:, None]
        tensors[o] /= by.view(-1, head).repeat_interleave(shared, 0).flatten()
    for each in Path(model).iterdir():
        if each.is_file() and each.suffix != ".safetensors":
            (folder / each.name).write_bytes(each.read_bytes())
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return str(folder)


def accuracy(texts: list[np.ndarray], own: list[torch.Tensor], served: Served) -> str:
    """The cells of a row about accuracy."""
    found = [served.log_probabilities(ids) for ids in texts]
    p, q = (torch.cat([each[SKIPPED:] for each in all_of]) for all_of in (own, found))
    divergence = (p.exp() * (p - q)).sum(-1).double().mean()
    agree = (p.argmax(-1) == q.argmax(-1)).double().mean()
    surprise = [
        -each[SKIPPED:-1].gather(-1, torch.from_numpy(ids[SKIPPED + 1 :].astype(np.int64))[:, None])
        for each, ids in zip(found, texts, strict=True)
    ]
    perplexity = torch.cat(surprise).double().mean().exp()
    return f"{divergence:.1e} | {agree:.1%} | {perplexity:.2f} | {served.megabytes:,.0f}"


def speed(all_served: list[Served], ids: np.ndarray) -> list[str]:
    """The cells of each row about speed: times, and how many times as fast as the first."""
    prefills = [[each.seconds(ids, 0, STEP) for each in all_served] for _ in range(ROUNDS)]
    decodes = [
        [each.seconds(ids, at, at + 1) for each in all_served]
        for _ in range(ROUNDS)
        for at in range(STEP, STEP + DECODES)
    ]
    rows = []
    for index in range(len(all_served)):
        cells = []
        for runs in (prefills[1:], decodes[DECODES:]):
            own = median(run[index] for run in runs)
            quotient = median(run[0] / run[index] for run in runs)
            cells.append(f"{own * 1e3:.1f} ms ({quotient:.2f}x)")
        rows.append(" | ".join(cells))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=500)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--model", default=None)
    parser.add_argument("--as-is", action="store_true")
    chosen = parser.parse_args()
    torch.set_grad_enabled(False)
    model = chosen.model or str(embedded_model())
    with TemporaryDirectory() as folder:
        if not chosen.as_is:
            model = with_other_weights(model, Path(folder))
        measure(model, KV_DTYPES[chosen.dtype], chosen.tokens)


def measure(model: str, dtype: torch.dtype, tokens: int) -> None:
    """Print the table."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    texts = [
        np.asarray(tokenizer(path.read_text())["input_ids"][:tokens], np.int32) for path in TEXTS
    ]
    whole = Served.load("float32", model, torch.float32, "none", tokens)
    own = [whole.log_probabilities(ids) for ids in texts]
    del whole
    names: dict[str, Quantize] = {dtype_name(dtype): "none", "int8": "int8", "int4": "int4"}
    all_served = [
        Served.load(name, model, dtype, quantize, tokens) for name, quantize in names.items()
    ]
    cells = [accuracy(texts, own, each) for each in all_served]
    print(
        "| weights | KL divergence | same most likely token | perplexity | MB | prefill | decode |"
    )
    print("|---|---|---|---|---|---|---|")
    for served, about, times in zip(all_served, cells, speed(all_served, texts[0]), strict=True):
        print(f"| {served.name} | {about} | {times} |", flush=True)


if __name__ == "__main__":
    main()
