"""What exactness costs: the throughput with it over that of the fastest configuration without it,
in one run.

    python benchmarks/bench_exactness.py [--rounds 15] [--model FOLDER_OR_NAME]
                                         [--computed 7300] [--generated 1700]

Every configuration is our decoder in float32 with the same row-wise kernels, and two choices:

    linears    packed      as served: packed for oneDNN, our kernel for few rows where bits agree
                           bits, a single row doubled where it would be summed in another order
               unguarded   packed, and always oneDNN's own operator on the rows as they come
               torch       `F.linear` over plain weights
    attention  tiles       as served: our kernel over scattered slots, a shared prefix read once
               dense       torch's `scaled_dot_product_attention`, K and V in order, per sequence

"packed, tiles" is exact and the other five are not. They take turns round by round; a table shows
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
from torch import nn
from transformers import AutoModelForCausalLM

from radixserve.checkpoints.embedded import embedded_model
from radixserve.kernels.attention import Kernel
from radixserve.kernels.cpu.attention.call import attend_cpu
from radixserve.kernels.cpu.gemm.call import Gemm
from radixserve.kernels.step import AttentionPlan
from radixserve.model.decoder import Decoder
from radixserve.model.families import Layer
from radixserve.model.linear import PackedLinear
from radixserve.model.load import load_model
from radixserve.model.loaded import LoadedModel
from radixserve.model.runner import Runner
from radixserve.step import Chunk
from radixserve.tensors.kv import KVPool

EXACT = "packed, tiles"
CHUNK, BEHIND = 256, 640
MIX_BATCH = 8
ROWS_PACKED_FOR = 16


class Unguarded:
    """A weight that is packed and multiplied by oneDNN, which promises nothing about rows."""

    def __init__(self, weight: Gemm) -> None:
        self.in_features = weight.in_features
        values = weight.lookup()(torch.arange(weight.out_features))
        self._packed = torch.ops.mkldnn._reorder_linear_weight(values, ROWS_PACKED_FOR)
        self._bias = weight.bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
            x, self._packed, self._bias, "none", [], ""
        )
        return out


class Plain:
    """Linears of one input as one plain weight."""

    def __init__(self, *linears: nn.Linear) -> None:
        self.in_features = linears[0].in_features
        biases: list[torch.Tensor] = [linear.bias for linear in linears if linear.bias is not None]
        weights: list[torch.Tensor] = [linear.weight for linear in linears]
        self._weight = torch.cat(weights)
        self._bias = torch.cat(biases) if biases else None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self._weight, self._bias)


def unguarded_layer(layer: Layer) -> Layer:
    return replaced(
        layer,
        qkv=Unguarded(layer.qkv),
        o=Unguarded(layer.o),
        gate_up=Unguarded(layer.gate_up),
        down=Unguarded(layer.down),
    )


def plain_layer(layer: Layer, original: Any) -> Layer:
    attention, mlp = original.self_attn, original.mlp
    return replaced(
        layer,
        qkv=Plain(attention.q_proj, attention.k_proj, attention.v_proj),
        o=Plain(attention.o_proj),
        gate_up=Plain(mlp.gate_proj, mlp.up_proj),
        down=Plain(mlp.down_proj),
    )


def replaced(layer: Layer, **linears: Unguarded | Plain) -> Layer:
    return replace(layer, **linears)  # type: ignore[arg-type]  # they are called like a Gemm


def forward_with(
    served: Decoder, layers: list[Layer], head: Callable[..., torch.Tensor]
) -> Decoder:
    forward = copy.copy(served)
    forward.layers, forward.head, forward.most_recorded = layers, head, 0
    return forward


def forwards(loaded: LoadedModel, model: str) -> dict[str, Decoder]:
    """The decoder with each kind of linears."""
    served = loaded.decoder
    assert isinstance(served, Decoder), "this benchmark is for models that our decoder computes"
    original = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    plain = [plain_layer(*pair) for pair in zip(served.layers, original.model.layers, strict=True)]
    unguarded = [unguarded_layer(layer) for layer in served.layers]
    head = loaded.model.lm_head
    assert isinstance(head, PackedLinear)
    return {
        "packed": served,
        "unguarded": forward_with(served, unguarded, Unguarded(head.packed)),
        "torch": forward_with(served, plain, Plain(original.lm_head)),
    }


@functools.cache
def causal(count: int, stop: int) -> torch.Tensor:
    return torch.ones(count, stop, dtype=torch.bool).tril(stop - count)


def attend_dense(q: torch.Tensor, layer: int, plan: AttentionPlan, scaling: float) -> torch.Tensor:
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
        scale=scaling,
        enable_gqa=True,
    )
    return out.transpose(1, 2).reshape(q.shape)


ATTENTION: dict[str, Kernel] = {"tiles": attend_cpu, "dense": attend_dense}


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


def work(runner: Runner, attention: str, step: Step) -> Work:
    chunks, kernel, ours = step.chunks[attention], ATTENTION[attention], runner.loaded.decoder
    assert isinstance(ours, Decoder)
    if kernel is not attend_cpu:
        other = forward_with(ours, ours.layers, ours.head)
        other.attend = kernel
        runner = Runner(replace(runner.loaded, decoder=other), runner.pool)
    return partial(runner.forward, chunks)


def measure(runners: dict[str, Runner], step: Step, rounds: int) -> dict[str, float]:
    """Median seconds of every configuration."""
    names = [(linears, attention) for attention in ATTENTION for linears in runners]
    works = {
        f"{linears}, {attention}": work(runners[linears], attention, step)
        for linears, attention in names
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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--model", default=None)
    parser.add_argument(
        "--computed", type=int, default=7300, help="uncached prompt tokens of the mix"
    )
    parser.add_argument("--generated", type=int, default=1700, help="generated tokens of the mix")
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    model = options.model or str(embedded_model())
    loaded = load_model(model, DEVICE, torch.float32)
    pool = KVPool(loaded.shape, SLOTS, DEVICE)
    pool.k.normal_()
    pool.v.normal_()
    runners = {
        name: Runner(replace(loaded, decoder=each), pool)
        for name, each in forwards(loaded, model).items()
    }
    middle, batch = Step.prefill(BEHIND, loaded.vocab_size), Step.decode(MIX_BATCH)
    steps = [Step.decode(1), batch, Step.decode(16), Step.prefill(0, loaded.vocab_size), middle]
    times = {step.name: measure(runners, step, options.rounds) for step in steps}
    report(
        times, {middle.name: options.computed / CHUNK, batch.name: options.generated / MIX_BATCH}
    )


if __name__ == "__main__":
    main()
