"""Builds the tiers below a device's pool from settings, and computes the fingerprint under which
K/V is stored on the disk.

The fingerprint covers everything that may change a bit of K/V: the model's files, the dtypes, and
what computes with them (`engine.computed_by`). The number of threads is not part of it, because it
changes no bit.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import torch

from radixserve.cache.kvcache import KVCache
from radixserve.cache.policies.table import make_policy
from radixserve.config import Settings
from radixserve.engine.computed_by import code, processor
from radixserve.engine.tiers import Tiers
from radixserve.errors import ConfigError, StartupError
from radixserve.machine import THIS
from radixserve.model.loaded import LoadedModel
from radixserve.sizes import format_size
from radixserve.step import MIN_SLOTS
from radixserve.store.folder.disk_store import DiskStore
from radixserve.store.folder.fingerprint import folder_fingerprint
from radixserve.store.folder.store_folder import StoreFolder
from radixserve.tensors.budget import free_bytes
from radixserve.tensors.copies import Copies
from radixserve.tensors.kv import SCALED, KVPool, KVShape
from radixserve.tiers.contract import Tier
from radixserve.tiers.disk import DiskTier
from radixserve.tiers.host import HostTier
from radixserve.tiers.pace import Pace

LOSSY = "keys and values in host memory and on the disk are kept as float8 (tier_dtype)"

log = logging.getLogger(__name__)


def make_tiers(
    settings: Settings, model: str, loaded: LoadedModel, pool: KVPool, cache: KVCache
) -> Tiers:
    """The tiers that `settings` ask for, for the model that was loaded from the folder or hub name
    `model`.

    Raises:
        StartupError: the folder is no store, is locked by another process or cannot be used, a
            budget is too small or too large, or K/V has scales and cannot become float8.
    """
    dtype = loaded.shape.dtype
    if settings.tier_dtype == "float8":
        if dtype in SCALED:
            raise ConfigError(
                f"tier_dtype is 'float8', but keys and values are {loaded.shape.dtype_name} "
                "(kv_dtype), which tiers keep as they are"
            )
        dtype = torch.float8_e4m3fn
    shape = replace(loaded.shape, dtype=dtype)
    below: list[Tier] = []
    if settings.host_budget:
        below.append(_host(settings, shape, pool, cache.slots.budget * pool.slot_bytes))
    if settings.disk_path is not None:
        store = _open(settings, model, loaded, shape)
        below.append(DiskTier(store, cache, pool, Pace(), pin_share=settings.pin_share))
    return Tiers(cache, pool, below)


def _host(settings: Settings, shape: KVShape, pool: KVPool, device_budget: int) -> HostTier:
    """The host tier below `pool`, of which `device_budget` bytes are used."""
    budget, largest = settings.host_budget, settings.host_budget_max
    num_slots, free = budget // shape.slot_bytes, free_bytes(torch.device("cpu"))
    if pool.k.device.type == "cpu":
        # Its memory is reserved, but the system has not made it yet.
        free = max(0, free - device_budget)
    if num_slots < MIN_SLOTS:
        raise ConfigError(
            f"host_budget holds {num_slots} tokens at {shape.slot_bytes:,} bytes; "
            f"{MIN_SLOTS} are needed"
        )
    if budget > free:
        raise ConfigError(
            f"host_budget is {format_size(budget)}, {free >> 20} MiB of memory are free"
        )
    if largest > THIS.memory_limit():
        raise ConfigError(
            f"host_budget_max is {format_size(largest)}, more than the "
            f"{THIS.memory_limit() >> 20} MiB of memory that there are"
        )
    pool_slots = max(budget, largest) // shape.slot_bytes
    policy = make_policy(settings.eviction_policy, pool_slots)
    copies, share = Copies(pool.k.device), settings.pin_share
    host = HostTier(pool, shape, pool_slots, copies, policy, share)
    host.limit_kept(num_slots)
    host.cache.slots.resize(num_slots)
    return host


def _open(settings: Settings, model: str, loaded: LoadedModel, shape: KVShape) -> DiskStore:
    assert settings.disk_path is not None, "a store is asked for"
    folder, budget = Path(settings.disk_path), settings.disk_budget
    store = DiskStore(folder, budget, "", shape, trust_others=settings.disk_trust_others)
    try:
        fingerprint = _fingerprint(settings, store.folder, model, loaded, shape)
        store = store.of_model(fingerprint, shape)
    except BaseException:
        store.close()
        raise
    stats = store.stats()
    log.info(
        "disk store %s: %d runs, %d MiB of %s",
        folder,
        stats.runs,
        stats.bytes >> 20,
        format_size(budget),
    )
    return store


def _fingerprint(
    settings: Settings, store: StoreFolder, model: str, loaded: LoadedModel, shape: KVShape
) -> str:
    """The fingerprint of the model's files and of everything that computes with them here."""
    path = (loaded.attention, "exact" if loaded.exact else "not exact")
    forward = "decoder" if loaded.decoder else "modules"
    dtypes = (loaded.dtype, loaded.shape.dtype, shape.dtype)
    numbers = (*map(str, dtypes), settings.quantize)
    how = (code(), loaded.device.type, *processor(), *path, forward, *numbers)
    return folder_fingerprint(_folder_of(model), store, "; ".join(how))


def _folder_of(model: str) -> Path:
    """The folder with the files of a model that was loaded by folder or hub name."""
    if Path(model).is_dir():
        return Path(model)
    from transformers.utils import cached_file

    found = cached_file(model, "config.json", local_files_only=True)
    if found is None:
        raise StartupError(
            f"the files of {model} are not found; without them nothing can be stored on the disk"
        )
    return Path(found).parent
