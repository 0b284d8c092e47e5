"""What exactness costs: the throughput with it over that of the fastest configuration without it,
in one run.

    python benchmarks/bench_exactness.py [--dtype bfloat16] [--rounds 15] [--model FOLDER_OR_NAME]
                                         [--computed 7300] [--generated 1700]

Every configuration is our decoder with the same row-wise kernels, and two choices:

    linears    ours      as served: our own GEMM, and steps of few rows as one program if the
                         attention is ours, too
               oneDNN    weights packed for oneDNN, which chooses the order of a sum by the number
                         of rows
               torch     `F.linear` over plain weights
    attention  tiles     as served: our kernel over scattered slots, a shared prefix read once
               dense     torch's `scaled_dot_product_attention`, K and V in order, per sequence

"ours, tiles" is exact and the other five are not. They take turns round by round; a table shows
medians. The last row is the mix of steps of the shared-prefix chat, whose counts figures.py prints:
`computed` uncached prompt tokens in chunks of 256 behind 640 tokens, the middle of a system prompt,
and `generated` tokens at batch 8. What is without exactness may take the fastest configuration for
each kind of step there.
"""

from __future__ import annotations

import argparse
import copy
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from bench_step import DEVICE, SLOT_ORDER, SLOTS, Work, decode_chunks, interleaved, ms

from radixserve.checkpoints.embedded import embedded_model
from radixserve.kernels.attention import Kernel, LayerAttention
from radixserve.kernels.cpu import levels
from radixserve.kernels.cpu.gemm.call import Gemm
from radixserve.kernels.step import AttentionPlan
from radixserve.model.decoder import Decoder
from radixserve.model.load import load_model
from radixserve.model.loaded import LoadedModel
from radixserve.model.runner import Runner
from radixserve.model.weights import Layer, Mlp
from radixserve.step import Chunk
from radixserve.tensors.kv import KVPool

EXACT = "ours, tiles"
CHUNK, BEHIND = 256, 640
MIX_BATCH = 8
ROWS_PACKED_FOR = 16

Linear = Callable[[torch.Tensor], torch.Tensor]


def onednn_linear(weight: Gemm) -> Linear:
    """The same weight packed for oneDNN."""
    values, bias = plain(weight)
    packed = torch.ops.mkldnn._reorder_linear_weight(values, ROWS_PACKED_FOR)
    return partial(multiply_packed, packed, bias)


def multiply_packed(
    packed: torch.Tensor, bias: torch.Tensor | None, x: torch.Tensor
) -> torch.Tensor:
    out: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
    return out


def torch_linear(weight: Gemm) -> Linear:
    """The same weight for `F.linear`."""
    values, bias = plain(weight)
    return lambda x: F.linear(x, values, bias)


def plain(weight: Gemm) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The values [out, in] and the bias [out] of a packed weight, in the activations' dtype."""
    values = weight.lookup()(torch.arange(weight.out_features))
    return values, None if weight.bias is None else weight.bias.to(weight.dtype)


LINEARS: dict[str, Callable[[Gemm], Linear] | None] = {
    "ours": None,
    "oneDNN": onednn_linear,
    "torch": torch_linear,
}


@dataclass(frozen=True)
class OutputLinear:
    """A linear in the place of the output layer's weight."""

    unrounded: Linear


def with_linears(served: Decoder, make: Callable[[Gemm], Linear]) -> Decoder:
    """The decoder with every weight replaced by what `make` makes of it."""
    weights = served.weights
    head: Any = OutputLinear(make(weights.head.weight))
    layers = [replaced(layer, make) for layer in weights.layers]
    decoder = Decoder(replace(weights, layers=layers, head=replace(weights.head, weight=head)))
    decoder.most_recorded = 0  # recorded steps call our own kernels
    return decoder


def replaced(layer: Layer, make: Callable[[Gemm], Linear]) -> Layer:
    attention, mlp = layer.attention, layer.mlp
    assert isinstance(mlp, Mlp), "this benchmark is for models without experts"
    made: dict[str, Any] = {"qkv": make(attention.qkv), "o": make(attention.o)}
    made_of_mlp: dict[str, Any] = {"up": make(mlp.up), "down": make(mlp.down)}
    return replace(layer, mixer=replace(attention, **made), mlp=replace(mlp, **made_of_mlp))


def with_attention(served: Decoder, attend: Kernel) -> Decoder:
    decoder = copy.copy(served)
    decoder.attend, decoder.most_recorded = attend, 0
    return decoder


def configurations(loaded: LoadedModel, pool: KVPool) -> dict[str, tuple[str, Runner]]:
    """By name: the kind of attention, which decides the slots, and the runner."""
    served = loaded.decoder
    assert isinstance(served, Decoder), "this benchmark is for models that our decoder computes"
    found = {}
    for linears, make in LINEARS.items():
        tiles = with_linears(served, make) if make else served
        for attention, decoder in (
            ("tiles", tiles),
            ("dense", with_attention(tiles, attend_dense)),
        ):
            runner = Runner(replace(loaded, decoder=decoder), pool)
            found[f"{linears}, {attention}"] = attention, runner
    return found


