"""A model that was checked is loaded without transformers, as the same bits; whatever has changed
since is checked anew.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig

from radixserve.checkpoints import gguf_file
from radixserve.checkpoints.gguf_file import GGUF_FILE, GgufFile
from radixserve.config import Settings
from radixserve.engine import load as loading
from radixserve.engine.load import Load, load
from radixserve.errors import ConfigError, ModelRefused
from radixserve.kept_files import KeptFiles
from radixserve.kernels.cpu import levels
from radixserve.model import direct, proof
from radixserve.model.decoder import Decoder
from radixserve.model.proof import Proof
from radixserve.model.recipe import Call
from radixserve.model.runner import Runner
from radixserve.tensors.kv import KVPool
from tests.checkpoints.test_gguf_file import CONFIG, write
from tests.checkpoints.test_text_part import wrapper
from tests.model.test_families import tiny
from tests.tiny import CPU, IN_BFLOAT16, VOCAB, chunk, tiny_model

LLAMA = ("llama", "llama_grouped", "qwen2", "qwen3", "mistral", *IN_BFLOAT16[:2])
FAMILIES = (
    "apertus",  # constants of an activation are weights
    "bloom",  # slopes; q, k and v lie in groups
    "gemma3_text",  # windows, two rotary tables, norms add one
    "gpt2",  # transposed weights, learned positions
    "gptj",  # a rotary table that the model keeps
    "nanochat",  # norms without weights
    "opt 350m",  # linears around the layers
    "olmo",  # q, k and v are clipped
    "stablelm parallel",  # a norm for each head
    "cohere2_moe",  # experts beside a shared one
    "deepseek_v2",  # latents; groups of experts; complex rotary numbers
    "gpt_oss",  # experts in tensors of three dimensions, gate and up taking turns
    "mixtral",  # experts one by one, under other names
)
SETTINGS = Settings()


@pytest.fixture(autouse=True)
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of proofs."""
    folder = tmp_path / "cache" / "proofs"
    monkeypatch.setattr(proof, "_PROOFS", KeptFiles(str(folder), b"proof\n"))
    return folder


def saved(name: str, folder: Path) -> str:
    tiny_model(name).save_pretrained(folder / "model")
    return str(folder / "model")


@pytest.fixture
def model(tmp_path: Path) -> str:
    """A model that was checked once."""
    path = saved("llama_grouped", tmp_path)
    assert load(SETTINGS, path, CPU).load_check == "run"
    return path


def computed(found: Load) -> torch.Tensor:
    ids = torch.randint(0, VOCAB, (150,), generator=torch.Generator().manual_seed(0)).tolist()
    pool = KVPool(found.model.shape, 150, CPU)
    runner = Runner(found.model, pool)
    whole = runner.forward([chunk(ids, 0, range(150))])
    return torch.cat([whole, runner.forward([chunk(ids[140:], 140, range(150))])])


