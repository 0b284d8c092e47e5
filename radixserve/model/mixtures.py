"""The rows of the table of families (`model.families`) for classes with mixtures of experts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import transformers
from transformers import PreTrainedModel

from radixserve.kernels.cpu.experts import Scores
from radixserve.model.families import Family, Mixture, granite_scales
from radixserve.model.family_rules import latent_fits, latent_in_neighbours, rotates_with_window
from radixserve.model.rotary_tables import ComplexTable, ModuleTable


def _clamp(config: Any) -> tuple[float, float]:
    return float(config.swiglu_alpha), float(config.swiglu_limit)


_SOFTMAX = Family(mixture=Mixture())
_SIGMOID = Family(mixture=Mixture(scores=Scores.SIGMOID))
_POST_NORMS = Family(
    attention_norm=(),
    attention_post_norm=("post_attention_layernorm",),
    mlp_norm=(),
    mlp_post_norm=("post_feedforward_layernorm",),
    mixture=Mixture(),
)
_GRANITE = Family(
    scales=granite_scales,
    mixture=Mixture(experts="block_sparse_moe.experts", router="block_sparse_moe.router"),
)

_LATENT = replace(_SIGMOID, serves=latent_in_neighbours, is_latent=True, in_neighbours=True)


def _chooses_by_groups(config: Any) -> bool:
    """Whether DeepSeek V2 looks at groups of experts, or has one group only."""
    return latent_fits(config) and (
        config.topk_method == "group_limited_greedy" or config.n_group in (None, 1)
    )


MIXTURES: dict[type[PreTrainedModel], Family] = {
    transformers.AXK1ForCausalLM: replace(_LATENT, mlp_post_norm=("mlp.post_mlp_layernorm",)),
    transformers.DeepseekV2ForCausalLM: Family(
        serves=_chooses_by_groups,
        tables=lambda body: [ComplexTable(body.rotary_emb)],
        in_neighbours=True,
        mixture=Mixture(normalises=False, best_of_group=1),
        is_latent=True,
    ),
    transformers.DeepseekV3ForCausalLM: _LATENT,
    transformers.Dots1ForCausalLM: _SIGMOID,
    transformers.Ernie4_5_MoeForCausalLM: replace(_SOFTMAX, in_neighbours=True),
    transformers.ExaoneMoeForCausalLM: replace(_SIGMOID, rotates=rotates_with_window),
    transformers.FlexOlmoForCausalLM: _POST_NORMS,
    transformers.Glm4MoeForCausalLM: _SIGMOID,
    transformers.Glm4MoeLiteForCausalLM: _LATENT,
    transformers.GptOssForCausalLM: Family(
        tables=lambda body: [ModuleTable(body.rotary_emb, is_single=True)],
        mixture=Mixture(router="mlp.router", clamp=_clamp),
    ),
    transformers.GraniteMoeForCausalLM: _GRANITE,
    transformers.HunYuanMoEV1ForCausalLM: Family(
        q_norm="query_layernorm",
        k_norm="key_layernorm",
        norms_heads_late=True,
        mixture=Mixture(router="mlp.gate.wg", shared="mlp.shared_mlp"),
    ),
    transformers.MiniMaxM2ForCausalLM: _SIGMOID,
    transformers.MixtralForCausalLM: _SOFTMAX,
    transformers.OlmoeForCausalLM: _SOFTMAX,
    transformers.Qwen2MoeForCausalLM: Family(mixture=Mixture(shared="mlp.shared_expert")),
    transformers.Qwen3MoeForCausalLM: _SOFTMAX,
    transformers.SolarOpenForCausalLM: _SIGMOID,
}
