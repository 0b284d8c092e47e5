"""Folders that somebody prepared to harm: headers, indices, configurations and files that are none.
Each is refused by one sentence that names the file, within seconds, and no code in a folder runs.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from radixserve.checkpoints import headers
from radixserve.checkpoints.folder_files import MOST_BYTES, SMALL_FILES
from radixserve.checkpoints.opened import open_model
from radixserve.checkpoints.source import find_model
from radixserve.config import Settings
from radixserve.errors import ModelRefused
from radixserve.model.load import load_model, load_opened
from tests.checkpoints.damage import (
    WEIGHTS,
    add_names,
    change_config,
    header_and_data,
    write_header,
)
from tests.tiny import CPU, tiny_model

INDEX = f"{WEIGHTS}.index.json"
NORM = "model.norm.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sound model."""
    folder = tmp_path / "model"
    tiny_model("llama").save_pretrained(folder)
    return folder


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """A sound model in several files."""
    folder = tmp_path / "model"
    tiny_model("llama").save_pretrained(folder, max_shard_size="40KB")
    return folder


def refusal(folder: Path) -> str:
    """The sentence: one line of printable characters that can be read."""
    with pytest.raises(ModelRefused) as refused:
        load_model(str(folder), CPU, torch.float32)
    sentence = str(refused.value)
    assert sentence.isprintable()
    assert len(sentence) < 1000
    return sentence.replace(str(folder), "FOLDER")


# Headers of safetensors files.


@pytest.mark.parametrize("length", [0, 1, 10**8 + 1, 2**31, 2**32, 2**63, 2**64 - 1])
def test_a_header_of_another_length_is_refused(length: int, folder: Path) -> None:
    header, data = header_and_data(folder)
    write_header(folder, json.dumps(header).encode(), data, length)
    assert refusal(folder).startswith("FOLDER/model.safetensors is damaged: ")


@pytest.mark.parametrize(
    "values",
    [
        {"data_offsets": [10**9, 10**9 + 256]},
        {"data_offsets": [256, 0]},
        {"data_offsets": [2**64 - 256, 2**64 - 1]},
        {"data_offsets": [-256, 0]},
        {"data_offsets": [0.0, 256.0]},
        {"data_offsets": [0]},
        {"data_offsets": "x"},
        {"dtype": "F33"},
        {"dtype": 5},
        {"dtype": "F64"},
        {"dtype": "BOOL"},
        {"shape": [0]},
        {"shape": []},
        {"shape": [-64]},
        {"shape": [2**32, 2**32]},
        {"shape": [2**63]},
    ],
    ids=str,
)
def test_a_header_with_an_impossible_tensor_is_refused(
    values: dict[str, Any], folder: Path
) -> None:
    header, data = header_and_data(folder)
    header[NORM] |= values
    write_header(folder, json.dumps(header).encode(), data)
    assert refusal(folder).startswith("FOLDER/model.safetensors is damaged: ")


HEADERS: dict[str, Callable[[dict[str, Any]], bytes]] = {
    "nested deeply": lambda header: b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "a list of lists": lambda header: b"[" * 1_000_000,
    "a list": lambda header: b"[]",
    "no utf-8": lambda header: b'{"\xff": 1}',
    "null": lambda header: json.dumps(header | {NORM: None}).encode(),
    "metadata of numbers": lambda header: json.dumps(header | {"__metadata__": {"a": 5}}).encode(),
    "a name twice": lambda header: (
        json.dumps(header)[:-1] + f', "{NORM}": {json.dumps(header["lm_head.weight"])}}}'
    ).encode(),
}


@pytest.mark.parametrize("kind", HEADERS)
def test_a_header_that_is_none_is_refused(kind: str, folder: Path) -> None:
    header, data = header_and_data(folder)
    write_header(folder, HEADERS[kind](header), data)
    assert refusal(folder).startswith("FOLDER/model.safetensors is damaged: ")


def test_bytes_that_belong_to_no_tensor_are_refused(folder: Path) -> None:
    with (folder / WEIGHTS).open("ab") as file:
        file.write(bytes(100))
    assert "is damaged: Error while deserializing header: incomplete" in refusal(folder)


def test_a_header_with_more_names_than_any_model_has_is_refused_at_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(headers, "MOST_TENSORS", 1020)
    add_names(folder, 1000)
    assert refusal(folder) == (
        "FOLDER/model.safetensors holds 1,021 tensors; of one model at most 1,020 are read."
    )


