"""The model classes that our decoder computes: where the modules of each are, and what its layers
do.

A class is one row of `FAMILIES`. Fields that a row leaves out are Llama's. What a module itself
tells is read from it (`model.read_family`): the epsilon of a norm, which activation it is, the
scaling of attention. A class that is not in the table runs through transformers' own modules, with
our linears and our attention.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

from radixserve.checkpoints.windows import window_of
from radixserve.kernels.cpu.experts import Scores
from radixserve.model.family_rules import (
    after_dense,
    beside_gates,
    falcon_slopes,
    in_groups,
    in_quarters,
    latent_fits,
    latent_in_neighbours,
    local_window,
    no_tables,
    repeating_tables,
    rotates_with_window,
    stored_tables,
    table_of_kind,
    table_of_theta,
    tables_by_kind,
    tables_by_theta,
    typed_positions,
)
from radixserve.model.read_recurrent import gated_delta, mamba2, short_convolution
from radixserve.model.rotary_tables import ModuleTable, StoredTable
from radixserve.model.slopes import bloom_slopes, mpt_slopes
from radixserve.model.weights import Recurrence, Rotary, RowFunction, places_in_order


@dataclass(frozen=True, slots=True)
class Scales:
    """Constants that a model multiplies by."""

    embedding: float = 1.0
    residual: float = 1.0  # what layers add to the stream
    logits: float = 1.0
    softcap: float | None = None  # of logits


def _always(part: Any) -> bool:
    return True


def _never(config: Any) -> bool:
    return False


def _unscaled(config: Any) -> Scales:
    return Scales()


def _none(part: Any) -> None:
    return None


def _own_clip(config: Any) -> float | None:
    return getattr(config, "clip_qkv", None)


def _own_scaling(attention: Any) -> float | None:
    """None: that of the size of a head."""
    return getattr(attention, "scaling", None)


def _first_table(attention: Any) -> int:
    return 0


def _tables_of_module(body: Any) -> list[Rotary]:
    return [ModuleTable(body.rotary_emb)]


Names = tuple[str, ...]
"""Of which the first that there is counts; none: there is no such module."""

Clamp = tuple[float, float]
"""Alpha and limit of experts whose activation is `Activation.CLAMPED_SWIGLU`."""

Places = Callable[[int, int, int], torch.Tensor]
"""Where heads begin in a row of q, k and v, from the numbers of heads, of key heads, and `dim`."""


def _softmax(config: Any) -> Scores:
    return Scores.SOFTMAX


def _normalises(router: Any) -> bool:
    return bool(getattr(router, "norm_topk_prob", True))


def _unclamped(config: Any) -> Clamp | None:
    return None


@dataclass(frozen=True, slots=True)
class Mixture:
    """A mixture of experts, in layers that have one. Names are paths from the layer; those of what
    is shared are as in `Family`, from there.
    """

    experts: str = "mlp.experts"
    router: str = "mlp.gate"
    scores: Callable[[Any], Scores] = _softmax  # from the configuration
    normalises: Callable[[Any], bool] = _normalises  # whether weights are, from the router
    shared: str = "mlp.shared_experts"  # where there is such a module
    shared_gate: str = "mlp.shared_expert_gate"  # likewise
    clamp: Callable[[Any], Clamp | None] = _unclamped  # from the configuration
    halves: Callable[[Any], bool] = _never  # whether the sum is halved, from the configuration
    best_of_group: int = 2  # as in `Router`


@dataclass(frozen=True, slots=True)
class Family:
    """A class of models. Names are those of attributes, and may be paths."""

    serves: Callable[[Any], bool] = _always  # whether a configuration is computed
    # The whole model.
    body: str = "model"
    embedding: str = "embed_tokens"
    widen: str = ""  # the linear that widens its rows
    positions: Callable[[Any], torch.Tensor | None] = _none  # learned ones, from the body
    embedding_norm: Names = ()
    project: str = ""  # the linear that widens its normed rows
    tables: Callable[[Any], list[Rotary]] = _tables_of_module  # from the body
    layers: str = "layers"
    last_norm: Names = ("norm",)
    transform: Callable[[Any], RowFunction | None] = _none  # before the output layer, of the model
    scales: Callable[[Any], Scales] = _unscaled  # from the configuration
    # A layer.
    is_parallel: Callable[[Any], bool] = _never  # from the configuration
    norms_sums: Callable[[Any], bool] = _never  # whether norms are behind the sums, not before
    attention: str = "self_attn"
    recurrent: str = ""  # what layers have instead that carry a state
    recurrence: Callable[[Any, Any], Recurrence] | None = None  # from it and the configuration
    mlp: str = "mlp"
    attention_norm: Names = ("input_layernorm",)
    attention_post_norm: Names = ()
    mlp_norm: Names = ("post_attention_layernorm",)
    mlp_post_norm: Names = ()
    adds_one: bool = False  # to the weights of norms
    # Its attention.
    qkv: str = "q_proj"  # the first of the linears, which is fused with the others
    places: Places = places_in_order
    o: str = "o_proj"
    has_gates: bool = False  # behind each head of q lie the gates of what it attends
    q_norm: str = "q_norm"  # where there are such norms
    k_norm: str = "k_norm"
    norms_heads_late: bool = False
    rotates: Callable[[Any], bool] = _always  # whether a layer does, from its attention
    table: Callable[[Any], int] = _first_table  # which one it rotates by, from its attention
    in_neighbours: bool = False
    attention_inner_norm: Names = ()
    scaling: Callable[[Any], float | None] = _own_scaling  # from the attention
    window: Callable[[Any, int], int | None] = window_of  # from the configuration, of a layer
    slopes: Callable[[Any], torch.Tensor | None] = _none  # from the configuration
    clip: Callable[[Any], float | None] = _own_clip  # from the configuration
    # Its MLP.
    up: str = "gate_proj"  # the first of the linears
    is_gated: bool = True
    activation: str = "act_fn"  # "": SiLU, which no module is
    down: str = "down_proj"
    mlp_inner_norm: Names = ()
    mixture: Mixture | None = None
    is_latent: bool = False  # attention is that of DeepSeek, with the names of its modules


def granite_scales(config: Any) -> Scales:
    """The constants of Granite."""
    return Scales(
        config.embedding_multiplier, config.residual_multiplier, 1 / config.logits_scaling
    )


QWEN3_NEXT = Family(
    recurrent="linear_attn",
    recurrence=gated_delta,
    adds_one=True,
    places=beside_gates,
    has_gates=True,
)
_POST_NORMS = Family(
    attention_norm=(),
    attention_post_norm=("post_attention_layernorm",),
    mlp_norm=(),
    mlp_post_norm=("post_feedforward_layernorm",),
)
_GEMMA2 = Family(
    scales=lambda config: Scales(softcap=config.final_logit_softcapping),
    attention_post_norm=("post_attention_layernorm",),
    mlp_norm=("pre_feedforward_layernorm",),
    mlp_post_norm=("post_feedforward_layernorm",),
    adds_one=True,
)
_COHERE = Family(
    tables=repeating_tables,
    scales=lambda config: Scales(logits=config.logit_scale),
    is_parallel=_always,
    mlp_norm=(),
    in_neighbours=True,
)
_UNGATED = Family(up="up_proj", is_gated=False)
_NEOX = Family(
    qkv="query_key_value",
    places=in_groups,
    o="dense",
    q_norm="q_layernorm",
    k_norm="k_layernorm",
    up="dense_h_to_4h",
    is_gated=False,
    activation="act",
    down="dense_4h_to_h",
)
_GPT2 = Family(
    body="transformer",
    embedding="wte",
    positions=lambda body: body.wpe.weight,
    tables=no_tables,
    layers="h",
    last_norm=("ln_f",),
    attention="attn",
    attention_norm=("ln_1",),
    mlp_norm=("ln_2",),
    qkv="c_attn",
    o="c_proj",
    rotates=_never,
    up="c_fc",
    is_gated=False,
    activation="act",
    down="c_proj",
)
_GPTJ = Family(
    serves=lambda config: bool(config.rotary_dim),
    body="transformer",
    embedding="wte",
    tables=stored_tables,
    layers="h",
    last_norm=("ln_f",),
    is_parallel=_always,
    attention="attn",
    attention_norm=("ln_1",),
    mlp_norm=(),
    o="out_proj",
    in_neighbours=True,
    up="fc_in",
    is_gated=False,
    activation="act",
    down="fc_out",
)
_OPT = Family(
    body="model.decoder",
    widen="project_in",
    positions=lambda body: body.embed_positions.weight[2:],
    tables=no_tables,
    last_norm=("final_layer_norm",),
    transform=lambda model: model.model.decoder.project_out,
    norms_sums=lambda config: not config.do_layer_norm_before,
    mlp="",
    attention_norm=("self_attn_layer_norm",),
    mlp_norm=("final_layer_norm",),
    o="out_proj",
    rotates=_never,
    up="fc1",
    is_gated=False,
    activation="activation_fn",
    down="fc2",
)
_XGLM = replace(_OPT, widen="", transform=_none, norms_sums=_never, last_norm=("layer_norm",))
_BERT = Family(
    embedding="embeddings.word_embeddings",
    positions=lambda body: typed_positions(body.embeddings, body.config),
    embedding_norm=("embeddings.LayerNorm",),
    tables=no_tables,
    layers="encoder.layer",
    last_norm=(),
    transform=lambda model: model.cls.predictions.transform,
    norms_sums=_always,
    attention="attention",
    mlp="",
    attention_norm=("attention.output.LayerNorm",),
    mlp_norm=("output.LayerNorm",),
    qkv="self.query",
    o="output.dense",
    rotates=_never,
    up="intermediate.dense",
    is_gated=False,
    activation="intermediate.intermediate_act_fn",
    down="output.dense",
)
LFM2 = Family(
    last_norm=("embedding_norm",),
    recurrent="conv",
    recurrence=short_convolution,
    mlp="feed_forward",
    attention_norm=("operator_norm",),
    mlp_norm=("ffn_norm",),
    o="out_proj",
    q_norm="q_layernorm",
    k_norm="k_layernorm",
    up="w1",
    activation="",
    down="w2",
)
_FUSED_GLU = Family(qkv="qkv_proj", up="gate_up_proj", activation="activation_fn")
_GLM = Family(in_neighbours=True, up="gate_up_proj", activation="activation_fn")

FAMILIES: dict[type[PreTrainedModel], Family] = {
    transformers.ApertusForCausalLM: replace(
        _UNGATED, attention_norm=("attention_layernorm",), mlp_norm=("feedforward_layernorm",)
    ),
    transformers.ArceeForCausalLM: _UNGATED,
    transformers.BambaForCausalLM: Family(
        last_norm=("final_layernorm",),
        recurrent="mamba",
        recurrence=mamba2,
        mlp="feed_forward",
        mlp_norm=("pre_ff_layernorm",),
    ),
    transformers.BioGptForCausalLM: replace(_XGLM, body="biogpt"),
    transformers.BitNetForCausalLM: Family(
        attention_inner_norm=("attn_sub_norm",), mlp_inner_norm=("ffn_sub_norm",)
    ),
    transformers.BloomForCausalLM: replace(
        _NEOX,
        serves=lambda config: not config.apply_residual_connection_post_layernorm,
        body="transformer",
        embedding="word_embeddings",
        embedding_norm=("word_embeddings_layernorm",),
        tables=no_tables,
        layers="h",
        last_norm=("ln_f",),
        attention="self_attention",
        rotates=_never,
        slopes=lambda config: bloom_slopes(config.num_attention_heads),
        activation="gelu_impl",
    ),
    transformers.CodeGenForCausalLM: replace(_GPTJ, qkv="qkv_proj", places=in_quarters),
    transformers.CohereForCausalLM: _COHERE,
    transformers.Cohere2ForCausalLM: replace(
        _COHERE, rotates=lambda attention: attention.sliding_window is not None
    ),
    transformers.CwmForCausalLM: Family(),
    transformers.Ernie4_5ForCausalLM: Family(in_neighbours=True),
    transformers.Exaone4ForCausalLM: replace(
        _POST_NORMS,
        rotates=rotates_with_window,
    ),
    transformers.FalconForCausalLM: replace(
        _NEOX,
        body="transformer",
        embedding="word_embeddings",
        tables=lambda body: [] if body.use_alibi else _tables_of_module(body),
        layers="h",
        last_norm=("ln_f",),
        is_parallel=lambda config: config.new_decoder_architecture or config.parallel_attn,
        attention="self_attention",
        attention_norm=("input_layernorm", "ln_attn"),
        mlp_norm=("post_attention_layernorm", "ln_mlp"),
        rotates=lambda attention: not attention.config.alibi,
        slopes=falcon_slopes,
    ),
    transformers.GemmaForCausalLM: Family(adds_one=True),
    transformers.Gemma2ForCausalLM: _GEMMA2,
    transformers.Gemma3ForCausalLM: replace(
        _GEMMA2,
        serves=lambda config: not config.use_bidirectional_attention,
        tables=tables_by_kind,
        table=table_of_kind,
    ),
    transformers.GlmForCausalLM: _GLM,
    transformers.Glm4ForCausalLM: replace(
        _GLM,
        attention_post_norm=("post_self_attn_layernorm",),
        mlp_post_norm=("post_mlp_layernorm",),
    ),
    transformers.GPT2LMHeadModel: _GPT2,
    transformers.GPTBigCodeForCausalLM: replace(_GPT2, places=in_groups),
    transformers.GPTJForCausalLM: _GPTJ,
    transformers.GPTNeoForCausalLM: replace(
        _GPT2,
        attention="attn.attention",
        qkv="q_proj",
        o="out_proj",
        scaling=lambda attention: 1.0,
        window=local_window,
    ),
    transformers.GPTNeoXForCausalLM: replace(
        _NEOX,
        body="gpt_neox",
        embedding="embed_in",
        last_norm=("final_layer_norm",),
        is_parallel=lambda config: config.use_parallel_residual,
        attention="attention",
    ),
    transformers.GraniteForCausalLM: Family(scales=granite_scales),
    transformers.GraniteSWAForCausalLM: Family(
        tables=tables_by_theta,
        scales=granite_scales,
        rotates=lambda attention: bool(attention.config.layer_rope_theta[attention.layer_idx]),
        table=table_of_theta,
    ),
    transformers.HeliumForCausalLM: Family(in_neighbours=True),
    transformers.HunYuanDenseV1ForCausalLM: Family(
        q_norm="query_layernorm", k_norm="key_layernorm", norms_heads_late=True
    ),
    transformers.HyperCLOVAXForCausalLM: Family(
        scales=lambda config: Scales(
            config.embedding_multiplier, config.residual_multiplier, config.logits_scaling
        ),
        attention_post_norm=("post_norm1",),
        mlp_post_norm=("post_norm2",),
    ),
    transformers.Jais2ForCausalLM: _UNGATED,
    transformers.LlamaForCausalLM: Family(),
    transformers.Lfm2ForCausalLM: LFM2,
    transformers.MegatronBertForCausalLM: replace(
        _BERT,
        body="bert",
        embedding_norm=(),
        last_norm=("encoder.ln",),
        norms_sums=_never,
        attention_norm=("attention.ln",),
        mlp_norm=("ln",),
    ),
    transformers.MiniCPM3ForCausalLM: Family(
        serves=latent_fits,
        scales=lambda config: Scales(
            residual=config.scale_depth / math.sqrt(config.num_hidden_layers),
            logits=1 / config.logits_scaling,
        ),
        is_latent=True,
    ),
    transformers.MinistralForCausalLM: Family(),
    transformers.MistralForCausalLM: Family(),
    transformers.MptForCausalLM: Family(
        body="transformer",
        embedding="wte",
        tables=no_tables,
        layers="blocks",
        last_norm=("norm_f",),
        attention="attn",
        mlp="ffn",
        attention_norm=("norm_1",),
        mlp_norm=("norm_2",),
        qkv="Wqkv",
        o="out_proj",
        rotates=_never,
        scaling=lambda attention: attention.softmax_scale,
        slopes=lambda config: mpt_slopes(config.n_heads, config.attn_config.alibi_bias_max),
        clip=lambda config: config.attn_config.clip_qkv,
        up="up_proj",
        is_gated=False,
        activation="act",
    ),
    transformers.NanoChatForCausalLM: Family(
        tables=lambda body: [ModuleTable(body.rotary_emb, is_reversed=True)],
        scales=lambda config: Scales(softcap=config.final_logit_softcapping),
        embedding_norm=("norm",),
        norms_heads_late=True,
        up="fc1",
        is_gated=False,
        activation="activation_fn",
        down="fc2",
    ),
    transformers.NemotronForCausalLM: replace(_UNGATED, adds_one=True),
    transformers.OlmoForCausalLM: Family(),
    transformers.Olmo2ForCausalLM: _POST_NORMS,
    transformers.Olmo3ForCausalLM: replace(_POST_NORMS, tables=tables_by_kind, table=table_of_kind),
    transformers.OpenAIGPTLMHeadModel: replace(
        _GPT2,
        embedding="tokens_embed",
        positions=lambda body: body.positions_embed.weight,
        last_norm=(),
        norms_sums=_always,
    ),
    transformers.OPTForCausalLM: _OPT,
    transformers.PersimmonForCausalLM: replace(_NEOX, last_norm=("final_layernorm",)),
    transformers.PhiForCausalLM: Family(
        last_norm=("final_layernorm",),
        is_parallel=_always,
        mlp_norm=(),
        o="dense",
        q_norm="q_layernorm",
        k_norm="k_layernorm",
        up="fc1",
        is_gated=False,
        activation="activation_fn",
        down="fc2",
    ),
    transformers.Phi3ForCausalLM: _FUSED_GLU,
    transformers.Qwen2ForCausalLM: Family(),
    transformers.Qwen3ForCausalLM: Family(),
    transformers.Qwen3_5ForCausalLM: QWEN3_NEXT,
    transformers.RemBertForCausalLM: replace(
        _BERT,
        body="rembert",
        project="encoder.embedding_hidden_mapping_in",
        transform=lambda model: after_dense(model.cls.predictions),
    ),
    transformers.RoFormerForCausalLM: replace(
        _BERT,
        serves=lambda config: not config.rotary_value,
        body="roformer",
        project="embeddings_project",
        tables=lambda body: [StoredTable(body.encoder.embed_positions.weight)],
        rotates=_always,
        in_neighbours=True,
    ),
    transformers.SeedOssForCausalLM: Family(),
    transformers.SmolLM3ForCausalLM: Family(rotates=lambda attention: bool(attention.use_rope)),
    transformers.StableLmForCausalLM: Family(
        is_parallel=lambda config: config.use_parallel_residual,
        q_norm="q_layernorm",
        k_norm="k_layernorm",
    ),
    transformers.Starcoder2ForCausalLM: Family(
        up="c_fc", is_gated=False, activation="act", down="c_proj"
    ),
    transformers.TrOCRForCausalLM: replace(
        _OPT,
        serves=lambda config: config.use_learned_position_embeddings,
        widen="",
        embedding_norm=("layernorm_embedding",),
        last_norm=(),
        transform=_none,
        norms_sums=_always,
    ),
    transformers.VaultGemmaForCausalLM: replace(_GEMMA2, attention_post_norm=(), mlp_post_norm=()),
    transformers.YoutuForCausalLM: Family(
        serves=latent_in_neighbours, is_latent=True, in_neighbours=True
    ),
    transformers.XGLMForCausalLM: replace(
        _XGLM, body="model", positions=lambda body: body.embed_positions.weights[2:]
    ),
}