def facts(found: Load) -> dict[str, Any]:
    named = {each.name: getattr(found.model, each.name) for each in fields(found.model)}
    del named["model"], named["decoder"]
    return named | {"stored": found.stored_dtype}


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        *((name, {}) for name in LLAMA),
        *((LLAMA[1], settings) for settings in ({"dtype": "bfloat16"}, {"kv_dtype": "int8"})),
        ("qwen3_moe", {"quantize": "int4"}),
        ("llama_grouped_bfloat16", {"quantize": "int8"}),
    ],
)
def test_a_second_load_gives_the_same_bits_and_facts_without_transformers(
    name: str, settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_loaded_as_the_same(saved(name, tmp_path), Settings(**settings), monkeypatch)


@pytest.mark.parametrize("name", FAMILIES)
def test_so_does_that_of_every_kind_of_family(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny(name).save_pretrained(tmp_path / "model")
    is_loaded_as_the_same(str(tmp_path / "model"), SETTINGS, monkeypatch)


def test_so_does_that_of_codes_in_a_gguf_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = in_gguf_file(tmp_path)
    is_loaded_as_the_same(path, SETTINGS, monkeypatch)
    with monkeypatch.context() as by_package:
        by_package.setattr(gguf_file, "_FLOATS", {})
        assert load(SETTINGS, path, CPU).load_check == "remembered"


def test_so_does_that_of_the_text_part_of_a_wrapper_in_several_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrapper("gemma3").save_pretrained(tmp_path / "model", max_shard_size="100KB")
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > 2
    is_loaded_as_the_same(str(tmp_path / "model"), SETTINGS, monkeypatch)


def is_loaded_as_the_same(path: str, chosen: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load(chosen, path, CPU)
    with monkeypatch.context() as forbidden:
        forbidden.setattr(loading, "_checked", None)
        second = load(chosen, path, CPU)
    assert (first.load_check, second.load_check) == ("run", "remembered")
    assert isinstance(second.model.decoder, Decoder)
    assert isinstance(first.model.decoder, Decoder)
    assert second.model.decoder.weights.targets == first.model.decoder.weights.targets
    assert facts(second) == facts(first)
    assert torch.equal(computed(second), computed(first))


_ALONE = """
import sys, torch
from radixserve.config import Settings
from radixserve.engine.load import load
from radixserve.kept_files import KeptFiles
from radixserve.model import proof

proof._PROOFS = KeptFiles(sys.argv[2], b"proof\\n")
torch.set_num_threads(int(sys.argv[3]))
print(load(Settings(), sys.argv[1], torch.device("cpu")).load_check)
print([name for name in sys.modules if name.split(".")[0] in ("transformers", "gguf")])
"""


def test_a_later_start_imports_no_transformers(tmp_path: Path, kept: Path) -> None:
    path = in_gguf_file(tmp_path)
    load(SETTINGS, path, CPU)
    command = [sys.executable, "-c", _ALONE, path, str(kept), str(torch.get_num_threads())]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines() == ["remembered", "[]"]


def in_gguf_file(folder: Path) -> str:
    path = folder / "gguf"
    path.mkdir()
    write(path / GGUF_FILE)
    LlamaConfig(architectures=["LlamaForCausalLM"], **CONFIG).save_pretrained(path)
    return str(path)


def test_what_runs_through_its_own_modules_is_checked_at_every_start(
    tmp_path: Path, kept: Path
) -> None:
    path = saved("generic", tmp_path)
    assert [load(SETTINGS, path, CPU).load_check for _ in range(2)] == ["run"] * 2
    assert not kept.exists()


def test_what_needs_code_of_transformers_is_checked_at_every_start_and_the_log_says_why(
    tmp_path: Path, kept: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tiny("megatron-bert").save_pretrained(tmp_path / "model")
    with caplog.at_level(logging.INFO):
        assert load(SETTINGS, str(tmp_path / "model"), CPU).model.decoder is not None
    assert (
        "later starts check this model again: a MegatronBertPredictionHeadTransform" in caplog.text
    )
    assert not kept.exists()


def test_one_changed_value_is_checked_anew_and_then_remembered(model: str) -> None:
    file = Path(model) / "model.safetensors"
    weights = load_file(file)
    weights["model.layers.1.self_attn.v_proj.weight"][3, 5] += 0.25
    save_file(weights, file, {"format": "pt"})
    changed = load(SETTINGS, model, CPU)
    assert changed.load_check == "run"
    again = load(SETTINGS, model, CPU)
    assert again.load_check == "remembered"
    assert torch.equal(computed(again), computed(changed))


def test_a_changed_byte_of_a_gguf_file_is_checked_anew(tmp_path: Path) -> None:
    path = in_gguf_file(tmp_path)
    before = load(SETTINGS, path, CPU)
    file = GgufFile(Path(path))
    for name in ("blk.1.ffn_norm.weight", "blk.0.attn_q.weight", "token_embd.weight"):
        with file.path.open("r+b") as content:
            content.seek(file.tensors[name].offset + 20)
            changed = bytes([content.read(1)[0] ^ 1])
            content.seek(-1, os.SEEK_CUR)
            content.write(changed)
        assert load(SETTINGS, path, CPU).load_check == "run"
        after = load(SETTINGS, path, CPU)
        assert after.load_check == "remembered"
        assert not torch.equal(computed(after), computed(before))


def test_a_changed_expert_is_checked_anew(tmp_path: Path) -> None:
    path = tmp_path / "model"
    tiny("mixtral").save_pretrained(path)
    load(SETTINGS, str(path), CPU)
    weights = load_file(path / "model.safetensors")
    weights["model.layers.1.block_sparse_moe.experts.7.w3.weight"][3, 5] += 0.25
    save_file(weights, path / "model.safetensors", {"format": "pt"})
    found = [load(SETTINGS, str(path), CPU).load_check for _ in range(2)]
    assert found == ["run", "remembered"]


def test_weights_that_are_not_finite_are_refused_as_ever(model: str) -> None:
    file = Path(model) / "model.safetensors"
    weights = load_file(file)
    weights["model.norm.weight"][0] = float("nan")
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(ModelRefused, match=r"model\.norm\.weight holds NaN"):
        load(SETTINGS, model, CPU)


def other_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "code", lambda: "other code")


def other_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(levels, "processor", lambda: "another")


def lower_level(monkeypatch: pytest.MonkeyPatch) -> None:
    lower = "avx2" if levels.highest() > levels.Level.AVX2 else pytest.skip("one level")
    monkeypatch.setattr(levels, "_limit", levels.Level[lower.upper()])


def more_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)


def other_config(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "identity", lambda folder: "another")


def other_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct, "logits_digest", lambda loaded: "others")


def a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("the disk is gone")

    monkeypatch.setattr(direct, "_read", fail)


@pytest.mark.parametrize(
    "change",
    [
        other_code,
        other_processor,
        lower_level,
        more_threads,
        other_config,
        other_bits,
        a_fault,
    ],
)
def test_whatever_is_not_as_it_was_is_checked_anew(
    change: Callable[[pytest.MonkeyPatch], None], model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load(SETTINGS, model, CPU).load_check == "remembered"
    with monkeypatch.context() as changed:
        change(changed)
        assert load(SETTINGS, model, CPU).load_check == "run"


def test_each_way_to_serve_a_model_has_a_proof_of_its_own(model: str) -> None:
    ways = (SETTINGS, Settings(dtype="bfloat16"), Settings(kv_dtype="bfloat16"))
    found = [[load(way, model, CPU).load_check for way in ways] for _ in range(2)]
    assert found == [["remembered", "run", "run"], ["remembered"] * 3]


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-1], lambda data: b"", lambda data: data[:99] + b"!" + data[100:]]
)
def test_a_damaged_proof_is_checked_anew_and_written_over(
    damage: Callable[[bytes], bytes], model: str, kept: Path, caplog: pytest.LogCaptureFixture
) -> None:
    [file] = kept.iterdir()
    file.write_bytes(damage(file.read_bytes()))
    assert load(SETTINGS, model, CPU).load_check == "run"
    assert "is damaged; the model is checked anew" in caplog.text
    assert load(SETTINGS, model, CPU).load_check == "remembered"