@functools.cache
def causal(count: int, stop: int) -> torch.Tensor:
    return torch.ones(count, stop, dtype=torch.bool).tril(stop - count)


def attend_dense(
    q: torch.Tensor, layer: int, plan: AttentionPlan, attention: LayerAttention
) -> torch.Tensor:
    """Attention of sequences of equal length whose K and V lie one after the other from slot
    0 on.
    """
    batch, count, start = len(plan.spans.count), int(plan.spans.count[0]), int(plan.spans.start[0])
    stop = start + count
    kept = (pool[layer, : batch * stop] for pool in (plan.pool.k, plan.pool.v))
    k, v = (part.view(batch, stop, *part.shape[1:]).transpose(1, 2) for part in kept)
    rows = q.view(batch, count, *q.shape[1:]).transpose(1, 2)
    mask = causal(count, stop) if count > 1 and start else None
    out = F.scaled_dot_product_attention(
        rows,
        k,
        v,
        attn_mask=mask,
        is_causal=count > 1 and not start,
        scale=attention.scaling,
        enable_gqa=True,
    )
    return out.transpose(1, 2).reshape(q.shape)


@dataclass(frozen=True)
class Step:
    """A kind of step, in the slots of each attention."""

    name: str
    chunks: dict[str, list[Chunk]]

    @classmethod
    def decode(cls, batch: int) -> Step:
        tiles = decode_chunks(batch, shared=True)
        return cls(f"decode, batch {batch}", {"tiles": tiles, "dense": in_order(tiles)})

    @classmethod
    def prefill(cls, start: int, vocab: int) -> Step:
        ids = np.random.default_rng(1).integers(0, vocab, CHUNK).astype(np.int32)
        tiles = [Chunk(ids, start, SLOT_ORDER[: start + CHUNK])]
        return cls(f"prefill {CHUNK} behind {start}", {"tiles": tiles, "dense": in_order(tiles)})


def in_order(chunks: Sequence[Chunk]) -> list[Chunk]:
    """The same work over slots that lie one after the other."""
    ends = np.cumsum([chunk.stop for chunk in chunks])
    spans = [
        np.arange(end - chunk.stop, end, dtype=np.int32)
        for chunk, end in zip(chunks, ends, strict=True)
    ]
    return [
        Chunk(chunk.token_ids, chunk.start, slots)
        for chunk, slots in zip(chunks, spans, strict=True)
    ]


def measure(runners: dict[str, tuple[str, Runner]], step: Step, rounds: int) -> dict[str, float]:
    """Median seconds of every configuration."""
    works: dict[str, Work] = {
        name: partial(runner.forward, step.chunks[attention])
        for name, (attention, runner) in runners.items()
    }
    return interleaved(works, rounds)


def report(times: dict[str, dict[str, float]], mix: dict[str, float]) -> None:
    """One row per kind of step, and one for the mix: how many of each kind."""
    configurations = list(next(iter(times.values())))
    fastest = {
        name: min(each for config, each in by.items() if config != EXACT)
        for name, by in times.items()
    }
    total = {
        config: sum(count * times[name][config] for name, count in mix.items())
        for config in configurations
    }
    names = [f"{config} (exact)" if config == EXACT else config for config in configurations]
    print("| step, ms |", " | ".join(names), "| fastest without | exact / fastest |")
    print("|---" * (len(names) + 3) + "|")
    for name, by in times.items():
        print_row(name, by, fastest[name])
    print_row(
        "shared-prefix chat", total, sum(count * fastest[name] for name, count in mix.items())
    )


def print_row(name: str, seconds: dict[str, float], fastest: float) -> None:
    ratio = fastest / seconds[EXACT]  # of throughputs
    print(f"| {name} |", " | ".join(map(ms, [*seconds.values(), fastest])), f"| **{ratio:.3f}** |")


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--model", default=None)
    parser.add_argument(
        "--computed", type=int, default=7300, help="uncached prompt tokens of the mix"
    )
    parser.add_argument("--generated", type=int, default=1700, help="generated tokens of the mix")
    return parser.parse_args()


def main() -> None:
    options = parsed()
    torch.set_grad_enabled(False)
    dtype = getattr(torch, options.dtype)
    loaded = load_model(options.model or str(embedded_model()), DEVICE, dtype)
    pool = KVPool(loaded.shape, SLOTS, DEVICE)
    pool.k.normal_()
    pool.v.normal_()
    runners = configurations(loaded, pool)
    middle, batch = Step.prefill(BEHIND, loaded.vocab_size), Step.decode(MIX_BATCH)
    steps = [Step.decode(1), batch, Step.decode(16), Step.prefill(0, loaded.vocab_size), middle]
    times = {step.name: measure(runners, step, options.rounds) for step in steps}
    print(f"{options.dtype}, level {levels.current().name}\n")
    report(
        times, {middle.name: options.computed / CHUNK, batch.name: options.generated / MIX_BATCH}
    )


if __name__ == "__main__":
    main()
