"""What rows of the table of families (`model.families`) say by a function: where heads lie in a row
of q, k and v, the rotary tables of a model and which of them a layer has, learned positions,
windows, slopes.
"""

from __future__ import annotations

from typing import Any

import torch

from radixserve.checkpoints.windows import within_context
from radixserve.kernels.cpu.latent import MOST
from radixserve.model.rotary_tables import ModuleTable, StoredTable
from radixserve.model.slopes import bloom_slopes
from radixserve.model.weights import Rotary, RowFunction


def in_groups(heads: int, kv_heads: int, dim: int) -> torch.Tensor:
    """The places of heads that lie in one group for each key head: its query heads, the key head,
    the value head.
    """
    size = heads // kv_heads + 2
    places = torch.arange(kv_heads * size).view(kv_heads, size)
    return torch.cat([places[:, :-2].reshape(-1), places[:, -2], places[:, -1]]) * dim


def beside_gates(heads: int, kv_heads: int, dim: int) -> torch.Tensor:
    """The places of heads that lie in order, each query head before its gates."""
    return torch.cat([2 * torch.arange(heads), 2 * heads + torch.arange(2 * kv_heads)]) * dim


def in_quarters(heads: int, kv_heads: int, dim: int) -> torch.Tensor:
    """The places of CodeGen's heads: a quarter of q, of v, of k, then the next quarter of each."""
    q, v, k = torch.arange(3 * heads).view(4, 3, heads // 4).transpose(0, 1).reshape(3, -1)
    return torch.cat([q, k, v]) * dim


def repeating_tables(body: Any) -> list[Rotary]:
    """One, whose module gives each number twice, one behind the other."""
    return [ModuleTable(body.rotary_emb, repeats=True)]


def tables_by_kind(body: Any) -> list[Rotary]:
    """One for each kind of layers."""
    return [ModuleTable(body.rotary_emb, kind=kind) for kind in _kinds(body.config)]


def table_of_kind(attention: Any) -> int:
    """The table of `tables_by_kind` that a layer rotates by."""
    kinds = attention.config.layer_types
    return _kinds(attention.config).index(kinds[attention.layer_idx])


def _kinds(config: Any) -> list[str]:
    return sorted(set(config.layer_types))


def stored_tables(body: Any) -> list[Rotary]:
    """All layers of GPT-J and CodeGen have the same table."""
    return [StoredTable(body.h[0].attn.embed_positions)]


def tables_by_theta(body: Any) -> list[Rotary]:
    """GraniteSWA has one for each base of the frequencies that layers have."""
    return [ModuleTable(each) for each in body.rotary_embs]


def table_of_theta(attention: Any) -> int:
    """The table of `tables_by_theta` that a layer rotates by."""
    thetas = attention.config.layer_rope_theta
    return sorted({each for each in thetas if each}).index(thetas[attention.layer_idx])


def no_tables(body: Any) -> list[Rotary]:
    """None: positions are learned, or there are slopes."""
    return []


def rotates_with_window(attention: Any) -> bool:
    """Whether a layer of EXAONE rotates: if it has a window, or no layer has one."""
    return attention.sliding_window is None or bool(attention.is_sliding)


def typed_positions(embeddings: Any, config: Any) -> torch.Tensor:
    """Learned positions of models of the BERT kind, with what they add for the first type of
    token, which all tokens of a prompt have.
    """
    of_type: torch.Tensor = embeddings.token_type_embeddings.weight[:1]
    if not hasattr(embeddings, "position_embeddings"):
        return of_type.expand(config.max_position_embeddings, -1)
    positions: torch.Tensor = embeddings.position_embeddings.weight
    return of_type + positions


def local_window(config: Any, layer: int) -> int | None:
    """That of GPT-Neo's local layers."""
    is_local = config.attention_layers[layer] == "local"
    return within_context(config.window_size, config) if is_local else None


def falcon_slopes(config: Any) -> torch.Tensor | None:
    """Falcon rounds slopes to bfloat16, and scales them with the scores."""
    if not config.alibi:
        return None
    scaling = float(config.head_dim**-0.5)
    return bloom_slopes(config.num_attention_heads).bfloat16().float() * scaling


def latent_fits(config: Any) -> bool:
    """Whether the kernels of latent attention have room for a latent and for a head."""
    rotated = config.qk_rope_head_dim
    sizes = config.kv_lora_rank, config.qk_nope_head_dim, config.v_head_dim
    return bool(max(sizes) + rotated <= MOST)


def latent_in_neighbours(config: Any) -> bool:
    """Whether latent attention fits and rotates neighbours, as that of DeepSeek V3 may or not."""
    return latent_fits(config) and config.rope_interleave


def after_dense(head: Any) -> RowFunction:
    """What the head of RemBERT does before its output layer."""
    return lambda x: head.LayerNorm(head.activation(head.dense(x)))
