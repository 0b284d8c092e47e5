"""How large are the differences that the load check allows, and those that it must find?

    python benchmarks/bench_load_check.py [--models llama qwen3 ...] [--seeds 4]

For each model and dtype it prints, as multiples of the rounding `n` that the check measures:

- own: the largest `n` by the least one over the probes, how much chance there is in it;
- layers: what nudging the result of every layer, and not only the embeddings, changes;
- ours: what our path differs by, in both chunkings, with and without the fast forward;
- float32: what the same weights computed in float32 differ by: a path that does not round at all;
- hidden: the least that something of `tests.model.test_hidden` changes, and what that is.

The check allows 3 in half precision and 30 in float32. The model `embedded` is the default model.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel, Qwen3Config

sys.path.insert(0, str(Path(__file__).parent.parent))

from radixserve.checkpoints.embedded import embedded_model
from radixserve.model import check, probes
from radixserve.model.dtypes import dtype_name
from radixserve.model.load import prepare_model
from tests.model.test_hidden import HIDDEN
from tests.tiny import CONFIGS, CPU, IN_PANELS, tiny_model

DEEP: dict[str, Any] = {
    **IN_PANELS,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 16,
    "num_key_value_heads": 2,
}
CONFIGS["llama_deep"] = lambda: LlamaConfig(**DEEP)
CONFIGS["qwen3_deep"] = lambda: Qwen3Config(**DEEP)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass
class Found:
    """Differences as multiples of the rounding, of one model in one dtype."""

    rounding: list[float] = field(default_factory=list)  # a part of the logits' size
    layers: list[float] = field(default_factory=list)
    ours: list[float] = field(default_factory=list)
    float32: list[float] = field(default_factory=list)
    hidden: list[tuple[float, str]] = field(default_factory=list)

    def line(self) -> str:
        """One line of the table."""
        own = max(self.rounding) / min(self.rounding)
        least, what = min(self.hidden, default=(0.0, "-"))
        return (
            f"{min(self.rounding):8.1e} {own:5.2f} {max(self.layers):6.2f} {max(self.ours):5.2f} "
            f"{max(self.float32, default=0.0):7.2f} {least:9.1f}  {what}"
        )


def model_of(name: str, dtype: torch.dtype, seed: int) -> PreTrainedModel:
    if name != "embedded":
        return tiny_model(name, seed).to(dtype)
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(embedded_model(), dtype=dtype)
    return model.eval()


@contextmanager
def nudged_layers(model: Any) -> Iterator[None]:
    """Within the block the result of every decoder layer is nudged like the embeddings."""

    def hook(module: Any, inputs: Any, out: Any) -> Any:
        if isinstance(out, tuple):
            return (check._with_other_last_bits(module, inputs, out[0]), *out[1:])
        return check._with_other_last_bits(module, inputs, out)

    layers = [each for each in model.modules() if type(each).__name__.endswith(("Layer", "Block"))]
    hooks = [layer.register_forward_hook(hook) for layer in layers]
    try:
        yield
    finally:
        for each in hooks:
            each.remove()


def measure(name: str, dtype: torch.dtype, seed: int, found: Found) -> None:
    """Add what one model (with other random tokens and, if it is tiny, weights per seed) shows."""
    probes.PROBE_SEED = seed
    model = model_of(name, dtype, seed)
    vocab_size = int(model.config.vocab_size)
    ids = probes.probe_tokens(vocab_size)
    expected = check.own_logits(model, vocab_size, CPU)
    rounding = expected.rounding
    found.rounding.append(rounding)
    with torch.inference_mode():
        with nudged_layers(model):
            moved = check._own_forward(model, ids)[0]
        found.layers.append(expected.difference(0, moved) / rounding)
        if dtype != torch.float32:
            unrounded = check._own_forward(copy.deepcopy(model).float(), ids)[0]
            found.float32.append(expected.difference(0, unrounded) / rounding)
    if name in ("llama", "qwen3", "embedded"):
        for what, hide in HIDDEN.items():
            other = copy.deepcopy(model)
            hide(other)
            with torch.inference_mode():
                changed = check._own_forward(other, ids)[0]
            found.hidden.append((expected.difference(0, changed) / rounding, what))
    loaded = prepare_model(model, CPU)
    for each in {id(x.decoder): x for x in (loaded, replace(loaded, decoder=None))}.values():
        for logits in check._both(each, ids[0]):
            found.ours.append(expected.difference(0, logits) / rounding)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", nargs="+", default=[*CONFIGS, "embedded"])
    parser.add_argument("--seeds", type=int, default=4)
    options = parser.parse_args()
    print("model            dtype    rounding   own layers  ours float32    hidden")
    for name in options.models:
        for dtype in DTYPES:
            found = Found()
            for seed in range(options.seeds):
                measure(name, dtype, seed, found)
            print(f"{name:16} {dtype_name(dtype):8} {found.line()}", flush=True)


if __name__ == "__main__":
    main()