def test_of_a_few_tensors_too_many_the_names_are_told_and_of_thousands_the_number(
    folder: Path,
) -> None:
    add_names(folder, 900)
    assert "900 unexpected (extra.0, " in refusal(folder)
    add_names(folder, 1000)
    assert refusal(folder) == (
        "FOLDER/config.json describes a model of 21 tensors, but FOLDER holds 1,021."
    )


@pytest.mark.parametrize("name", ["a\n\x1b[31mred\nTraceback", "x" * 100_000])
def test_a_name_that_no_terminal_should_print_is_told_in_one_line(name: str, folder: Path) -> None:
    header, data = header_and_data(folder)
    header[name] = {"dtype": "F32", "shape": [0], "data_offsets": [len(data), len(data)]}
    write_header(folder, json.dumps(header).encode(), data)
    assert "1 unexpected (" in refusal(folder)


def test_a_shape_of_a_thousand_dimensions_is_told_in_one_line(folder: Path) -> None:
    header, data = header_and_data(folder)
    header[NORM]["shape"] = [64] + [1] * 1000
    write_header(folder, json.dumps(header).encode(), data)
    assert "1 of another shape (model.norm.weight is [64, 1, 1, 1, " in refusal(folder)


def test_weights_stored_as_integers_are_no_weights(folder: Path) -> None:
    header, data = header_and_data(folder)
    header[NORM]["dtype"] = "I32"
    write_header(folder, json.dumps(header).encode(), data)
    assert refusal(folder) == (
        "The weights in FOLDER are integers, but no quantiser reads them: model.norm.weight."
    )


