"""`KVStore`: the lines of README.md, exactly as they stand there, with the real model; with tiny
ones, what is refused, and what becomes of stored K/V when the model changes.
"""

from __future__ import annotations

import ast
import re
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, DynamicCache, Gemma3TextConfig, LlamaConfig
from transformers import PreTrainedModel as Model

from radixserve.errors import StartupError
from radixserve.store import KVStore
from radixserve.store.folder.fingerprint import weights_checksum
from tests.model.test_check import DYNAMIC, LONG, SMALL

README = Path(__file__).parent.parent.parent / "README.md"
HEADING = "## From transformers, without a server\n"


def lines_of_the_readme() -> str:
    """The one block of Python under the heading."""
    section = README.read_text().split(HEADING)[1].split("\n## ")[0]
    (block,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    return str(block)


def test_they_are_ten_statements_one_that_prints_and_the_imports() -> None:
    statements = [
        each
        for each in ast.walk(ast.parse(lines_of_the_readme()))
        if isinstance(each, ast.stmt) and not isinstance(each, ast.Import | ast.ImportFrom)
    ]
    assert len(statements) == 11


@pytest.mark.model
@pytest.mark.slow
def test_twenty_greedy_tokens_from_memory_and_from_the_store_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What they assert, and that it was the store which gave the second cache."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lines.py").write_text(lines_of_the_readme())
    seen = runpy.run_path(str(tmp_path / "lines.py"))
    assert seen["num_tokens"] == 59
    assert seen["stored"] is not seen["cache"]
    assert seen["first"].sequences.shape == (1, 60 + 20)
    assert len(seen["first"].logits) == 20
    assert (tmp_path / "kv-store" / "index.sqlite").exists()


PROMPT = torch.arange(3, 40)[None]


def model_of(**changes: Any) -> Model:
    torch.manual_seed(1)
    config = LlamaConfig(**SMALL, initializer_range=0.3, **changes)
    return AutoModelForCausalLM.from_config(config).eval()


@torch.inference_mode()
def computed(model: Model, prompt: torch.Tensor = PROMPT) -> DynamicCache:
    cache = DynamicCache()
    model(prompt[:, :-1], past_key_values=cache)
    return cache


def same(one: DynamicCache, other: DynamicCache) -> bool:
    return all(
        torch.equal(a.keys, b.keys) and torch.equal(a.values, b.values)
        for a, b in zip(one.layers, other.layers, strict=True)
    )


# Models that are refused.


@pytest.mark.parametrize("rope", [DYNAMIC, LONG], ids=lambda rope: rope["rope_type"])
def test_rotary_positions_that_depend_on_the_length_are_refused(
    tmp_path: Path, rope: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match=f"has {rope['rope_type']} rotary positions"):
        KVStore(tmp_path / "s", model_of(rope_parameters=rope))
    assert not (tmp_path / "s").exists()


