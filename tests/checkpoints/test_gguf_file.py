"""Models in GGUF files are served from their codes, and compute what transformers computes with the
values that it dequantises; what cannot be read is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from transformers import AutoConfig, LlamaConfig
from transformers import modeling_gguf_pytorch_utils as hf_gguf

from radixserve.checkpoints.gguf_file import GGUF_FILE, GgufFile
from radixserve.checkpoints.gguf_header import read_header
from radixserve.checkpoints.gguf_model import _empty, read_gguf
from radixserve.checkpoints.opened import open_model
from radixserve.errors import ModelRefused
from radixserve.kernels.cpu.gemm.stacked import StackedGemm
from radixserve.model.decoder import Decoder
from radixserve.model.load import load_model
from radixserve.model.probes import CHUNKINGS, logits_in_chunks, probe_tokens
from tests.checkpoints.test_gguf_blocks import random_rows
from tests.tiny import CPU

CONFIG = {
    "hidden_size": 256,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 192,
    "max_position_embeddings": 256,
    "tie_word_embeddings": True,
}


def kind_of(name: str) -> str:
    """V and the embedding are of another type than the rest, as in files of mixed types."""
    return "Q6_K" if "attn_v" in name or "embd" in name else "Q8_0"


def write(
    path: Path,
    kind_of: Callable[[str], str] = kind_of,
    config: LlamaConfig = LlamaConfig(**CONFIG),  # noqa: B008 (nobody changes it)
) -> None:
    """A random model of the Llama kind, whose tensors have the types that `kind_of` gives."""
    writer = GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(config.vocab_size)
    model = _empty(config, torch.float32)
    names = hf_gguf.get_gguf_hf_weights_map(model, hf_gguf.TensorProcessor())
    shapes = {name: tuple(each.shape) for name, each in model.named_parameters()}
    for name, hf_name in names.items():
        if hf_name not in shapes:
            continue  # the output layer, which is the embedding
        shape = shapes[hf_name]
        if len(shape) == 1:
            writer.add_tensor(name, np.linspace(0.5, 1.5, shape[0], dtype=np.float32))
        else:
            kind = kind_of(name)
            rows = random_rows(kind, shape[0], shape[1] // 256 * (8 if kind == "Q8_0" else 1))
            dtype = GGMLQuantizationType[kind]
            writer.add_tensor(name, rows, raw_shape=rows.shape, raw_dtype=dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / GGUF_FILE)
    LlamaConfig(architectures=["LlamaForCausalLM"], **CONFIG).save_pretrained(tmp_path)
    return tmp_path


def test_a_model_computes_what_transformers_computes_with_dequantised_values(
    folder: Path,
) -> None:
    loaded = load_model(str(folder), CPU, torch.float32)
    assert (loaded.exact, loaded.generic_reason) == (True, None)
    assert isinstance(loaded.decoder, Decoder)
    attention = loaded.decoder.weights.layers[0].attention
    assert isinstance(attention.qkv, StackedGemm)
    tokens = probe_tokens(192)[0]
    ours = logits_in_chunks(loaded, tokens, CHUNKINGS[0])
    opened = open_model(str(folder))
    how = {"config": AutoConfig.from_pretrained(folder), "output_loading_info": True}
    model, _ = read_gguf(opened.kind, folder, dtype=torch.float32, **how)
    with torch.inference_mode():
        expected = model.eval()(tokens[None]).logits[0]
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4 * float(expected.std()))


def test_memory_is_told_before_anything_is_read(folder: Path) -> None:
    file, size = GgufFile(folder), (folder / GGUF_FILE).stat().st_size
    assert 0.9 * size < file.num_bytes(torch.float32) < 1.2 * size


def test_types_that_are_not_supported_are_refused_by_name(tmp_path: Path) -> None:
    write(tmp_path / "x.gguf")
    content = (tmp_path / "x.gguf").read_bytes()
    name = b"blk.0.attn_q.weight"
    at = content.index(name) + len(name) + 4 + 2 * 8
    damaged = content[:at] + (16).to_bytes(4, "little") + content[at + 4 :]
    (tmp_path / "x.gguf").write_bytes(damaged)
    with pytest.raises(ModelRefused, match=r"type IQ2_XXS \(blk.0.attn_q.weight\), which is not"):
        read_header(tmp_path / "x.gguf")


@pytest.mark.parametrize("length", [0, 3, 10, 100, 2000, -300])
def test_a_file_that_is_cut_is_refused(tmp_path: Path, length: int) -> None:
    write(tmp_path / "x.gguf")
    (tmp_path / "x.gguf").write_bytes((tmp_path / "x.gguf").read_bytes()[:length])
    with pytest.raises(ModelRefused, match=r"x\.gguf is "):
        read_header(tmp_path / "x.gguf")
