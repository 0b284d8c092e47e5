"""Packed linears: right, row-wise, fused where siblings share an input, and distrusted where they
are not row-wise.
"""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.activations import ACT2FN

from radixserve.kernels.cpu.gemm import FEW
from radixserve.kernels.cpu.lookup import Lookup
from radixserve.kernels.cpu.vector import PANEL
from radixserve.model.linear import (
    FusedPart,
    PackedEmbedding,
    PackedLinear,
    PackedWeight,
    RowTest,
    Untrusted,
)
from radixserve.model.rowwise import RowwiseActivation, make_rowwise
from tests.tiny import CONFIGS, load_tiny, tiny_model

SHAPES = ((37, 19), (64, 64), (960, 576), (576, 1536), (128, 2048), (300, 2048))


def packed(out_features: int, in_features: int) -> tuple[PackedWeight, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(out_features, in_features, generator=generator)
    bias = torch.randn(out_features, generator=generator)
    result = PackedWeight(weight, bias)
    RowTest().prepare(result)
    return result, weight, bias


@pytest.mark.parametrize("shape", SHAPES)
def test_any_number_of_rows_gives_the_same_bits(shape: tuple[int, int]) -> None:
    linear, weight, bias = packed(*shape)
    x = torch.randn(300, shape[1], generator=torch.Generator().manual_seed(1))
    whole = linear(x)
    torch.testing.assert_close(whole, nn.functional.linear(x, weight, bias), atol=1e-3, rtol=1e-4)
    for rows in (*range(1, 20), 33, 64, 65, 100, 255):
        assert torch.equal(linear(x[:rows]), whole[:rows])
        assert torch.equal(linear(x[None, -rows:]), whole[None, -rows:])


@pytest.mark.skipif(PANEL < 32, reason="the kernel for few rows needs AVX-512")
@pytest.mark.parametrize("shape", [(64, 64), (960, 576), (576, 1536), (128, 2048)])
def test_few_rows_have_a_kernel_of_their_own_where_it_gives_the_same_bits(
    shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    linear, _, _ = packed(*shape)
    x = torch.randn(FEW, shape[1])
    expected = linear.multiply(torch.cat([x, torch.randn(100, shape[1])]))[:FEW]
    monkeypatch.setattr(PackedWeight, "multiply", None)
    for rows in range(1, FEW + 1):
        assert torch.equal(linear(x[:rows]), expected[:rows])


def test_few_rows_go_the_usual_way_where_no_kernel_gives_the_same_bits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = PackedWeight.multiply
    monkeypatch.setattr(PackedWeight, "multiply", lambda self, x: real(self, x) * 1.0001)
    linear, _, _ = packed(960, 576)
    x = torch.randn(3, 576)
    assert torch.equal(linear(x), linear.multiply(x))


def test_a_lone_row_is_padded_where_it_would_be_rounded_differently(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = PackedWeight.multiply
    monkeypatch.setattr(
        PackedWeight, "multiply", lambda self, x: real(self, x) * (1 + (x.shape[0] == 1))
    )
    linear, _, _ = packed(37, 19)
    assert linear.min_rows == 2
    x = torch.ones(2, 19)
    assert torch.equal(linear(x[:1]), linear(x)[:1])


def test_an_operator_whose_rows_depend_on_their_number_is_not_trusted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = PackedWeight.multiply
    monkeypatch.setattr(
        PackedWeight, "multiply", lambda self, x: real(self, x) * (1 + (x.shape[0] == 7))
    )
    with pytest.raises(Untrusted, match="round 7 rows differently"):
        packed(37, 19)


def test_without_the_packed_operator_the_model_is_served_but_claims_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def missing(self: PackedWeight, x: torch.Tensor) -> torch.Tensor:
        raise AttributeError("no such operator")

    monkeypatch.setattr(PackedWeight, "multiply", missing)
    with caplog.at_level(logging.WARNING):
        loaded = load_tiny("llama")
    assert not loaded.exact
    assert (
        loaded.inexact_reason == "this torch cannot multiply by packed weights (no such operator)"
    )
    assert "outputs may depend on what is cached" in caplog.text
    assert loaded.attention == "radixserve_torch"


def test_siblings_of_one_input_become_one_multiplication() -> None:
    model = tiny_model("qwen2")
    attention, x = model.model.layers[0].self_attn, torch.randn(1, 5, 64)
    names = ("q_proj", "k_proj", "v_proj")
    expected = [getattr(attention, name)(x) for name in names]
    assert make_rowwise(model) is None
    parts = [getattr(attention, name) for name in names]
    assert [type(part) for part in parts] == [FusedPart] * 3
    assert len({id(part.fused) for part in parts}) == 1
    for part, wanted in zip(parts, expected, strict=True):
        torch.testing.assert_close(part(x), wanted)


def test_a_fused_part_never_answers_for_another_input() -> None:
    model = tiny_model("llama")
    make_rowwise(model)
    mlp = model.model.layers[0].mlp
    a, b = torch.randn(1, 3, 64), torch.randn(1, 3, 64)
    alone = mlp.up_proj(b).clone()
    mlp.gate_proj(a)
    assert torch.equal(mlp.up_proj(b), alone)


@pytest.mark.parametrize("name", ["llama", "gpt2", "phi"])
def test_no_linear_of_torch_is_left(name: str) -> None:
    model = tiny_model(name)
    make_rowwise(model)
    kinds = {type(module).__name__ for module in model.modules()}
    assert "PackedLinear" in kinds
    assert not kinds & {"Linear", "Conv1D"}
    assert isinstance(model.get_output_embeddings(), PackedLinear)


def tied_model(tied: bool = True) -> PreTrainedModel:
    """Its output layer is as wide as our kernel for few rows needs it."""
    config = CONFIGS["llama_in_panels"]()
    config.vocab_size, config.tie_word_embeddings = 128, tied
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.skipif(PANEL < 32, reason="the layout of packed weights is known with AVX-512 only")
def test_an_embedding_that_the_output_layer_shares_is_looked_up_in_its_packed_weight() -> None:
    model = tied_model()
    table = model.get_input_embeddings().weight.detach().clone()
    assert make_rowwise(model) is None
    embedding, ids = model.get_input_embeddings(), torch.tensor([[0, 5, 127]])
    assert isinstance(embedding, PackedEmbedding)
    assert embedding.packed is model.get_output_embeddings().packed
    assert torch.equal(embedding(ids), table[ids])
    assert not [each for each in model.parameters() if each.shape == table.shape]


def test_an_embedding_of_its_own_stays() -> None:
    model = tied_model(tied=False)
    assert make_rowwise(model) is None
    assert type(model.get_input_embeddings()) is nn.Embedding


def test_an_embedding_stays_where_the_packed_weight_gives_another_bit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = Lookup.__call__
    monkeypatch.setattr(Lookup, "__call__", lambda self, ids: real(self, ids) * (1 + 2.0**-23))
    model = tied_model()
    assert make_rowwise(model) is None
    assert type(model.get_input_embeddings()) is nn.Embedding


@pytest.mark.parametrize("name", ["silu", "gelu", "gelu_new", "gelu_pytorch_tanh", "relu"])
@pytest.mark.parametrize("width", [8, 100, 1536, 20000])
def test_an_activation_does_not_see_the_number_of_rows(name: str, width: int) -> None:
    activation = RowwiseActivation(ACT2FN[name])
    x = torch.randn(1, 40, 2 * width, generator=torch.Generator().manual_seed(0))[..., :width] * 3
    whole = activation(x)
    torch.testing.assert_close(whole, ACT2FN[name](x))
    for rows in (1, 2, 3, 7, 39):
        assert torch.equal(activation(x[:, :rows]), whole[:, :rows])
        assert torch.equal(activation(x[:, -rows:].contiguous()), whole[:, -rows:])
