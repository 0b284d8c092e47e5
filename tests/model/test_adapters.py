"""Adapters in the decoder: the tokens of transformers with merged weights, rows that do not depend
on their batch, and which K/V an adapter leaves alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from radixserve.checkpoints.adapter_files import open_adapter
from radixserve.errors import AdapterRefused
from radixserve.model.adapters import LoadedAdapter, load_adapter
from radixserve.model.load import prepare_model
from radixserve.model.runner import Runner
from radixserve.step import Logits
from radixserve.tensors.kv import KVPool
from tests.adapters import ALL, merge, write_adapter
from tests.tiny import CPU, chunk, load_tiny, tiny_model, with_own_modules

PROMPT = [5, 17, 3, 88, 41, 2, 60, 60, 9, 33]
LAST = r"layers\.1\."

Adapter = LoadedAdapter | None


def runner_of(model: Any) -> Runner:
    loaded = prepare_model(model, CPU)
    return Runner(loaded, KVPool(loaded.shape, 256, CPU))


def adapter_for(runner: Runner, folder: Path) -> LoadedAdapter:
    return load_adapter(open_adapter(folder), runner.loaded)


def logits_of(runner: Runner, *rows: tuple[list[int], Adapter], at: int = 0) -> torch.Tensor:
    """Logits of all tokens of some sequences in one step; each has 32 slots from `at` on."""
    chunks = []
    for i, (ids, adapter) in enumerate(rows):
        begin = at + 32 * i
        each = chunk(ids, 0, range(begin, begin + len(ids)))
        each.adapter = adapter
        chunks.append(each)
    return runner.forward(chunks).clone()


def greedy(runner: Runner, adapter: Adapter, count: int) -> list[int]:
    ids, start = list(PROMPT), 0
    for _ in range(count):
        each = chunk(ids[start:], start, range(len(ids)), Logits.LAST)
        each.adapter = adapter
        start = len(ids)
        ids.append(int(runner.forward([each])[-1].argmax()))
    return ids[len(PROMPT) :]


@pytest.mark.parametrize(
    ("name", "targets", "config"),
    [
        ("llama_grouped", ALL, {}),
        ("llama_grouped_bfloat16", ALL, {}),
        ("qwen3", ("q_proj", "v_proj", "down_proj", "lm_head"), {"use_rslora": True}),
        ("gpt2", ("c_attn", "c_proj", "c_fc"), {"fan_in_fan_out": True}),
    ],
)
def test_an_adapter_gives_the_logits_and_tokens_of_merged_weights(
    name: str, targets: tuple[str, ...], config: dict[str, Any], tmp_path: Path
) -> None:
    model = tiny_model(name)
    folder = write_adapter(tmp_path, model, targets, alpha=2.0, size=0.1, **config)
    runner = runner_of(tiny_model(name))
    merged = merge(model.float(), folder, 1.0 if config.get("use_rslora") else 0.5)
    adapter = adapter_for(runner, folder)
    with torch.inference_mode():
        expected = merged(torch.tensor([PROMPT])).logits[0]
    found = logits_of(runner, (PROMPT, adapter))
    near = 0.08 if name.endswith("bfloat16") else 2e-5
    scale = float(expected.abs().max())
    assert float((found - expected).abs().max()) < near * scale
    assert float((logits_of(runner, (PROMPT, None)) - expected).abs().max()) > 0.1 * scale
    if near < 1e-3:
        ids = torch.tensor([PROMPT])
        wanted = merged.generate(ids, max_new_tokens=8, do_sample=False, eos_token_id=None)
        assert greedy(runner, adapter, 8) == wanted[0, len(PROMPT) :].tolist()


def test_rows_have_the_same_bits_in_every_batch(tmp_path: Path) -> None:
    runner = runner_of(tiny_model("llama_grouped"))
    model = tiny_model("llama_grouped")
    folders = [write_adapter(tmp_path / str(i), model, rank=2 + 3 * i, seed=i) for i in range(3)]
    adapters: list[Adapter] = [None, *(adapter_for(runner, each) for each in folders)]
    rows = [(PROMPT[i:] + PROMPT[:i], adapters[i % 4]) for i in range(8)]
    together = logits_of(runner, *rows)
    for i, (ids, adapter) in enumerate(rows):
        alone = logits_of(runner, (ids, adapter))
        assert torch.equal(together[10 * i : 10 * i + 10], alone)
        recorded = runner.loaded.decoder.most_recorded  # type: ignore[union-attr]
        runner.loaded.decoder.most_recorded = 0  # type: ignore[union-attr]
        assert torch.equal(alone, logits_of(runner, (ids, adapter)))
        runner.loaded.decoder.most_recorded = recorded  # type: ignore[union-attr]
    with_others = logits_of(runner, *rows)
    plain = Runner(load_tiny("llama_grouped"), KVPool(runner.pool.shape, 256, CPU))
    assert torch.equal(with_others[:10], logits_of(plain, rows[0]))


UNTOUCHED = [
    (("q_proj", "o_proj", "up_proj", "down_proj"), LAST, True),
    (("lm_head",), "", True),
    (("q_proj",), "", False),
    (("k_proj",), LAST, False),
    (("v_proj",), LAST, False),
    (("down_proj",), r"layers\.0\.", False),
]


@pytest.mark.parametrize(("targets", "only", "untouched"), UNTOUCHED)
def test_an_adapter_that_leaves_kv_alone_is_told_by_the_bits_of_kv(
    targets: tuple[str, ...], only: str, untouched: bool, tmp_path: Path
) -> None:
    runner = runner_of(tiny_model("llama_grouped"))
    model = tiny_model("llama_grouped")
    adapter = adapter_for(runner, write_adapter(tmp_path, model, targets, only=only))
    logits = logits_of(runner, (PROMPT, None))
    assert not torch.equal(logits, logits_of(runner, (PROMPT, adapter), at=64))
    assert torch.equal(kv_of(runner, 0), kv_of(runner, 64)) == untouched
    assert (adapter.kv_digest == "") == untouched


def kv_of(runner: Runner, begin: int) -> torch.Tensor:
    """K and V of the prompt at all layers."""
    return torch.stack([*runner.pool.k, *runner.pool.v])[:, begin : begin + len(PROMPT)]


def test_digests_name_what_is_computed(tmp_path: Path) -> None:
    runner, model = runner_of(tiny_model("llama_grouped")), tiny_model("llama_grouped")
    first, again, other, scaled = (
        adapter_for(runner, write_adapter(tmp_path / str(i), model, seed=seed, alpha=alpha))
        for i, (seed, alpha) in enumerate([(0, 8.0), (0, 8.0), (1, 8.0), (0, 4.0)])
    )
    assert (first.digest, first.kv_digest) == (again.digest, again.kv_digest)
    assert len({first.digest, other.digest, scaled.digest}) == 3
    assert len({first.kv_digest, other.kv_digest, scaled.kv_digest}) == 3


def test_other_models_are_told(tmp_path: Path) -> None:
    runner = runner_of(tiny_model("llama_grouped"))
    folder = write_adapter(tmp_path / "wide", tiny_model("llama"), ("k_proj",))
    with pytest.raises(
        AdapterRefused, match=r"another model: .*k_proj is \[64, 64\] there and \[32"
    ):
        adapter_for(runner, folder)
    folder = write_adapter(tmp_path / "gpt2", tiny_model("gpt2"), ("c_attn",))
    with pytest.raises(AdapterRefused, match=r"modules that this model has not.*c_attn"):
        adapter_for(runner, folder)
    folder = write_adapter(tmp_path / "good", tiny_model("llama_grouped"))
    adapter_for(runner, folder)
    generic = with_own_modules(load_tiny("llama_grouped"))
    with pytest.raises(AdapterRefused, match="need the fast forward"):
        load_adapter(open_adapter(folder), generic)
