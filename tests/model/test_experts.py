"""Experts on packed weights: the same results as the model's own, and for a row the same bits
whatever rows are beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig
from transformers.models.dbrx.configuration_dbrx import DbrxConfig
from transformers.models.gpt_oss.configuration_gpt_oss import GptOssConfig
from transformers.models.mixtral.configuration_mixtral import MixtralConfig
from transformers.models.qwen2_moe.configuration_qwen2_moe import Qwen2MoeConfig

from radixserve.model.experts import compute_rowwise
from radixserve.model.rowwise import make_rowwise

_SIZE: dict[str, Any] = {
    "vocab_size": 17,
    "hidden_size": 40,
    "intermediate_size": 52,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
CONFIGS: dict[str, Callable[[], PretrainedConfig]] = {
    "mixtral": lambda: MixtralConfig(**_SIZE, num_local_experts=5),
    "with a shared expert": lambda: Qwen2MoeConfig(
        **_SIZE, num_experts=5, num_experts_per_tok=3, moe_intermediate_size=36
    ),
    "with biases, transposed, with a gate of its own": lambda: GptOssConfig(
        **_SIZE, num_local_experts=5, num_experts_per_tok=2
    ),
}
OF_DBRX = "in three matrices"
CONFIGS[OF_DBRX] = lambda: DbrxConfig(
    d_model=40,
    n_heads=2,
    n_layers=1,
    vocab_size=17,
    attn_config={"kv_n_heads": 1, "clip_qkv": 8.0, "rope_theta": 10000.0},
    rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    ffn_config={"ffn_hidden_size": 52, "moe_num_experts": 5, "moe_top_k": 2},
)
DTYPES = [torch.float32, torch.bfloat16]


def block(name: str, dtype: torch.dtype) -> tuple[nn.Module, nn.Module]:
    """The experts of a layer with what surrounds them: the model's own, and made row-wise."""
    pair = []
    for _ in range(2):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(CONFIGS[name]()).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(std=0.3)
        if name != OF_DBRX:
            model.set_experts_implementation("eager")
        pair.append(model.to(dtype))
    assert make_rowwise(pair[1]) is None
    if name == OF_DBRX:
        own, ours = (model.transformer.blocks[0].ffn for model in pair)
    else:
        own, ours = (model.model.layers[0].mlp for model in pair)
    return own, ours


def result(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    out = module(x[None])
    rows: torch.Tensor = (out[0] if isinstance(out, tuple) else out)[0]
    return rows


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CONFIGS)
@torch.inference_mode()
def test_packed_experts_compute_what_the_models_own_do(name: str, dtype: torch.dtype) -> None:
    own, ours = block(name, dtype)
    x = torch.randn(67, 40).to(dtype)
    expected = result(own, x).float()
    # In bfloat16 a last bit may change the choice of a row.
    near = (result(ours, x).float() - expected).norm(dim=-1) < 0.03 * expected.norm(dim=-1)
    assert near.float().mean() >= (1.0 if dtype == torch.float32 else 0.9)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CONFIGS)
@torch.inference_mode()
def test_a_row_has_the_same_bits_whatever_rows_are_beside_it(name: str, dtype: torch.dtype) -> None:
    _, ours = block(name, dtype)
    x = torch.randn(67, 40).to(dtype)
    whole = result(ours, x)
    for begin, end in [(0, 1), (1, 3), (3, 20), (20, 67), (66, 67), (5, 38)]:
        assert torch.equal(result(ours, x[begin:end]), whole[begin:end])
    order = torch.randperm(67)
    assert torch.equal(result(ours, x[order]), whole[order])


def test_a_block_with_two_weights_of_one_shape_is_not_said_to_be_row_wise() -> None:
    block = nn.ParameterList([torch.zeros(3, 4), torch.zeros(3, 4)])
    assert not compute_rowwise(block)
    assert compute_rowwise(nn.ParameterList([torch.zeros(3, 4), torch.zeros(4, 3)]))
