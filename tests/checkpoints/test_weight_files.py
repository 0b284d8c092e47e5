"""Weights read straight from files are those that safetensors reads; what a load depends on has an
identity.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from radixserve.checkpoints.stored import identity
from radixserve.checkpoints.weight_files import WeightFiles
from radixserve.errors import ModelRefused

TENSORS = {
    "a": torch.randn(3, 5),
    "b": torch.randn(4, 5),
    "half": torch.randn(2, 3).bfloat16(),
    "norm": torch.randn(7).half(),
    "empty": torch.empty(0, 5),
    "one": torch.tensor(0.5),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_file(TENSORS, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "README.md").write_text("words")
    return tmp_path


def test_each_tensor_is_what_safetensors_reads(folder: Path) -> None:
    with WeightFiles(folder) as files:
        for name, expected in load_file(folder / "model.safetensors").items():
            assert name in files
            found = files.read(name)
            assert found.dtype == expected.dtype
            assert torch.equal(found, expected)
    assert "other" not in files


def test_tensors_of_several_files_are_joined(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    save_file({"a": TENSORS["a"]}, folder / "1.safetensors")
    save_file({"b": TENSORS["b"]}, folder / "2.safetensors")
    index = {"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with WeightFiles(folder) as files:
        assert torch.equal(files.read("a", "b"), torch.cat([TENSORS["a"], TENSORS["b"]]))
        assert torch.equal(files.read("b", "a"), torch.cat([TENSORS["b"], TENSORS["a"]]))


@pytest.mark.parametrize("names", [("a", "other"), ("a", "half"), ("a", "norm"), ("a", "one")])
def test_what_is_missing_or_does_not_fit_is_refused(names: tuple[str, str], folder: Path) -> None:
    with WeightFiles(folder) as files, pytest.raises(ModelRefused):
        files.read(*names)


def test_parts_of_tensors_are_read_alone(folder: Path) -> None:
    save_file({"stack": torch.arange(24.0).view(4, 2, 3)}, folder / "model.safetensors")
    with WeightFiles(folder) as files:
        found = files.read(("stack", 2), ("stack", 0))
        assert found.tolist() == [[12, 13, 14], [15, 16, 17], [0, 1, 2], [3, 4, 5]]
        with pytest.raises(ModelRefused, match="has no part 4"):
            files.read(("stack", 4))


def test_a_file_that_shrinks_while_it_is_read_is_refused(folder: Path) -> None:
    with WeightFiles(folder) as files:
        size = (folder / "model.safetensors").stat().st_size
        os.truncate(folder / "model.safetensors", size - sum(t.nbytes for t in TENSORS.values()))
        with pytest.raises(ModelRefused, match="ends too soon"):
            files.read("a", "b")


def with_header(header: bytes, length: int | None = None) -> bytes:
    return (len(header) if length is None else length).to_bytes(8, "little") + header


def tensor(**changes: object) -> bytes:
    told = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changes
    return with_header(json.dumps({"a": told}).encode()) + bytes(8)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"short",
        with_header(b"{}", 1 << 62),
        with_header(b"{}", 100),
        with_header(b""),
        with_header(b"[1]"),
        with_header(b"\xff\xfe"),
        with_header(b"[" * 100_000),
        tensor(dtype="I8"),
        tensor(shape=[3]),
        tensor(shape=2),
        tensor(data_offsets=[0]),
        tensor(data_offsets="no"),
    ],
)
def test_a_damaged_header_is_refused(content: bytes, folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelRefused), WeightFiles(folder) as files:
        files.read("a")


def another_config(folder: Path) -> None:
    (folder / "config.json").write_text("[]")


def another_name_of_a_tensor(folder: Path) -> None:
    save_file({**TENSORS, "c": torch.zeros(1)}, folder / "model.safetensors", {"format": "pt"})


def a_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")


def a_longer_file(folder: Path) -> None:
    with open(folder / "model.safetensors", "ab") as file:
        file.write(b"more")


def a_file_of_another_kind(folder: Path) -> None:
    (folder / "model.gguf").write_bytes(b"")


@pytest.mark.parametrize(
    "change",
    [
        another_config,
        another_name_of_a_tensor,
        a_tokenizer,
        a_longer_file,
        a_file_of_another_kind,
    ],
)
def test_what_a_load_depends_on_is_part_of_the_identity(
    change: Callable[[Path], None], folder: Path
) -> None:
    before = identity(folder)
    assert identity(folder) == before
    change(folder)
    assert identity(folder) != before


def test_other_words_and_other_values_are_no_part_of_it(folder: Path) -> None:
    before = identity(folder)
    (folder / "README.md").write_text("other words")
    changed = {name: tensor + 1 for name, tensor in TENSORS.items()}
    save_file(changed, folder / "model.safetensors", {"format": "pt"})
    assert identity(folder) == before
