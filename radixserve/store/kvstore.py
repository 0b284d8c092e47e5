"""A store for users of transformers: put the cache of a prompt, get the longest stored prefix back
as a `DynamicCache`.

The same files, index and rules as the engine's disk tier, under another fingerprint: K/V that
another implementation computed has other bits.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import torch
import transformers
from transformers import DynamicCache, PreTrainedModel

from radixserve.cache.pool import KVShape
from radixserve.config import parse_size
from radixserve.store.disk_store import DiskStore, StoreStats, pack
from radixserve.store.fingerprint import weights_fingerprint
from radixserve.store.run_file import KV, TOKEN_BYTES

TokenIds = torch.Tensor | Sequence[int]


class KVStore:
    """K/V of one transformers model in a folder. A context manager; one thread at a time, one
    process per folder.
    """

    def __init__(
        self,
        path: str | Path,
        model: PreTrainedModel,
        budget: int | str = "10GiB",
        *,
        trust_others: bool = False,
    ) -> None:
        """Open or create. Reads all of the model's weights once, to know what its K/V belongs to;
        about 1 GB/s.

        Raises:
            StartupError: another process holds the folder, or it cannot be used.
            ValueError: `budget` is no size, or the model does not keep one K and one V per layer
                and position.
        """
        self._device, self._shape = model.device, _kv_shape(model)
        num_bytes = parse_size(budget) if isinstance(budget, str) else budget
        self._store = DiskStore(
            Path(path), num_bytes, _fingerprint(model), self._shape, trust_others=trust_others
        )

    def put(self, token_ids: TokenIds, past_key_values: DynamicCache) -> int:
        """Store what is not stored yet of one sequence's K/V; gives how many tokens that were.

        `token_ids` may be longer than the cache: the last token of an answer has no K/V yet. A
        cache that does not hold every position of every layer (sliding windows) or has other shapes
        than the model is not stored.

        Raises:
            ValueError: the cache holds more than one sequence, or more tokens than there are ids.
        """
        ids, kv = _ids(token_ids), _stacked(past_key_values)
        if kv is None or _shape_of(*kv) != self._shape:
            return 0
        if kv[0].shape[1] > len(ids):
            raise ValueError(f"{kv[0].shape[1]} positions in the cache, but {len(ids)} token ids")
        return self._store.put("", pack(ids[: kv[0].shape[1]]), 0, *kv)

    def get(self, token_ids: TokenIds) -> tuple[DynamicCache, int]:
        """The longest stored prefix short of the last token, and its length; an empty cache and 0
        where none is.
        """
        tokens = pack(_ids(token_ids))[:-TOKEN_BYTES]
        kv = self._store.load("", tokens, 0, len(tokens) // TOKEN_BYTES)
        if kv is None:
            return DynamicCache(), 0
        k, v = (
            each.transpose(1, 2).unsqueeze(1).to(self._device) for each in kv
        )  # [layers, 1, kv_heads, T, dim]
        return DynamicCache(list(zip(k, v, strict=True))), k.shape[3]

    def stats(self) -> StoreStats:
        """What is stored, and totals since the store was opened."""
        return self._store.stats()

    def close(self) -> None:
        """Let go of the folder."""
        self._store.close()

    def __enter__(self) -> KVStore:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()


def _fingerprint(model: PreTrainedModel) -> str:
    """By the weights as they are in memory now, which an adapter or an edit may have changed since
    they were loaded.
    """
    config = model.config.to_dict()
    config.pop("_name_or_path", None)  # moving a model does not change it
    text = json.dumps(config, sort_keys=True, default=str)
    how = (
        f"transformers {transformers.__version__}, torch {torch.__version__}, "
        f"{model.config._attn_implementation}"
    )
    return weights_fingerprint(text, model.state_dict(), f"{how}, {model.device.type}")


@torch.inference_mode()
def _kv_shape(model: PreTrainedModel) -> KVShape:
    """What one token leaves in a cache: asked of the model, whose configuration may name it in many
    ways.
    """
    cache = DynamicCache()
    model(
        torch.zeros(1, 1, dtype=torch.long, device=model.device),
        past_key_values=cache,
        use_cache=True,
    )
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
    """Of one sequence, [T] or [1, T]."""
    if isinstance(token_ids, torch.Tensor):
        if token_ids.dim() == 2 and token_ids.shape[0] != 1:
            raise ValueError("token ids of a batch; store one sequence at a time")
        token_ids = token_ids.flatten().tolist()
    return [int(each) for each in token_ids]