def test_a_proof_of_another_form_is_no_proof(model: str, kept: Path) -> None:
    [file] = kept.iterdir()
    proof._PROOFS.keep(file.name, b"\x81\xa3key\xa1x")
    assert load(SETTINGS, model, CPU).load_check == "run"


def swapped(recipe: list[Call]) -> list[Call]:
    """Two tensors of the same shape take each other's place."""
    names = [f"model.layers.{layer}.mlp.down_proj.weight" for layer in range(2)]
    places = [recipe.index(Call("stored", [name])) for name in names]
    recipe[places[0]], recipe[places[1]] = recipe[places[1]], recipe[places[0]]
    return recipe


def renamed(recipe: list[Call]) -> list[Call]:
    return [Call("stored", ["no such tensor"]) if e.function == "stored" else e for e in recipe]


def of_another_function(recipe: list[Call]) -> list[Call]:
    return [Call("system", ["true"]), *recipe[1:]]


def of_itself(recipe: list[Call]) -> list[Call]:
    return [Call("cat", [["list", ["result", 0]]]), *recipe[1:]]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (swapped, "the weights are not those that were checked"),
        (renamed, "cannot be read as before: There is no tensor no such tensor"),
        (of_another_function, "cannot be read as before"),
        (of_itself, "cannot be read as before"),
        (lambda recipe: recipe[:-1], "cannot be read as before"),
        (lambda recipe: [], "cannot be read as before"),
    ],
)
def test_a_wrong_recipe_is_checked_anew_and_written_over(
    change: Callable[[list[Call]], list[Call]],
    why: str,
    model: str,
    kept: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    [file] = kept.iterdir()
    content = proof._PROOFS.read(file.name)
    assert content is not None
    found = msgspec.msgpack.decode(content, type=Proof)
    wrong = msgspec.structs.replace(found, recipe=change(list(found.recipe)))
    proof._PROOFS.keep(file.name, msgspec.msgpack.encode(wrong))
    with caplog.at_level(logging.INFO):
        assert load(SETTINGS, model, CPU).load_check == "run"
    assert why in caplog.text
    assert load(SETTINGS, model, CPU).load_check == "remembered"


def test_where_nothing_can_be_kept_models_are_checked_and_the_log_says_so(
    tmp_path: Path, kept: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kept.parent.mkdir()
    kept.write_text("a file")
    path = saved("llama", tmp_path)
    assert [load(SETTINGS, path, CPU).load_check for _ in range(2)] == ["run"] * 2
    assert "the result of the load check is not kept" in caplog.text


def test_what_the_load_warned_of_is_told_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tiny = tiny_model("llama")
    tiny.generation_config.eos_token_id = [1, VOCAB + 5]
    tiny.save_pretrained(tmp_path / "model")
    for expected in ("run", "remembered"):
        caplog.clear()
        with caplog.at_level(logging.INFO):
            found = load(SETTINGS, str(tmp_path / "model"), CPU)
        assert found.load_check == expected
        assert f"the model has no token {VOCAB + 5}, which should end its texts" in caplog.messages
        assert "exact: a cache hit gives the same bits as a miss" in caplog.messages


def test_a_start_that_tells_no_warnings_proves_nothing_for_one_that_does(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for level in (logging.ERROR, logging.ERROR, logging.INFO):
        monkeypatch.setattr(loading.log, "level", level)
        monkeypatch.setattr(loading.log, "_cache", {})
        found.append(load(SETTINGS, model, CPU).load_check)
    assert found == ["run", "remembered", "remembered"]


def test_memory_is_looked_at_before_anything_is_read(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(direct, "_read", None)
    with pytest.raises(ConfigError, match="of memory are free"):
        load(Settings(kv_budget=1 << 50), model, CPU)
