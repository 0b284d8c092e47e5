"""Models that are damaged, incomplete or of another kind: refused within seconds, by one sentence
that names file and reason, and before anything large is built.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    LlamaModel,
    PreTrainedModel,
)

from radixserve.checkpoints.opened import open_model
from radixserve.errors import ModelRefused
from radixserve.model.load import load_model
from tests.checkpoints.damage import (
    WEIGHTS,
    change_config,
    change_weights,
    header_and_data,
    write_header,
)
from tests.tiny import CONFIGS, CPU, VOCAB, tiny_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sound model whose head is not tied."""
    tiny_model("llama").save_pretrained(tmp_path)
    return tmp_path


def refusal(folder: Path) -> str:
    """The sentence; one line of a length that can be read."""
    with pytest.raises(ModelRefused) as refused:
        load_model(str(folder), CPU, torch.float32)
    sentence = str(refused.value)
    assert "\n" not in sentence
    assert len(sentence) < 600
    return sentence.replace(str(folder), "FOLDER")


# Weights that are not those of the model.


def test_a_missing_tensor_is_named(folder: Path) -> None:
    change_weights(folder, lambda tensors: tensors.pop("lm_head.weight"))
    assert refusal(folder) == (
        "The tensors in FOLDER are not those of this llama model: 1 missing (lm_head.weight)."
    )


def test_of_many_tensors_the_first_few_are_named_and_the_others_counted(folder: Path) -> None:
    def rename_all(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            tensors[f"other.{name}"] = tensors.pop(name)

    change_weights(folder, rename_all)
    sentence = refusal(folder)
    assert re.search(r"21 missing \(lm_head.weight, \S+, \S+ and 18 more\)", sentence)
    assert re.search(r"21 unexpected \(other.lm_head.weight, ", sentence)


def test_a_tensor_of_another_shape_is_named_with_both(folder: Path) -> None:
    def cut(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.norm.weight"] = tensors["model.norm.weight"][:32].clone()

    change_weights(folder, cut)
    assert "1 of another shape (model.norm.weight is [32] and not [64])" in refusal(folder)


def test_an_unexpected_tensor_is_refused(folder: Path) -> None:
    change_weights(folder, lambda tensors: tensors.update({"adapter.weight": torch.ones(2)}))
    assert "1 unexpected (adapter.weight)" in refusal(folder)


def test_tensors_that_the_architecture_ignores_pass(folder: Path) -> None:
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    change_weights(folder, lambda tensors: tensors.update({name: torch.ones(8)}))
    assert load_model(str(folder), CPU, torch.float32).exact


@pytest.mark.parametrize("name", CONFIGS)
def test_every_sound_model_passes_tied_or_not(name: str, tmp_path: Path) -> None:
    tiny_model(name).save_pretrained(tmp_path)
    assert load_model(str(tmp_path), CPU, torch.float32).exact


def test_the_weights_are_those_of_the_files(folder: Path) -> None:
    loaded = load_model(str(folder), CPU, torch.float16)  # whose linears are not packed
    for name, tensor in load_file(folder / WEIGHTS).items():
        assert torch.equal(loaded.model.get_parameter(name), tensor.to(torch.float16))


def test_weights_in_several_files_are_read_and_a_missing_file_is_named(tmp_path: Path) -> None:
    tiny_model("qwen3").save_pretrained(tmp_path, max_shard_size="40KB")
    shards = sorted(tmp_path.glob("*.safetensors"))
    assert len(shards) > 4
    assert load_model(str(tmp_path), CPU, torch.float32).exact
    for shard in shards[:4]:
        shard.unlink()
    found = refusal(tmp_path)
    assert found.startswith(f"4 of {len(shards)} files of weights are missing in FOLDER: ")
    assert shards[0].name in found
    assert found.endswith("and 1 more.")


# Files that are damaged.


def cut_short(folder: Path) -> None:
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[:-1000])


def oversized_header(folder: Path) -> None:
    header, data = header_and_data(folder)
    write_header(folder, json.dumps(header).encode(), data, length=1 << 40)


def zeroed(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(bytes((folder / WEIGHTS).stat().st_size))


def overlapping(folder: Path) -> None:
    header, data = header_and_data(folder)
    one, other = [name for name in header if name != "__metadata__"][:2]
    header[other]["data_offsets"] = header[one]["data_offsets"]
    write_header(folder, json.dumps(header).encode(), data)


@pytest.mark.parametrize("damage", [cut_short, oversized_header, zeroed, overlapping])
def test_a_damaged_file_of_weights_is_named(damage: Callable[[Path], None], folder: Path) -> None:
    damage(folder)
    assert refusal(folder).startswith("FOLDER/model.safetensors is damaged: ")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_that_are_no_numbers_are_refused_by_name(dtype: torch.dtype, folder: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"

    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        for each in tensors:
            tensors[each] = tensors[each].to(dtype)
        tensors[name][3, 5] = float("nan")

    change_weights(folder, spoil)
    assert refusal(folder) == f"FOLDER/model.safetensors is damaged: {name} holds NaN."


def test_an_index_that_is_no_json_is_named(tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path, max_shard_size="40KB")
    for content in ("[]", '{"weight_map": 3}', '{"weight_map": {"a": 5}}'):
        (tmp_path / f"{WEIGHTS}.index.json").write_text(content)
        assert refusal(tmp_path).startswith(f"FOLDER/{WEIGHTS}.index.json is damaged: ")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"num_hidden_layers": 10**6}, "names 1,000,000 layers, but the weights"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"max_position_embeddings": -5}, "max_position_embeddings is -5"),
        ({"vocab_size": -1}, "vocab_size is -1"),
        ({"num_attention_heads": 0}, "FOLDER/config.json is damaged: num_attention_heads is 0."),
        ({"num_key_value_heads": 0}, "FOLDER/config.json is damaged: num_key_value_heads is 0."),
        ({"head_dim": -4}, "FOLDER/config.json is damaged: head_dim is -4."),
        ({"text_config": {"hidden_size": 0}}, "FOLDER/config.json is damaged: hidden_size is 0."),
        ({"num_key_value_heads": 3}, "4 attention heads cannot share 3 heads"),
        ({"pad_token_id": 5000}, "pad_token_id is 5000, but the vocabulary has 97 tokens"),
        ({"hidden_size": 1 << 20}, "describes a model of"),
        ({"vocab_size": 10**9}, "describes a model of"),
        ({"hidden_size": "wide"}, "FOLDER/config.json"),
        ({"model_type": "unheard_of"}, "FOLDER/config.json"),
    ],
    ids=str,
)
def test_a_configuration_that_makes_no_sense_is_refused(
    values: dict[str, Any], words: str, folder: Path
) -> None:
    change_config(folder, **values)
    assert words in refusal(folder)


