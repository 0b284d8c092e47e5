"""Adapters: throughput of a batch in which every request has another adapter, relative to the model
alone.

    python benchmarks/bench_lora.py [--rounds 20] [--tokens 24] [--prompt 64] [--rank 16]
        [--batch 8]

The embedded model, one engine in this process. A round answers a batch of prompts without adapters,
with 8 different ones in turn (all seven linears of a layer, random factors), with one and the same,
and without again. Nothing is found in the cache. Prints the ratio of the times, median and
quartiles over rounds, for factors in float32 and in bfloat16: of the whole answers, and of the
median decode step. At last the ratio of the fastest tenth of all decode steps, which other work on
the machine disturbs least.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

from radixserve.adapters import AdapterInfo, AdapterSource, namespace_with
from radixserve.checkpoints.embedded import embedded_model
from radixserve.config import Settings
from radixserve.engine.build import build_engine
from radixserve.engine.core import EngineCore
from radixserve.prefix import PUBLIC
from radixserve.request import Request, Sampling

COUNT = 8
_SEVERAL, _ONE = f"{COUNT} adapters", "1 adapter"
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def write_adapter(folder: Path, model: Path, rank: int, seed: int, dtype: torch.dtype) -> None:
    """An adapter of all linears of the model's layers."""
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model))
    generator, tensors = torch.Generator().manual_seed(seed), {}
    for name, module in empty.named_modules():
        if name.rpartition(".")[2] in TARGETS:
            outputs, inputs = module.weight.shape
            for which, shape in (("A", (rank, inputs)), ("B", (outputs, rank))):
                factor = 0.02 * torch.randn(*shape, generator=generator)
                tensors[f"base_model.model.{name}.lora_{which}.weight"] = factor.to(dtype)
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": list(TARGETS)}
    (folder / "adapter_config.json").write_text(json.dumps(config))


class Bench:
    """One engine and its adapters."""

    def __init__(self, core: EngineCore, adapters: tuple[AdapterInfo, ...]) -> None:
        self._core, self._adapters = core, adapters
        self._asked = 0
        self.steps: dict[str, list[float]] = {}  # seconds of decode steps

    def seconds(
        self, kind: str, which: list[AdapterInfo | None], prompt: int, tokens: int
    ) -> np.ndarray:
        """How long requests with these adapters take together, and their median decode step."""
        began, waiting = time.perf_counter(), set()
        for adapter in which:
            waiting.add(self._submit(adapter, prompt, tokens))
        steps = []
        while self._core.has_work:
            step, is_decode = time.perf_counter(), not waiting
            for event in self._core.step():
                waiting.discard(event.request_id)
            if is_decode:
                steps.append(time.perf_counter() - step)
        self.steps.setdefault(kind, []).extend(steps)
        return np.array([time.perf_counter() - began, np.median(steps)])

    def fastest(self, kind: str) -> float:
        """The ratio of the fastest tenth of steps without adapters by those of this kind."""
        plain, some = (np.percentile(self.steps[each], 10) for each in ("none", kind))
        return float(plain / some)

    def _submit(self, adapter: AdapterInfo | None, prompt: int, tokens: int) -> str:
        self._asked += 1
        draws = np.random.default_rng(self._asked)
        request = Request(
            id=str(self._asked),
            prompt_ids=draws.integers(100, 40_000, prompt).tolist(),
            sampling=Sampling(max_tokens=tokens, seed=0, temperature=0.0),
            namespace=PUBLIC if adapter is None else namespace_with(PUBLIC, adapter.kv_digest),
            adapter="" if adapter is None else adapter.digest,
        )
        self._core.submit(request, [])
        return request.id

    def round(self, batch: int, prompt: int, tokens: int) -> dict[str, np.ndarray]:
        """Times without adapters by those with some."""
        whole: list[AdapterInfo | None] = [self._adapters[i % COUNT] for i in range(batch)]
        plain = self.seconds("none", [None] * batch, prompt, tokens)
        several = self.seconds(_SEVERAL, whole, prompt, tokens)
        one = self.seconds(_ONE, whole[:1] * batch, prompt, tokens)
        again = self.seconds("none", [None] * batch, prompt, tokens)
        plain = (plain + again) / 2
        return {_SEVERAL: plain / several, _ONE: plain / one}


def main() -> None:
    parser = argparse.ArgumentParser()
    defaults = {"rounds": 20, "tokens": 24, "prompt": 64, "rank": 16, "batch": COUNT}
    for name, default in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    model = embedded_model()
    for dtype in (torch.float32, torch.bfloat16):
        with tempfile.TemporaryDirectory() as folder:
            sources = []
            for seed in range(COUNT):
                path = Path(folder) / str(seed)
                write_adapter(path, model, given.rank, seed, dtype)
                sources.append(AdapterSource(str(seed), str(path)))
            settings = Settings(kv_budget=1 << 30, max_running=given.batch, prefill_share=0.0)
            core, info = build_engine(settings, str(model), sources)
        bench = Bench(core, info.adapters)
        how = given.batch, given.prompt, given.tokens
        bench.round(*how)
        rounds = [bench.round(*how) for _ in range(given.rounds)]
        for name in rounds[0]:
            found = np.array([each[name] for each in rounds])
            for part, column in (("whole", found[:, 0]), ("decode", found[:, 1])):
                low, middle, high = np.percentile(column, [25, 50, 75])
                told = f"{middle:.3f} ({low:.3f} to {high:.3f})"
                print(f"{dtype!s:15} {name:11} {part:7} {told} of the model alone")
            fastest = f"{bench.fastest(name):.3f}"
            print(f"{dtype!s:15} {name:11} fastest {fastest} of the model alone")


if __name__ == "__main__":
    main()
