"""A store for users of transformers: store the cache of a prompt, and get the longest stored prefix
of a prompt as a `DynamicCache`.

It uses the same files, index and rules as the engine's disk tier, but another fingerprint, because
K/V computed by another implementation has other bits.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import torch
import transformers
from transformers import DynamicCache, PreTrainedModel

from radixserve.prefix import Prefix
from radixserve.rotary import rotary_refusal
from radixserve.sizes import parse_size
from radixserve.store.folder.disk_store import DiskStore, StoreStats
from radixserve.store.folder.fingerprint import weights_checksum, weights_fingerprint
from radixserve.store.format.run_file import digest_fields
from radixserve.tensors.kv import KV, KVShape

TokenIds = torch.Tensor | Sequence[int]


class KVStore:
    """K/V of one transformers model in a folder. A context manager; used by one thread at a time
    and one process per folder.

    The model may be changed while the store is open (trained, an adapter merged or switched): each
    `get` and `put` computes a checksum of all weights, which costs about as much as computing one
    token. K/V belongs to the weights that computed it, and is found again when the model has these
    weights again.
    """

    def __init__(
        self,
        path: str | Path,
        model: PreTrainedModel,
        budget: int | str = "10GiB",
        *,
        trust_others: bool = False,
    ) -> None:
        """Open or create. Reads all of the model's weights for its fingerprint, at about 1 GB/s. A
        folder that other users own or can write to is used only with `trust_others`.

        Raises:
            StartupError: the folder is not empty and not a store, other users can write to it,
                another process holds it, or it cannot be used.
            ValueError: `budget` is not a size, or K and V of the model cannot be reused: it does
                not keep one of each per layer and position, or they depend on what follows.
        """
        _refuse(model)
        self._model, self._seen = model, _seen(model)
        num_bytes = parse_size(budget) if isinstance(budget, str) else budget
        found = (_fingerprint(model), _kv_shape(model))
        self._store = DiskStore(Path(path), num_bytes, *found, trust_others=trust_others)

    def put(self, token_ids: TokenIds, past_key_values: DynamicCache) -> int:
        """Store the part of one sequence's K/V that is not stored yet; returns how many tokens were
        new.

        `token_ids` may be longer than the cache: the last token of an answer has no K/V yet. A
        cache that does not hold every position of every layer (sliding windows) or has other shapes
        than the model is not stored. Nothing is stored if the model has changed since the last
        call, because the K/V may have been computed before or after the change.

        Raises:
            ValueError: the cache holds more than one sequence, or more tokens than there are ids.
        """
        ids, kv = _ids(token_ids), _stacked(past_key_values)
        if self._changed() or kv is None or _shape_of(*kv) != self._store.shape:
            return 0
        if kv[0].shape[1] > len(ids):
            raise ValueError(f"{kv[0].shape[1]} positions in the cache, but {len(ids)} token ids")
        return self._store.put(Prefix.of("", ids[: kv[0].shape[1]]), 0, *kv)

    def get(self, token_ids: TokenIds) -> tuple[DynamicCache, int]:
        """The longest stored prefix short of the last token, and its length; an empty cache and 0
        if none is stored. Only K/V of the model's current weights is found.
        """
        self._changed()
        prefix = Prefix.of("", _ids(token_ids)[:-1])
        kv = self._store.load(prefix, 0, prefix.num_tokens)
        if kv is None:
            return DynamicCache(), 0
        k, v = (
            each.transpose(1, 2).unsqueeze(1).to(self._model.device) for each in kv
        )  # [layers, 1, kv_heads, T, dim]
        return DynamicCache(list(zip(k, v, strict=True))), k.shape[3]

    def stats(self) -> StoreStats:
        """What is stored, and totals since the store was opened."""
        return self._store.stats()

    def close(self) -> None:
        """Release the folder."""
        self._store.close()

    def _changed(self) -> bool:
        """Whether the model has changed since the last call; if so, its fingerprint is computed
        again.
        """
        seen = _seen(self._model)
        if seen == self._seen:
            return False
        self._store.fingerprint, self._store.shape = (
            _fingerprint(self._model),
            _kv_shape(self._model),
        )
        self._seen = seen
        return True

    def __enter__(self) -> KVStore:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()


def _refuse(model: PreTrainedModel) -> None:
    config = model.config
    reason = rotary_refusal(
        config if config.is_encoder_decoder else config.get_text_config(decoder=True)
    )
    if reason:
        raise ValueError(f"{type(model).__name__} {reason}")


def _seen(model: PreTrainedModel) -> str:
    """A short text that changes when the model changes."""
    return digest_fields(_how(model), weights_checksum(_weights(model)))


def _fingerprint(model: PreTrainedModel) -> str:
    """The fingerprint of the weights now in memory, which an adapter or an edit may have changed
    since they were loaded.
    """
    versions = f"transformers {transformers.__version__}, torch {torch.__version__}"
    return weights_fingerprint(_how(model), _weights(model), versions)


def _how(model: PreTrainedModel) -> str:
    """How the model computes: its configuration, device and active adapters."""
    config = model.config.to_dict()
    config.pop("_name_or_path", None)  # the folder's path is not part of the model
    adapters = [
        (name, module.active_adapters, module.disable_adapters)
        for name, module in model.named_modules()
        if isinstance(getattr(module, "disable_adapters", None), bool)
    ]
    how = [config, adapters, model.config._attn_implementation, model.device.type]
    return json.dumps(how, sort_keys=True, default=str)


def _weights(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Parameters and all buffers: rotary frequencies are in no file, but K depends on them."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


@torch.inference_mode()
def _kv_shape(model: PreTrainedModel) -> KVShape:
    """The shape of one token's K/V. The model computes one, because configurations name the sizes
    in different ways.
    """
    cache = DynamicCache()
    # the argument's name differs between the supported versions of transformers
    renamed = "cache" in inspect.signature(model.forward).parameters
    given = {"cache" if renamed else "past_key_values": cache}
    model(torch.zeros(1, 1, dtype=torch.long, device=model.device), use_cache=True, **given)
    kv = _stacked(cache)
    if kv is None:
        raise ValueError(
            f"{type(model).__name__} does not keep one K and one V per layer and position"
        )
    return _shape_of(*kv)


def _shape_of(k: torch.Tensor, v: torch.Tensor) -> KVShape:
    layers, _, kv_heads, k_dim = k.shape
    return KVShape(layers, kv_heads, k_dim, v.shape[3], k.dtype)


def _stacked(cache: DynamicCache) -> KV | None:
    """k and v [layers, T, kv_heads, dim] on the CPU, or None where layers differ or lack positions.

    Raises:
        ValueError: the cache holds more than one sequence.
    """
    layers = [
        (layer.keys, layer.values)
        for layer in cache.layers
        if layer.is_initialized and not layer.is_sliding
    ]
    if not layers or len(layers) < len(cache.layers):
        return None
    if any(k.shape[0] != 1 for k, _ in layers):
        raise ValueError("the cache holds a batch; store one sequence at a time")
    if any(k.shape != layers[0][0].shape or v.shape != layers[0][1].shape for k, v in layers):
        return None
    k, v = (
        torch.stack([each[0] for each in kind]).transpose(1, 2).cpu()
        for kind in zip(*layers, strict=True)
    )
    return k, v


def _ids(token_ids: TokenIds) -> list[int]:
    """The token ids of one sequence, given as [T] or [1, T]."""
    if isinstance(token_ids, torch.Tensor):
        if token_ids.dim() == 2 and token_ids.shape[0] != 1:
            raise ValueError("token ids of a batch; store one sequence at a time")
        token_ids = token_ids.flatten().tolist()
    return [int(each) for each in token_ids]
