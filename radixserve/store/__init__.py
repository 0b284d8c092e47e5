"""The disk tier: K/V of token prefixes in immutable safetensors files, found through a SQLite
index.

Stands alone: it knows token ids, tensors and a folder; no requests, no slots, no models. `KVStore`
is the door for users of transformers, `store.disk_store` the one for an engine. Importing the
package imports neither torch nor these.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from radixserve.store.kvstore import KVStore

__all__ = ["KVStore"]


def __getattr__(name: str) -> object:
    if name == "KVStore":
        from radixserve.store.kvstore import KVStore

        return KVStore
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
