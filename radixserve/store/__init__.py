"""The disk tier: K/V of token prefixes in immutable safetensors files, found through a SQLite
index.

The package is independent of the server: it knows token ids, tensors and a folder, but no requests,
slots or models. Users of transformers use `KVStore`, the engine uses `store.folder.disk_store`.
Importing the package imports neither torch nor these two.

    format    names of files, the file of a run, the row of a run
    folder    an open folder: disk, lock, index, budget, `DiskStore`; uses format
    admin     the commands `radixserve cache`; uses folder and format
    kvstore   `KVStore`, for users of transformers; uses folder and format
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