def test_an_empty_model_is_told(folder: Path) -> None:
    tensors = {name: torch.zeros_like(each) for name, each in load_file(folder / WEIGHTS).items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    assert refusal(folder) == (
        "The model computes the same logit for every token: its weights are empty."
    )


# Files that change while they are read.


def test_a_file_that_shrinks_after_it_was_opened_is_named(folder: Path) -> None:
    opened = open_model(str(folder))
    os.truncate(folder / WEIGHTS, (folder / WEIGHTS).stat().st_size // 2)
    with pytest.raises(ModelRefused, match=r"Cannot read .*model\.safetensors: "):
        load_opened(opened, CPU, torch.float32)


def test_a_file_that_is_removed_after_it_was_opened_is_still_read(folder: Path) -> None:
    opened = open_model(str(folder))
    (folder / WEIGHTS).unlink()
    assert load_opened(opened, CPU, torch.float32).exact


# The index of several files.


@pytest.mark.parametrize(
    "name",
    [
        "../../../../../../etc/passwd",
        "../model/model-00001-of-00012.safetensors",
        "/etc/passwd",
        "..",
        "",
        "a\0.safetensors",
        "a" * 5000 + ".safetensors",
        "sub/a.safetensors",
        "config.json",
        "pytorch_model.bin",
        None,
        5,
    ],
    ids=lambda name: repr(name)[:40],
)
def test_an_index_names_weights_of_its_folder_only(name: object, shards: Path) -> None:
    index = json.loads((shards / INDEX).read_text())
    index["weight_map"]["more"] = name
    (shards / INDEX).write_text(json.dumps(index))
    assert refusal(shards).startswith("FOLDER/model.safetensors.index.json is damaged: it names ")


@pytest.mark.parametrize("content", ["[" * 100_000, '{"weight_map": NaN}', '{"weight_map": {}}'])
def test_an_index_that_is_none_is_refused(content: str, shards: Path) -> None:
    (shards / INDEX).write_text(content)
    assert refusal(shards).startswith("FOLDER/model.safetensors.index.json is damaged: ")


def test_a_tensor_in_two_files_is_refused(shards: Path) -> None:
    one, other = sorted(shards.glob("*.safetensors"))[:2]
    save_file(load_file(one) | load_file(other), other, metadata={"format": "pt"})
    [name, *_] = sorted(load_file(one))
    assert refusal(shards) == f"FOLDER/{one.name} and FOLDER/{other.name} both hold {name}."


# What lies in place of a file.

PLACES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a named pipe": (os.mkfifo, "is no regular file."),
    "a folder": (Path.mkdir, "is no regular file."),
    "a device": (lambda path: path.symlink_to("/dev/zero"), "is no regular file."),
    "a link to itself": (
        lambda path: path.symlink_to(path.name),
        "cannot be read: too many levels of symbolic links.",
    ),
    "a link to nothing": (
        lambda path: path.symlink_to("/nothing"),
        "is a link to '/nothing', which is missing.",
    ),
    "an empty file": (Path.touch, "is empty."),
    "an endless file of the system": (lambda path: path.symlink_to("/proc/kmsg"), "is empty."),
}


def put(place: str, path: Path) -> str:
    """Put something in place of the file `path`; the end of the sentence about it."""
    path.unlink(missing_ok=True)
    make, words = PLACES[place]
    make(path)
    return words


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", SMALL_FILES)
def test_a_small_file_that_is_none_is_refused_before_anything_starts(
    name: str, place: str, folder: Path
) -> None:
    words = put(place, folder / name)
    with pytest.raises(ModelRefused) as refused:
        find_model(Settings(model=(str(folder),)))
    assert str(refused.value) == f"{folder / name} {words}"


@pytest.mark.parametrize("name", SMALL_FILES)
def test_a_small_file_that_is_huge_is_not_read(name: str, folder: Path) -> None:
    (folder / name).touch()
    os.truncate(folder / name, 1 << 42)
    with pytest.raises(ModelRefused, match=f"at most {MOST_BYTES:,} are read"):
        find_model(Settings(model=(str(folder),)))


@pytest.mark.parametrize("place", PLACES)
def test_weights_that_are_no_file_are_named(place: str, folder: Path) -> None:
    words = put(place, folder / WEIGHTS)
    assert refusal(folder) == f"FOLDER/{WEIGHTS} {words}"


@pytest.mark.parametrize("place", PLACES)
def test_a_part_of_the_weights_that_is_no_file_is_named(place: str, shards: Path) -> None:
    [first, *_] = sorted(shards.glob("*.safetensors"))
    words = put(place, first)
    assert refusal(shards) == f"FOLDER/{first.name} {words}"


def test_a_folder_that_links_to_itself_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model").symlink_to("model")
    with pytest.raises(ModelRefused, match="there is no folder"):
        find_model(Settings(model=(str(tmp_path / "model"),)))


def test_a_damaged_gguf_file_in_a_folder_is_named_and_ignored_beside_safetensors(
    folder: Path,
) -> None:
    (folder / "model.gguf").write_bytes(b"GGUF" + bytes(5))
    assert load_model(str(folder), CPU, torch.float32).exact
    (folder / WEIGHTS).unlink()
    assert refusal(folder) == "FOLDER/model.gguf has version 0 of GGUF, which is not read."


# Configurations that lie.


NAN = float("nan")
LINEAR = {"rope_type": "linear"}
DEFAULT = {"rope_type": "default"}
LIES: dict[str, tuple[Any, ...]] = {
    "num_attention_heads": (-4, 5, 10**9, "4", 4.0, [4], True, None),
    "num_key_value_heads": ("2", 2.5, 8, 10**9),
    "head_dim": (17, "16", 10**9, 16.5),
    "hidden_size": (63, 2**62, NAN, float("inf"), 10**400),
    "num_hidden_layers": ("2", NAN, 10**9, 10**12),
    "intermediate_size": (-5, 0, 10**15, "x", None),
    "max_position_embeddings": (NAN, "x", None, 512.5),
    "vocab_size": (50, 200, "97", NAN),
    "rms_norm_eps": (NAN, "x", -1.0, None, 1e300),
    "hidden_act": ("__import__", ["silu"], None),
    "layer_types": (["full_attention"], ["full_attention"] * 9, ["x", "y"], "x", [1, 2], {}, 5),
    "rope_scaling": (
        *("x", [1], 7, {"rope_type": "x"}, {"rope_type": ["dynamic"]}, {"rope_type": "yarn"}),
        *(LINEAR, LINEAR | {"factor": 0.0}, LINEAR | {"factor": "x"}, LINEAR | {"factor": NAN}),
    ),
    "rope_parameters": (
        *(DEFAULT | {"rope_theta": 0}, DEFAULT | {"rope_theta": -10000.0}),
        *(DEFAULT | {"rope_theta": "x"}, DEFAULT | {"rope_theta": NAN}),
    ),
    "architectures": (5, "LlamaForCausalLM", [["x"]], [5], {"a": 1}),
    "model_type": (5, ["llama"], "gpt2", "qwen3", None),
    "text_config": ("x", 5, []),
    "sliding_window": ("x", -1),
    "dtype": ("x", 5, [1], {"a": "b"}),
    "quantization_config": ("x", 5, [1], {}, {"quant_method": None}),
    "attention_bias": (True,),
    "mlp_bias": (True,),
    "tie_word_embeddings": ("x",),
    "num_labels": (10**9,),
    "return_dict": (False,),
    "attn_implementation": ("somebody/kernels",),
    "_attn_implementation": ("somebody/kernels",),
    "to_dict": (5,),
    "__class__": ("x",),
    "attribute_map": ({"hidden_size": "vocab_size"},),
}


@pytest.mark.parametrize(
    ("name", "value"),
    [(name, value) for name, values in LIES.items() for value in values],
    ids=lambda each: repr(each)[:40],
)
def test_a_configuration_that_lies_is_refused(name: str, value: Any, folder: Path) -> None:
    change_config(folder, **{name: value})
    told = "FOLDER", "not finite", "the same logit", "The model (llama)", "own forward pass"
    assert any(words in refusal(folder) for words in told)


@pytest.mark.parametrize(
    "content", ["[" * 100_000, '{"a":' * 100_000, '{"model_type": "\\ud800"}', "9" * 10_000]
)
def test_a_configuration_that_no_parser_takes_is_refused(content: str, folder: Path) -> None:
    (folder / "config.json").write_text(content)
    assert refusal(folder).startswith("Cannot load FOLDER/config.json: ")


@pytest.mark.parametrize(
    "values",
    [
        {"max_position_embeddings": 8},  # fewer tokens than the check computes
        {"tie_word_embeddings": True},  # but the file holds an output layer
        {"output_hidden_states": True},
        {"eos_token_id": -5},
        {"pad_token_id": -5},
        {"attention_dropout": 0.5},
    ],
    ids=str,
)
def test_a_configuration_with_a_harmless_lie_is_served_right(
    values: dict[str, Any], folder: Path
) -> None:
    change_config(folder, **values)
    (folder / "generation_config.json").unlink(missing_ok=True)
    loaded: Any = load_model(str(folder), CPU, torch.float32)
    assert loaded.exact
    identity = torch.eye(64)
    head = tiny_model("llama").lm_head.weight
    assert torch.allclose(loaded.model.lm_head(identity), identity @ head.T, atol=1e-5)


@pytest.mark.parametrize("ids", ["x", [[1]], 1.5, {"a": 1}, [1, "x"], 10**30])
def test_end_tokens_that_are_no_tokens_are_left_out(ids: Any, folder: Path) -> None:
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ids}))
    assert load_model(str(folder), CPU, torch.float32).eos_token_ids == (1,)


