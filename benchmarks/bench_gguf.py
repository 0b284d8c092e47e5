"""GGUF files: tokens a second beside llama.cpp's, with the same file and threads, loading, memory.

    python benchmarks/bench_gguf.py LLAMA_BENCH FILE.gguf ... [--threads 2] [--rounds 3]
        [--prompt 512] [--tokens 64] [--dtype float32]

LLAMA_BENCH is the path of llama.cpp's program of that name. Each file is loaded in a process of its
own, without HTTP; both sides then take turns, and medians are compared. Memory is what the process
holds for weights, not code or K/V. Kernels are compiled at the first run ever, so run it twice.
With one thread processor time is compared, so that other work on the machine counts less.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from radixserve.checkpoints.source import find_model
from radixserve.config import Settings
from radixserve.engine.load import load
from radixserve.model.decoder import Decoder
from radixserve.model.runner import Runner
from radixserve.step import Chunk
from radixserve.tensors.kv import KVPool

SLOTS = 4096
WORKER = "--worker"


def rates(forward: Callable[[list[Chunk]], object], prompt: int, tokens: int) -> list[float]:
    """Tokens a second of a prompt, and of an answer behind nothing."""
    slots = np.arange(SLOTS, dtype=np.int32)
    ids = np.random.default_rng(1).integers(5, 1000, max(prompt, tokens)).astype(np.int32)
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    started = clock()
    forward([Chunk(ids[:prompt], 0, slots[:prompt])])
    prefilled = clock()
    for at in range(tokens):
        forward([Chunk(ids[at : at + 1], at, slots[: at + 1])])
    return [prompt / (prefilled - started), tokens / (clock() - prefilled)]


def work(options: argparse.Namespace) -> None:
    """The process of a model: a line of JSON when it is loaded, then one for each line on stdin."""
    torch.set_num_threads(options.threads)
    settings = Settings(model=(options.files[0],), dtype=options.dtype)
    folder = str(find_model(settings).folder)
    started = time.perf_counter()
    loaded = load(settings, folder, torch.device("cpu")).model
    seconds = time.perf_counter() - started
    assert isinstance(loaded.decoder, Decoder), "the fast forward serves"
    tensors = loaded.decoder.weights.tensors().values()
    sizes = {each.data_ptr(): each.nbytes for each in tensors}
    runner = Runner(loaded, KVPool(loaded.shape, SLOTS, torch.device("cpu")))
    rates(runner.forward, options.prompt, 3)
    print(json.dumps([seconds, sum(sizes.values())]), flush=True)
    for _ in sys.stdin:
        print(json.dumps(rates(runner.forward, options.prompt, options.tokens)), flush=True)


def llama_rates(options: argparse.Namespace, file: str) -> list[float]:
    """The same of llama.cpp."""
    command = [options.llama_bench, "-m", file, "-t", str(options.threads), "-r", "1", "-o", "json"]

    def run(prompt: int, tokens: int) -> tuple[str, float]:
        """What it prints, and the processor time that it took."""
        before = processor_seconds()
        sizes = ["-p", str(prompt), "-n", str(tokens)]
        done = subprocess.run(command + sizes, capture_output=True, text=True, check=True)
        return done.stdout, processor_seconds() - before

    prompt, tokens = options.prompt, options.tokens
    if options.threads == 1:  # its start takes time, too, so two lengths are compared
        long, short = run(2 * prompt, 0)[1], run(prompt, 0)[1]
        more, fewer = run(0, 2 * tokens)[1], run(0, tokens)[1]
        return [prompt / (long - short), tokens / (more - fewer)]
    answers = json.loads(run(prompt, tokens)[0])
    found = {bool(each["n_gen"]): float(each["avg_ts"]) for each in answers}
    return [found[False], found[True]]


def processor_seconds() -> float:
    """Processor time of all processes that this one has started and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def compare(options: argparse.Namespace, file: str) -> str:
    """A line of the table."""
    command = [sys.executable, __file__, options.llama_bench, file, WORKER]
    for name in ("threads", "prompt", "tokens", "dtype"):
        command += [f"--{name}", str(getattr(options, name))]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdin is not None
    assert child.stdout is not None
    seconds, held = json.loads(child.stdout.readline())
    ours, theirs = [], []
    for _ in range(options.rounds):
        theirs.append(llama_rates(options, file))
        child.stdin.write("\n")
        child.stdin.flush()
        ours.append(json.loads(child.stdout.readline()))
    child.communicate()
    size, cells = Path(file).stat().st_size, []
    for which in range(2):
        mine, other = (statistics.median(each[which] for each in side) for side in (ours, theirs))
        cells += [f"{mine:,.0f}", f"{other:,.0f}", f"{mine / other:.2f}"]
    cells += [f"{held / size:.2f}", f"{seconds:.1f}", f"{size / (1 << 20):,.0f}"]
    return f"| {Path(file).name} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("llama_bench")
    parser.add_argument("files", nargs="+")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument(WORKER, action="store_true")
    options = parser.parse_args()
    if options.worker:
        work(options)
        return
    print(
        "| file | prefill | llama.cpp | ratio | decode | llama.cpp | ratio | memory / file |",
        end="",
    )
    print(" load, s | MiB |\n" + "|---" * 10 + "|")
    for file in options.files:
        print(compare(options, file), flush=True)


if __name__ == "__main__":
    main()
