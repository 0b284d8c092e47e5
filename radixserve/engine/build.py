"""Builds an engine from settings: device, model, K/V pool, cache, scheduler.

The engine process imports this after its first message, because it imports torch and transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from radixserve.adapters import AdapterInfo, AdapterSource
from radixserve.cache.kvcache import KVCache
from radixserve.cache.policies.table import make_policy
from radixserve.cache.states import StateSlots
from radixserve.cache.survey import first_serial
from radixserve.cache.windows import WindowSlots
from radixserve.config import Settings
from radixserve.engine.adapter_loader import AdapterLoader
from radixserve.engine.adapters import Adapters, load_all
from radixserve.engine.build_tiers import LOSSY, make_tiers
from radixserve.engine.core import EngineCore
from radixserve.engine.grammars import grammars_of
from radixserve.engine.lengths import context_length_of, max_request_tokens
from radixserve.engine.load import load as load_model
from radixserve.engine.scheduler import Limits
from radixserve.engine.state_layout import state_layout
from radixserve.engine.window_layout import window_layout
from radixserve.errors import ConfigError
from radixserve.kernels.cpu import levels
from radixserve.model.adapters import prepare_kernel
from radixserve.model.dtypes import dtype_name
from radixserve.model.graphs import DecodeGraphs
from radixserve.model.loaded import LoadedModel
from radixserve.model.runner import Runner
from radixserve.step import EngineInfo
from radixserve.tensors.budget import bounded_slots, slots_for_budget
from radixserve.tensors.kv import KVPool

_STEP_TOKENS = {"cpu": 256, "cuda": 2048}


def build_engine(
    settings: Settings, model: str, sources: Sequence[AdapterSource] = ()
) -> tuple[EngineCore, EngineInfo]:
    """The engine for `model`, a folder or a hub name, with adapters, over memory for K/V.

    Raises:
        StartupError: the model or a setting makes it impossible; gives the reason.
    """
    device = _device(settings.device)
    _limit_processor(settings)
    loader = AdapterLoader(sources)
    load = load_model(settings, model, device)
    loader.model = loaded = load.model
    context_length = context_length_of(settings, loaded.context_length)
    step_tokens = settings.max_step_tokens or _STEP_TOKENS[device.type]
    memory = _memory(settings, loaded, context_length, step_tokens)
    pool = memory.pool
    graphs, without_graphs = _graphs(loaded, pool, settings.max_running)
    # The padding rows of graphs write to the last slot, so the cache must not use it.
    cache = _cache(settings, pool.num_slots - 1 if graphs else pool.num_slots, memory)
    num_slots = min(memory.num_slots, cache.slots.budget)
    adapters = Adapters(loader, num_slots, memory.slot_bytes)
    infos = _load_adapters(settings, loaded, adapters, sources)
    cache.slots.resize(adapters.kv_slots)
    tiers = make_tiers(settings, model, loaded, pool, cache)
    memory.fill(cache.slots.budget)
    lossy = settings.tier_dtype != "same" and bool(tiers.below)
    info = EngineInfo(
        vocab_size=loaded.vocab_size,
        context_length=context_length,
        eos_token_ids=loaded.eos_token_ids,
        max_request_tokens=max_request_tokens(context_length, num_slots),
        num_slots=num_slots,
        pool_slots=cache.slots.allocator.capacity,
        host_bytes=tiers.host.capacity_bytes if tiers.host is not None else 0,
        most_running=settings.max_running if device.type == "cuda" else step_tokens,
        slot_bytes=cache.slots.slot_bytes,
        device=device.type,
        dtype=dtype_name(loaded.dtype),
        checkpoint_dtype=dtype_name(load.stored_dtype),
        kv_dtype=loaded.shape.dtype_name,
        quantize=settings.quantize,
        cpu_level=levels.current().name.lower() if device.type == "cpu" else None,
        attention=loaded.attention,
        exact=loaded.exact and not lossy,
        load_check=load.load_check,
        inexact_reason=loaded.inexact_reason or (LOSSY if lossy else None),
        forward="fast" if loaded.decoder else "generic",
        generic_reason=loaded.generic_reason,
        weight_bytes=loaded.weight_bytes,
        fallback_reason=loaded.fallback_reason or without_graphs,
        cache_enabled=settings.cache,
        adapters=tuple(infos),
    )
    limits = _limits(settings, step_tokens)
    runner = Runner(loaded, pool, graphs)
    grammars, ahead = grammars_of(model), info.device == "cuda" and not limits.speculates
    core = EngineCore(runner, cache, limits, tiers=tiers, grammars=grammars, ahead=ahead)
    core.serve_adapters(adapters)
    return core, info


def _load_adapters(
    settings: Settings, loaded: LoadedModel, adapters: Adapters, sources: Sequence[AdapterSource]
) -> list[AdapterInfo]:
    """Load the adapters of the start, and what steps with these or later ones need."""
    infos = load_all(adapters, sources)
    if sources or settings.lora_dir:
        prepare_kernel(loaded)
    return infos


def _limit_processor(settings: Settings) -> None:
    """Let kernels use the threads and the instructions that the settings allow."""
    if settings.threads:
        torch.set_num_threads(settings.threads)
    levels.limit(settings.cpu_level)


def _limits(settings: Settings, step_tokens: int) -> Limits:
    return Limits(
        settings.max_running,
        step_tokens,
        settings.prefill_share,
        settings.shared_step_ms / 1000,
        settings.pin_share,
        settings.request_pin_share,
        speculates=settings.speculate == "tree",
    )


class _Memory(NamedTuple):
    """The memory for K/V. `slot_bytes` is what one token takes of the budget."""

    pool: KVPool
    num_slots: int  # of the budget at start
    slot_bytes: int
    # for the pool of layers with a window, or of layers that have a state
    second: WindowSlots | StateSlots | None = None

    def fill(self, num_slots: int) -> None:
        """`KVPool.fill` for so many slots, and the window slots or state slots beside them."""
        self.pool.fill(num_slots)
        if self.pool.second is not None and self.second is not None:
            self.pool.second.pool.fill(self.second.budget)


def _memory(
    settings: Settings, loaded: LoadedModel, context_length: int, step_tokens: int
) -> _Memory:
    """The memory that the K/V budget gives.

    Raises:
        ConfigError: as `_slots`, and `state_layout`.
    """
    with_states, device = state_layout(settings, loaded), loaded.device
    if with_states is not None:
        slot_bytes = with_states.slot_bytes
        num_slots, pool_slots = _slots(settings, slot_bytes, context_length, device)
        states = with_states.state_slots(pool_slots)
        return _Memory(with_states.pool(pool_slots, states), num_slots, slot_bytes, states)
    layout = window_layout(settings, loaded)
    if layout is not None:
        num_slots, pool_slots = _slots(settings, layout.slot_bytes, context_length, device)
        windows = layout.window_slots(pool_slots, step_tokens)
        if windows is not None:
            pool = layout.pool(pool_slots, windows)
            return _Memory(pool, num_slots, layout.slot_bytes, windows)
    slot_bytes = loaded.shape.slot_bytes
    num_slots, pool_slots = _slots(settings, slot_bytes, context_length, device)
    return _Memory(KVPool(loaded.shape, pool_slots, device), num_slots, slot_bytes)


def _slots(
    settings: Settings, slot_bytes: int, context_length: int, device: torch.device
) -> tuple[int, int]:
    """The slots of the budget at start and of the pool, which are more if the budget may grow.

    Raises:
        ConfigError: the memory that is free does not suffice, or a setting is too small.
    """
    num_slots = slots_for_budget(
        slot_bytes, context_length, device, settings.kv_budget, settings.kv_share
    )
    if not settings.kv_budget_max:
        return num_slots, num_slots
    least, most = settings.kv_budget_min, settings.kv_budget_max
    return bounded_slots(slot_bytes, num_slots, device, least, most)


def _cache(settings: Settings, num_slots: int, memory: _Memory) -> KVCache:
    cache = KVCache(
        num_slots,
        slot_bytes=memory.slot_bytes,
        second=memory.second,
        enabled=settings.cache,
        policy=make_policy(settings.eviction_policy, num_slots),
    )
    cache.tree.number_behind(first_serial())
    return cache


def _graphs(
    loaded: LoadedModel, pool: KVPool, max_running: int
) -> tuple[DecodeGraphs | None, str | None]:
    """Graphs for decode steps, and why there are none where there should be some."""
    if loaded.device.type == "cpu":
        return None, None
    from radixserve.model.cuda import start_graphs  # imports transformers

    return start_graphs(loaded, pool, max_running)


def _device(wanted: str) -> torch.device:
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device is 'cuda', but torch finds no CUDA device")
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")
