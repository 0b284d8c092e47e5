"""What the load check found of a model, kept for later starts in the cache folder.

A proof holds for one key: everything that decides what is loaded and how it is computed, except the
values of weights. Of these it holds a digest, and of what the decoder computed for the check's
tokens, too. So a later start reads the weights, computes these tokens, and is served by exactly
what was checked if both digests are the same (`model.direct`). There is one proof for each model
and way to serve it; the next check writes over it.
"""

from __future__ import annotations

import hashlib
import logging

import msgspec
import torch

from radixserve.cache_folder import ADVICE, reason
from radixserve.kept_files import Damaged, KeptFiles
from radixserve.kernels.cpu.activation import Activation
from radixserve.model.decoder import Decoder
from radixserve.model.dtypes import dtype_name
from radixserve.model.fixed_rotary import fixed_rotary_of
from radixserve.model.loaded import LoadedModel
from radixserve.model.probes import CHUNKINGS, logits_in_chunks, probe_tokens
from radixserve.model.weights import Embedding, Head, Layer, Mlp, Norm, Rope, Weights
from radixserve.store.folder.fingerprint import weights_fingerprint
from radixserve.tensors.kv import KVShape

log = logging.getLogger(__name__)

_PROOFS = KeptFiles("proofs", b"radixserve proof 1\n", most=64)


class Proof(msgspec.Struct, frozen=True, kw_only=True):
    """The facts of a model that its decoder computes exactly. Dtypes are torch's, by name."""

    key: str
    weights: str  # digest of the decoder's weights
    logits: str  # digest of what the decoder computes for the check's tokens
    warnings: list[str]  # of the load, which every start repeats
    stored_dtype: str
    num_weights: int
    dtype: str
    kv_dtype: str
    layers: int
    kv_heads: int
    k_dim: int
    v_dim: int
    vocab_size: int
    context_length: int
    eos_token_ids: tuple[int, ...]
    attention: str
    heads: int
    epsilon: float
    scaling: float
    is_tied: bool  # the embedding is the weight of the output layer
    frequencies: list[float]  # of the rotary tables
    rotary_factor: float

    @property
    def shape(self) -> KVShape:
        """The shape of one token's K/V."""
        dtype = torch_dtype(self.kv_dtype)
        return KVShape(self.layers, self.kv_heads, self.k_dim, self.v_dim, dtype)


def torch_dtype(name: str) -> torch.dtype:
    """The dtype that torch calls `name`."""
    found = getattr(torch, name)
    assert isinstance(found, torch.dtype), "proofs hold names of dtypes"
    return found


def find(name: str, key: str) -> Proof | None:
    """The proof kept under `name`, if it is one for `key`."""
    try:
        content = _PROOFS.read(name)
        proof = None if content is None else msgspec.msgpack.decode(content, type=Proof)
    except (Damaged, msgspec.MsgspecError):
        log.warning("the kept result of the load check is damaged; the model is checked anew")
        return None
    return proof if proof is not None and proof.key == key else None


def keep(name: str, proof: Proof) -> None:
    """Keep a proof for later starts. If that fails, it logs why."""
    try:
        _PROOFS.keep(name, msgspec.msgpack.encode(proof))
    except OSError as error:
        log.warning("the result of the load check is not kept, %s; %s", reason(error), ADVICE)


def prove(
    loaded: LoadedModel, key: str, *, stored: torch.dtype, num_weights: int, warnings: list[str]
) -> Proof | None:
    """The proof of a model that has just passed the load check; None if its decoder does not serve
    it exactly, or needs more of transformers than the proof can hold.
    """
    decoder, shape = loaded.decoder, loaded.shape
    if not isinstance(decoder, Decoder) or not loaded.exact or not _is_plain(decoder.weights):
        return None
    weights = decoder.weights
    rotary = fixed_rotary_of(weights.tables[0], loaded.context_length, loaded.dtype)
    if rotary is None:
        return None
    attention = weights.layers[0].attention
    return Proof(
        key=key,
        weights=weights_digest(decoder),
        logits=logits_digest(loaded),
        warnings=warnings,
        stored_dtype=dtype_name(stored),
        num_weights=num_weights,
        dtype=dtype_name(loaded.dtype),
        kv_dtype=dtype_name(shape.dtype),
        layers=shape.layers,
        kv_heads=shape.kv_heads,
        k_dim=shape.k_dim,
        v_dim=shape.v_dim,
        vocab_size=loaded.vocab_size,
        context_length=loaded.context_length,
        eos_token_ids=loaded.eos_token_ids,
        attention=loaded.attention,
        heads=weights.heads,
        epsilon=attention.norm.epsilon if attention.norm else 0.0,
        scaling=attention.attends.scaling,
        is_tied=weights.embedding.weight is weights.head.weight,
        frequencies=rotary.frequencies.tolist(),
        rotary_factor=rotary.factor,
    )


def _is_plain(weights: Weights) -> bool:
    """Whether `model.direct` can read such weights: those of the Llama kind, whose layers differ in
    nothing but their tensors.
    """
    first, head = weights.layers[0].attention, weights.head
    norms = [each for layer in weights.layers for each in _norms_of(layer)] + [head.norm]
    return (
        len(weights.tables) == 1
        and head == Head(head.norm, head.weight)
        and weights.residual_scale == 1.0
        and weights.embedding == Embedding(weights.embedding.weight)
        and all(_is_plain_layer(layer, first.attends.scaling) for layer in weights.layers)
        and all(each and not each.is_centered and each.bias is None for each in norms)
        and len({each.epsilon for each in norms if each}) == 1
    )


def _norms_of(layer: Layer) -> list[Norm | None]:
    """The norms that a plain layer has."""
    head_norm = layer.attention.head_norm
    return [layer.attention.norm, layer.mlp.norm, *([head_norm.norm] if head_norm else [])]


def _is_plain_layer(layer: Layer, scaling: float) -> bool:
    attention, mlp, head_norm = layer.attention, layer.mlp, layer.attention.head_norm
    if not isinstance(mlp, Mlp):
        return False
    others = attention.inner_norm, attention.post_norm, mlp.inner_norm, mlp.post_norm
    return (
        not (layer.is_parallel or layer.norms_stream)
        and (attention.rope, attention.attends.scaling, attention.clip) == (Rope(0), scaling, 0.0)
        and attention.latent is None
        and attention.attends.is_plain
        and (mlp.activation, mlp.is_gated) == (Activation.SILU, True)
        and not any(others)
        and not (head_norm and (head_norm.is_whole or head_norm.is_late))
    )


def weights_digest(decoder: Decoder) -> str:
    """A digest of every byte of a decoder's weights."""
    return weights_fingerprint("decoder", decoder.weights.tensors(), "")


def logits_digest(loaded: LoadedModel) -> str:
    """A digest of the logits of the check's tokens, computed in chunks: four steps."""
    tokens = probe_tokens(loaded.vocab_size)[0]
    logits = logits_in_chunks(loaded, tokens, CHUNKINGS[-1])
    return hashlib.sha256(logits.contiguous().numpy().data).hexdigest()