def test_they_are_refused_where_they_belong_to_some_layers_only(tmp_path: Path) -> None:
    rope = {
        "full_attention": DYNAMIC,
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    config = Gemma3TextConfig(
        **SMALL, head_dim=8, layer_types=["full_attention"] * 2, rope_parameters=rope
    )
    with pytest.raises(ValueError, match="has dynamic rotary positions"):
        KVStore(tmp_path / "s", AutoModelForCausalLM.from_config(config).eval())


def test_a_folder_that_is_no_store_is_refused(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "events.out").write_text("precious")
    with pytest.raises(StartupError, match="is not empty and no store"):
        KVStore(tmp_path, model_of())
    assert (tmp_path / "runs" / "events.out").read_text() == "precious"


def test_a_folder_that_others_can_write_to_is_used_where_they_are_trusted(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s").chmod(0o770)
    with pytest.raises(StartupError, match="can be written by its group"):
        KVStore(tmp_path / "s", model_of())
    with KVStore(tmp_path / "s", model_of(), trust_others=True) as store:
        assert store.put(PROMPT, computed(model_of())) == 36


# Models that change while the store is open.


def scaled(model: Model) -> None:
    """As an adapter that is merged does it; no counter of torch's sees that."""
    model.model.layers[0].self_attn.k_proj.weight.data.mul_(1.5)


def one_weight(model: Model) -> None:
    model.model.layers[1].mlp.up_proj.weight.data[3, 5] += 1e-3


def trained(model: Model) -> None:
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    model(PROMPT, labels=PROMPT).loss.backward()
    optimizer.step()
    model.eval()


def exchanged(model: Model) -> None:
    layer = model.model.layers[0].self_attn
    layer.k_proj.weight = nn.Parameter(layer.k_proj.weight.detach() * 2)


def rows_exchanged(model: Model) -> None:
    weight = model.model.embed_tokens.weight.data
    weight.copy_(weight.flip(0))


def other_frequencies(model: Model) -> None:
    """In a buffer that no file of the model has."""
    model.model.rotary_emb.inv_freq.mul_(0.5)


def loaded(model: Model) -> None:
    torch.manual_seed(2)
    model.load_state_dict(AutoModelForCausalLM.from_config(model.config).state_dict())


CHANGES = (scaled, one_weight, trained, exchanged, rows_exchanged, other_frequencies, loaded)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_change_of_the_weights_is_noticed_by_get(
    tmp_path: Path, change: Callable[[Model], None]
) -> None:
    model = model_of()
    with KVStore(tmp_path / "s", model) as store:
        store.put(PROMPT, computed(model))
        assert store.get(PROMPT)[1] == 36
        change(model)
        assert store.get(PROMPT)[1] == 0
        now = computed(model)
        assert store.put(PROMPT, now) == 36
        found, num_tokens = store.get(PROMPT)
        assert num_tokens == 36
        assert same(found, now)


def test_kv_whose_weights_changed_meanwhile_is_not_stored(tmp_path: Path) -> None:
    model = model_of()
    with KVStore(tmp_path / "s", model) as store:
        before = computed(model)
        scaled(model)
        assert store.put(PROMPT, before) == 0, "of which weights it is nobody can tell"
        assert store.get(PROMPT)[1] == 0
        assert store.put(PROMPT, computed(model)) == 36


def test_kv_is_found_again_when_its_weights_come_back(tmp_path: Path) -> None:
    model, before = model_of(), computed(model_of())
    with KVStore(tmp_path / "s", model) as store:
        store.put(PROMPT, before)
        weight = model.model.layers[0].self_attn.k_proj.weight
        kept = weight.detach().clone()
        scaled(model)
        assert store.get(PROMPT)[1] == 0
        weight.data.copy_(kept)
        found, num_tokens = store.get(PROMPT)
        assert num_tokens == 36
        assert same(found, before)
    with KVStore(tmp_path / "s", model) as store:
        assert store.get(PROMPT)[1] == 36


def test_another_dtype_is_another_model(tmp_path: Path) -> None:
    model = model_of()
    with KVStore(tmp_path / "s", model) as store:
        store.put(PROMPT, computed(model))
        model.to(torch.bfloat16)
        assert store.get(PROMPT)[1] == 0
        assert store.put(PROMPT, computed(model)) == 36
        assert same(store.get(PROMPT)[0], computed(model))


class Adapter(nn.Module):
    """What adapters of the peft library tell about themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.active_adapters, self.disable_adapters = ["first"], False


def test_an_adapter_that_is_switched_is_noticed(tmp_path: Path) -> None:
    model, adapter = model_of(), Adapter()
    model.add_module("adapter", adapter)
    with KVStore(tmp_path / "s", model) as store:
        store.put(PROMPT, computed(model))
        assert store.get(PROMPT)[1] == 36
        adapter.active_adapters = ["second"]
        assert store.get(PROMPT)[1] == 0
        adapter.active_adapters, adapter.disable_adapters = ["first"], True
        assert store.get(PROMPT)[1] == 0
        adapter.disable_adapters = False
        assert store.get(PROMPT)[1] == 36


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8, torch.bool])
@pytest.mark.parametrize("size", [(), (0,), (1,), (511,), (3, 1367), (64, 64, 2)])
def test_the_checksum_sees_a_change_of_any_element(
    dtype: torch.dtype, size: tuple[int, ...]
) -> None:
    weight = torch.randint(0, 2, size).to(dtype)
    before = weights_checksum({"w": weight})
    assert before == weights_checksum({"w": weight.clone()})
    assert before != weights_checksum({"v": weight})
    for at in {0, weight.numel() // 2, weight.numel() - 1} if weight.numel() else ():
        changed = weight.clone().reshape(-1)
        changed[at] = 1 - changed[at].to(torch.int8)
        assert weights_checksum({"w": changed.view(size)}) != before
    if len(size) == 2:
        assert weights_checksum({"w": weight.T}) != before
        assert weights_checksum({"w": weight.reshape(-1)[1:]}) != before
