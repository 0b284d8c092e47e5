"""The GEMM kernels against oneDNN's, for the shapes of some models: how many times as fast.

    python benchmarks/bench_gemm.py [--seconds 0.3] [--threads 1] [--set-mb 256] [--level auto]
        [OUTxIN ...]

For up to 16 rows each call uses another copy of the weight, from a set of at least --set-mb, so
that weights come from memory as in a decode step; for more rows one copy is used. All
implementations take turns, and the shortest time of each counts. A cell is the time of oneDNN's
operator of the same type of activations, divided by ours; the last two columns compare codes with
our bfloat16. The machine should be idle.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import cycle

import torch

from radixserve.kernels.cpu import levels
from radixserve.kernels.cpu.gemm.call import Gemm

Product = Callable[[torch.Tensor], torch.Tensor]
ROWS = (1, 4, 16, 64, 256)
FROM_MEMORY = 16  # most rows for which weights come from memory
SHAPES = (
    *("576x576", "960x576", "3072x576", "576x1536", "49152x576"),  # 135M
    *("4096x1024", "1024x3072"),  # 0.6B
    *("6144x2048", "2048x8192"),  # 1.7B
    *("6144x4096", "4096x14336"),  # 8B
)
COLUMNS = (
    ("bfloat16", "oneDNN bfloat16"),
    ("float32", "oneDNN float32"),
    ("float32 x bfloat16", "oneDNN float32"),
    ("8-bit codes", "bfloat16"),
    ("4-bit codes", "bfloat16"),
)


class Rotated:
    """One product by several copies of a weight, in turns."""

    def __init__(self, copies: Sequence[Product], dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._copies = cycle(copies)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return next(self._copies)(x)


def on_grid(weight: torch.Tensor, bits: int) -> torch.Tensor:
    """A weight that has codes of `bits` bits."""
    groups = weight.view(len(weight), -1, 32)
    low = groups.amin(2, keepdim=True).half().float()
    step = ((groups.amax(2, keepdim=True) - low) / ((1 << bits) - 1)).half().float()
    return (low + step * ((groups - low) / step).round().clamp(0, (1 << bits) - 1)).view_as(weight)


def onednn(weight: torch.Tensor, rows: int) -> Product:
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, rows)

    def multiply(x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")
        return out

    return multiply


def products(weight: torch.Tensor, rows: int, set_bytes: int) -> dict[str, Rotated]:
    """All implementations, each with a set of copies of its own if weights come from memory."""
    short = weight.bfloat16()
    makers: dict[str, tuple[int, torch.dtype, Callable[[], Product]]] = {
        "oneDNN bfloat16": (16, torch.bfloat16, lambda: onednn(short, rows)),
        "bfloat16": (16, torch.bfloat16, lambda: Gemm(short)),
        "oneDNN float32": (32, torch.float32, lambda: onednn(weight, rows)),
        "float32": (32, torch.float32, lambda: Gemm(weight)),
        "float32 x bfloat16": (16, torch.float32, lambda: Gemm(short, dtype=torch.float32)),
    }
    for bits in (8, 4):
        values = on_grid(weight, bits)
        assert Gemm(values).bits == bits, "the weight is on a grid"
        makers[f"{bits}-bit codes"] = (bits + 2, torch.float32, partial(Gemm, values))
    found = {}
    for name, (bits, dtype, make) in makers.items():
        copies = 1 if rows > FROM_MEMORY else -(-set_bytes * 8 // (weight.numel() * bits))
        found[name] = Rotated([make() for _ in range(copies)], dtype)
    return found


def shortest(work: Mapping[str, Callable[[], object]], seconds: float) -> dict[str, float]:
    """The shortest time of each, in turns. With one thread it is this thread's own time, so that
    other work on the machine counts less.
    """
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    best = dict.fromkeys(work, float("inf"))
    end, rounds = time.perf_counter() + seconds * len(work), 0
    while rounds < 8 or time.perf_counter() < end:
        for name, run in work.items():
            started = clock()
            run()
            best[name] = min(best[name], clock() - started)
        rounds += 1
    return best


def measured(weight: torch.Tensor, rows: int, options: argparse.Namespace) -> str:
    """A line of the table."""
    found = products(weight, rows, options.set_mb << 20)
    x = torch.randn(rows, weight.shape[1])
    inputs = {dtype: x.to(dtype) for dtype in (torch.float32, torch.bfloat16)}
    work = {
        name: (lambda product=product: product(inputs[product.dtype]))
        for name, product in found.items()
    }
    best = shortest(work, options.seconds)
    rate = 2e-9 * rows * weight.numel() / best["bfloat16"]
    ratios = " | ".join(f"{best[other] / best[name]:.2f}" for name, other in COLUMNS)
    return f"{best['bfloat16'] * 1e6:,.0f} | {rate:,.0f} | {ratios}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shapes", nargs="*", default=SHAPES)
    parser.add_argument("--seconds", type=float, default=0.3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--set-mb", type=int, default=256)
    parser.add_argument("--level", default="auto")
    parser.add_argument("--rows", type=int, nargs="*", default=ROWS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    levels.limit(options.level)
    print(f"level {levels.current().name}, {options.threads} threads\n")
    heads = " | ".join(name for name, _ in COLUMNS)
    print(f"| out x in | rows | bfloat16, us | GFLOP/s | {heads} |")
    print("|---" * (4 + len(COLUMNS)) + "|")
    for shape in options.shapes:
        outputs, inputs = (int(size) for size in shape.split("x"))
        weight = torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(0))
        for rows in options.rows:
            line = measured(weight / inputs**0.5, rows, options)
            print(f"| {shape} | {rows} | {line} |", flush=True)


if __name__ == "__main__":
    main()
