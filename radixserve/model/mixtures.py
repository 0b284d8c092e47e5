"""The rows of the table of families (`model.families`) for classes with mixtures of experts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import transformers
from transformers import PreTrainedModel

from radixserve.kernels.cpu.experts import Scores
from radixserve.model.families import LFM2, QWEN3_NEXT, Family, Mixture, Scales, granite_scales
from radixserve.model.family_rules import (
    latent_fits,
    latent_in_neighbours,
    repeating_tables,
    rotates_with_window,
    table_of_kind,
    table_of_theta,
    tables_by_kind,
    tables_by_theta,
)
from radixserve.model.read_recurrent import mamba2
from radixserve.model.rotary_tables import ComplexTable, ModuleTable


def _clamp(config: Any) -> tuple[float, float]:
    return float(config.swiglu_alpha), float(config.swiglu_limit)


def _sigmoid(config: Any) -> Scores:
    return Scores.SIGMOID


def _cohere_scores(config: Any) -> Scores:
    return Scores.SOFTMAX if config.expert_selection_fn == "softmax" else Scores.SIGMOID


def _cohere_normalises(router: Any) -> bool:
    return bool(router.expert_selection_fn == "softmax" or router.norm_topk_prob)


def _cohere_halves(config: Any) -> bool:
    strategy = config.shared_expert_combination_strategy
    return bool(config.num_shared_experts > 0 and strategy == "average")


_SOFTMAX = Family(mixture=Mixture())
_SIGMOID = Family(mixture=Mixture(scores=_sigmoid))
_POST_NORMS = Family(
    attention_norm=(),
    attention_post_norm=("post_attention_layernorm",),
    mlp_norm=(),
    mlp_post_norm=("post_feedforward_layernorm",),
    mixture=Mixture(),
)
_GRANITE_EXPERTS = Mixture(experts="block_sparse_moe.experts", router="block_sparse_moe.router")
_GRANITE = Family(scales=granite_scales, mixture=_GRANITE_EXPERTS)
_GRANITE_SHARED = replace(
    _GRANITE,
    up="input_linear",
    activation="activation",
    down="output_linear",
    mixture=replace(_GRANITE_EXPERTS, shared="shared_mlp"),
)

_LATENT = replace(_SIGMOID, serves=latent_in_neighbours, is_latent=True, in_neighbours=True)


def _chooses_by_groups(config: Any) -> bool:
    """Whether DeepSeek V2 looks at groups of experts, or has one group only."""
    return latent_fits(config) and (
        config.topk_method == "group_limited_greedy" or config.n_group in (None, 1)
    )


_QWEN3_NEXT_EXPERTS = replace(QWEN3_NEXT, mixture=Mixture(shared="mlp.shared_expert"))

MIXTURES: dict[type[PreTrainedModel], Family] = {
    transformers.AXK1ForCausalLM: replace(_LATENT, mlp_post_norm=("mlp.post_mlp_layernorm",)),
    transformers.AriaTextForCausalLM: Family(mixture=Mixture(router="mlp.router")),
    transformers.Cohere2MoeForCausalLM: Family(
        tables=repeating_tables,
        scales=lambda config: Scales(logits=config.logit_scale),
        is_parallel=lambda config: True,
        mlp_norm=(),
        rotates=lambda attention: attention.sliding_window is not None or attention.force_rope,
        in_neighbours=True,
        mixture=Mixture(
            scores=_cohere_scores,
            normalises=_cohere_normalises,
            halves=_cohere_halves,
        ),
    ),
    transformers.DeepseekV2ForCausalLM: Family(
        serves=_chooses_by_groups,
        tables=lambda body: [ComplexTable(body.rotary_emb)],
        in_neighbours=True,
        mixture=Mixture(normalises=lambda router: False, best_of_group=1),
        is_latent=True,
    ),
    transformers.DeepseekV3ForCausalLM: _LATENT,
    transformers.Dots1ForCausalLM: _SIGMOID,
    transformers.Ernie4_5_MoeForCausalLM: replace(_SOFTMAX, in_neighbours=True),
    transformers.ExaoneMoeForCausalLM: replace(_SIGMOID, rotates=rotates_with_window),
    transformers.FlexOlmoForCausalLM: _POST_NORMS,
    transformers.FlintForCausalLM: Family(
        rotates=lambda attention: attention.sliding_window is not None,
        mixture=Mixture(scores=_sigmoid, shared="mlp.shared_expert"),
    ),
    transformers.Glm4MoeForCausalLM: _SIGMOID,
    transformers.Glm4MoeLiteForCausalLM: _LATENT,
    transformers.GptOssForCausalLM: Family(
        tables=lambda body: [ModuleTable(body.rotary_emb, is_single=True)],
        mixture=Mixture(router="mlp.router", clamp=_clamp),
    ),
    transformers.GraniteMoeForCausalLM: _GRANITE,
    transformers.GraniteMoeHybridForCausalLM: replace(
        _GRANITE_SHARED,
        tables=lambda body: [] if body.rotary_emb is None else [ModuleTable(body.rotary_emb)],
        rotates=lambda attention: attention.config.position_embedding_type == "rope",
        recurrent="mamba",
        recurrence=mamba2,
        mlp="shared_mlp",
    ),
    transformers.GraniteMoeSharedForCausalLM: _GRANITE_SHARED,
    transformers.GraniteMoeSWAForCausalLM: replace(
        _GRANITE_SHARED,
        tables=tables_by_theta,
        rotates=lambda attention: bool(attention.config.layer_rope_theta[attention.layer_idx]),
        table=table_of_theta,
    ),
    transformers.HunYuanMoEV1ForCausalLM: Family(
        q_norm="query_layernorm",
        k_norm="key_layernorm",
        norms_heads_late=True,
        mixture=Mixture(router="mlp.gate.wg", shared="mlp.shared_mlp"),
    ),
    transformers.HYV3ForCausalLM: _SIGMOID,
    transformers.Lfm2MoeForCausalLM: replace(
        LFM2,
        tables=lambda body: [ModuleTable(body.pos_emb)],
        mixture=Mixture(
            experts="feed_forward.experts", router="feed_forward.gate", scores=_sigmoid
        ),
    ),
    transformers.MellumForCausalLM: replace(_SOFTMAX, tables=tables_by_kind, table=table_of_kind),
    transformers.MiniMaxM2ForCausalLM: _SIGMOID,
    transformers.MixtralForCausalLM: _SOFTMAX,
    transformers.OlmoeForCausalLM: _SOFTMAX,
    transformers.Qwen2MoeForCausalLM: Family(mixture=Mixture(shared="mlp.shared_expert")),
    transformers.Qwen3MoeForCausalLM: _SOFTMAX,
    transformers.Qwen3NextForCausalLM: _QWEN3_NEXT_EXPERTS,
    transformers.Qwen3_5MoeForCausalLM: _QWEN3_NEXT_EXPERTS,
    transformers.SolarOpenForCausalLM: _SIGMOID,
}
