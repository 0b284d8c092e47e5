"""Packed linears replace the model's own, fused where siblings share an input."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.activations import ACT2FN

from radixserve.kernels.cpu.gemm.lookup import Lookup
from radixserve.model.elementwise import RowwiseActivation
from radixserve.model.linear import FusedPart, PackedEmbedding, PackedLinear
from radixserve.model.rowwise import make_rowwise
from tests.tiny import CONFIGS, tiny_model


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


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert"])
def test_no_linear_of_torch_is_left(name: str) -> None:
    model = tiny_model(name)
    make_rowwise(model)
    kinds = {type(module).__name__ for module in model.modules()}
    assert "PackedLinear" in kinds
    assert not kinds & {"Linear", "Conv1D"}
    assert isinstance(model.get_output_embeddings(), PackedLinear)


def tied_model(tied: bool = True) -> PreTrainedModel:
    config = CONFIGS["llama_in_panels"]()
    config.vocab_size, config.tie_word_embeddings = 128, tied
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


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