TOKENIZERS = (
    "[" * 100_000,
    "{",
    '{"model": {"vocab": {"a": "b"}}}',
    '{"model": {"vocab": {"a": [1]}}}',
    '{"model": {"vocab": {"a": 1}}, "added_tokens": [{"id": "x"}]}',
)


@pytest.mark.parametrize("content", TOKENIZERS, ids=lambda content: content[:60])
def test_the_engine_leaves_a_damaged_tokenizer_to_the_front(content: str, folder: Path) -> None:
    (folder / "tokenizer.json").write_text(content)
    assert open_model(str(folder)).context_length == 512


# Code.

EVIL = """
from pathlib import Path
Path(__file__).with_name("ran").touch()
class Evil: pass
"""


@pytest.mark.parametrize("model_type", ["llama", "evil"])
def test_code_in_a_folder_never_runs(model_type: str, folder: Path) -> None:
    (folder / "evil.py").write_text(EVIL)
    classes = dict.fromkeys(("AutoConfig", "AutoModelForCausalLM", "AutoTokenizer"), "evil.Evil")
    change_config(folder, model_type=model_type, auto_map=classes, trust_remote_code=True)
    if model_type == "evil":
        assert refusal(folder).startswith("Cannot load FOLDER/config.json: ")
    else:
        assert load_model(str(folder), CPU, torch.float32).exact
    assert not (folder / "ran").exists()


def test_pickles_are_not_read(folder: Path) -> None:
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()
    assert refusal(folder).startswith("There are no weights in FOLDER: ")
