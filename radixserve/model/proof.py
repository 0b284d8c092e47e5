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
from collections.abc import Collection
from dataclasses import replace

import msgspec
import torch

from radixserve.cache_folder import ADVICE, reason
from radixserve.kept_files import Damaged, KeptFiles
from radixserve.model.decoder import Decoder
from radixserve.model.dtypes import dtype_name
from radixserve.model.fixed_rotary import fixed_table_of
from radixserve.model.loaded import LoadedModel
from radixserve.model.probes import CHUNKINGS, logits_in_chunks, probe_tokens
from radixserve.model.recipe import Call, NoRecipe, recipe_of
from radixserve.model.weights import Weights
from radixserve.store.folder.fingerprint import weights_fingerprint
from radixserve.tensors.kv import KVShape

log = logging.getLogger(__name__)

_PROOFS = KeptFiles("proofs", b"radixserve proof 2\n", most=64)


class Proof(msgspec.Struct, frozen=True, kw_only=True):
    """The facts of a model that its decoder computes exactly, and how its weights are made. Dtypes
    are torch's, by name.
    """

    key: str
    recipe: list[Call]
    weights: str  # digest of the decoder's weights
    logits: str  # digest of what the decoder computes for the check's tokens
    warnings: list[str]  # of the load, which every start repeats
    stored_dtype: str
    num_bytes: int  # that the weights take in memory
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
    loaded: LoadedModel,
    key: str,
    *,
    read: Collection[str],
    stored: torch.dtype,
    num_bytes: int,
    warnings: list[str],
) -> Proof | None:
    """The proof of a model that has just passed the load check, for which the tensors `read` of its
    files were read. None, and the log says why, if its decoder does not serve it exactly, or cannot
    be made again without transformers.
    """
    decoder, shape = loaded.decoder, loaded.shape
    if not isinstance(decoder, Decoder) or not loaded.exact:
        return None
    if loaded.states is not None:
        log.info("later starts check this model again: its layers have a state")
        return None
    try:
        recipe = recipe_of(_with_fixed_tables(loaded, decoder.weights), read)
    except NoRecipe as error:
        log.info("later starts check this model again: %s", error)
        return None
    return Proof(
        key=key,
        recipe=recipe,
        weights=weights_digest(decoder),
        logits=logits_digest(loaded),
        warnings=warnings,
        stored_dtype=dtype_name(stored),
        num_bytes=num_bytes,
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
    )


def _with_fixed_tables(loaded: LoadedModel, weights: Weights) -> Weights:
    """The weights with rotary tables that need no modules of transformers, where there are such."""
    tables = [
        fixed_table_of(each, loaded.context_length, loaded.dtype) or each for each in weights.tables
    ]
    return replace(weights, tables=tables)


def weights_digest(decoder: Decoder) -> str:
    """A digest of every byte of a decoder's weights."""
    return weights_fingerprint("decoder", decoder.weights.tensors(), "")


def logits_digest(loaded: LoadedModel) -> str:
    """A digest of the logits of the check's tokens, computed in chunks: four steps."""
    tokens = probe_tokens(loaded.vocab_size)[0]
    logits = logits_in_chunks(loaded, tokens, CHUNKINGS[-1])
    return hashlib.sha256(logits.contiguous().numpy().data).hexdigest()