@pytest.mark.parametrize("context", [10**12, 10**400])
def test_a_context_of_more_positions_than_can_be_served_is_cut_and_told(
    context: int, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    change_config(folder, max_position_embeddings=context)
    loaded = load_model(str(folder), CPU, torch.float32)
    assert open_model(str(folder)).context_length == loaded.context_length == 2**31 - 1
    assert "names a context of more than 2,147,483,647 tokens" in caplog.text


@pytest.mark.parametrize("content", ["{", "[]", '"x"', "\0"])
def test_a_configuration_that_is_no_json_object_is_named(content: str, folder: Path) -> None:
    (folder / "config.json").write_text(content)
    assert refusal(folder).startswith("Cannot load FOLDER/config.json: ")


def test_end_tokens_beyond_the_vocabulary_are_left_out(folder: Path) -> None:
    change_config(folder, eos_token_id=[1, 5000])
    (folder / "generation_config.json").unlink(missing_ok=True)
    assert load_model(str(folder), CPU, torch.float32).eos_token_ids == (1,)


def tokenizer(folder: Path, vocabulary: Any, added: list[int]) -> None:
    content = {"model": {"vocab": vocabulary}, "added_tokens": [{"id": each} for each in added]}
    (folder / "tokenizer.json").write_text(json.dumps(content))


@pytest.mark.parametrize("as_list", [False, True])
def test_a_tokenizer_of_another_model_is_refused(folder: Path, as_list: bool) -> None:
    names = [f"t{i}" for i in range(VOCAB + 3)]
    tokenizer(
        folder, [[n, 0.0] for n in names] if as_list else {n: i for i, n in enumerate(names)}, []
    )
    assert refusal(folder) == (
        "FOLDER/tokenizer.json and config.json do not belong together: the tokenizer makes tokens "
        "up to 99, the model has 97."
    )


def test_added_tokens_may_lie_beyond_the_vocabulary(folder: Path) -> None:
    tokenizer(folder, {f"t{i}": i for i in range(VOCAB + 1)}, [VOCAB, VOCAB + 7])
    assert load_model(str(folder), CPU, torch.float32).vocab_size == VOCAB


# Models of another kind.


def other_kinds() -> list[tuple[PreTrainedModel, str]]:
    llama = CONFIGS["llama"]()
    assert isinstance(llama, LlamaConfig)
    bert = BertConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
    )
    return [
        (LlamaModel(llama), "LlamaModel, which generates no text"),
        (LlamaForSequenceClassification(llama), "LlamaForSequenceClassification, which generates"),
        (BertForSequenceClassification(bert), "BertForSequenceClassification, which generates"),
    ]


@pytest.mark.parametrize("index", range(3))
def test_embedding_models_and_classifiers_are_refused(index: int, tmp_path: Path) -> None:
    model, words = other_kinds()[index]
    model.save_pretrained(tmp_path)
    assert words in refusal(tmp_path)


def test_a_pooling_layer_marks_an_embedding_model(folder: Path) -> None:
    modules = [{"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"}]
    (folder / "modules.json").write_text(json.dumps(modules))
    assert "embedding model (modules.json names a pooling layer)" in refusal(folder)


def test_an_adapter_is_not_ignored(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    (folder / "adapter_model.safetensors").write_bytes(b"")
    assert refusal(folder).startswith("FOLDER holds an adapter (adapter_config.json)")


@pytest.mark.parametrize("method", ["unheard_of", "gptq", "awq", "bitsandbytes", "fp8"])
def test_a_quantised_checkpoint_that_nobody_reads_is_refused(method: str, folder: Path) -> None:
    change_config(folder, quantization_config={"quant_method": method, "bits": 4})
    assert "FOLDER" in refusal(folder)


# What is not packed, and what is said of it.


class Router(torch.nn.Linear):
    """A linear layer with another forward, as some routers are."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * 2


def test_a_subclass_of_a_linear_layer_keeps_its_own_forward() -> None:
    from radixserve.model.load import prepare_model

    model: Any = tiny_model("llama")
    old = model.model.layers[0].mlp.down_proj
    router = Router(old.in_features, old.out_features, bias=False)
    router.weight = old.weight
    model.model.layers[0].mlp.down_proj = router
    loaded: Any = prepare_model(model, CPU)
    assert loaded.model.model.layers[0].mlp.down_proj is router
    assert not loaded.exact
    assert "Router" in str(loaded.inexact_reason)


def test_a_model_without_a_fast_forward_says_so() -> None:
    from tests.tiny import load_tiny

    assert load_tiny("llama").generic_reason is None
    reason = "there is no kernel for the activation MishActivation"
    assert load_tiny("generic").generic_reason == reason
