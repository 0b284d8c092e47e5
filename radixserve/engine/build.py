"""From settings to an engine that is ready to step: device, model, K/V pool, cache, scheduler.

Imported by the engine process after its first message, because torch and transformers load with it.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

from radixserve.cache.kvcache import KVCache
from radixserve.cache.pool import KVPool
from radixserve.config import Settings
from radixserve.engine.build_tiers import LOSSY, make_tiers
from radixserve.engine.core import EngineCore
from radixserve.engine.flight import StepModel
from radixserve.engine.scheduler import Limits
from radixserve.engine.tiers import Tiers
from radixserve.errors import ConfigError, ModelRefused
from radixserve.model.budget import slots_for_budget
from radixserve.model.cuda import start_graphs
from radixserve.model.fake import FakeModel
from radixserve.model.loader import load_model
from radixserve.model.runner import Runner
from radixserve.step import EngineInfo

_FAKE_SLOT_BYTES = 16
_FAKE_SLOTS = 1 << 20
_STEP_TOKENS = {"cpu": 256, "cuda": 2048}


def build_engine(settings: Settings, model: str) -> tuple[EngineCore, EngineInfo]:
    """The engine for `model`, a folder or a hub name.

    Raises:
        StartupError: the model or a setting makes it impossible; says why.
    """
    return _fake(settings, model) if settings.fake_model else _real(settings, model)


def _core(
    settings: Settings, model: StepModel, cache: KVCache, device: str, tiers: Tiers | None = None
) -> EngineCore:
    limits = Limits(settings.max_running, settings.max_step_tokens or _STEP_TOKENS[device])
    return EngineCore(model, cache, limits, tiers=tiers, ahead=device == "cuda")


def _fake(settings: Settings, model: str) -> tuple[EngineCore, EngineInfo]:
    """The model of no cost, with the vocabulary and the context of the one in folder `model`."""
    try:
        config = json.loads((Path(model) / "config.json").read_text())
    except OSError as error:
        raise ModelRefused(f"no model configuration in {model}: {error.strerror}") from error
    info = EngineInfo(
        vocab_size=config["vocab_size"],
        context_length=config["max_position_embeddings"],
        eos_token_ids=(),
        num_slots=settings.kv_budget // _FAKE_SLOT_BYTES or _FAKE_SLOTS,
        slot_bytes=_FAKE_SLOT_BYTES,
        device="cpu",
        dtype="float32",
        attention="none",
        exact=True,
        cache_enabled=settings.cache,
    )
    cache = KVCache(info.num_slots, enabled=settings.cache)
    return _core(settings, FakeModel(info.vocab_size), cache, info.device), info


def _real(settings: Settings, model: str) -> tuple[EngineCore, EngineInfo]:
    """The transformers model at `model` over a pool of the size that the budget gives."""
    device = _device(settings.device)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    loaded = load_model(model, device, _dtype(settings.dtype, device))
    num_slots = slots_for_budget(
        loaded.shape, loaded.context_length, device, settings.kv_budget, settings.kv_share
    )
    pool = KVPool(loaded.shape, num_slots, device)
    graphs, without_graphs = start_graphs(loaded, pool, settings.max_running)
    cache = KVCache(
        num_slots - 1 if graphs else num_slots, enabled=settings.cache
    )  # padding rows write to the last
    tiers = make_tiers(settings, model, loaded, pool, cache)
    lossy = settings.tier_dtype != "same" and bool(tiers.below)
    info = EngineInfo(
        vocab_size=loaded.vocab_size,
        context_length=loaded.context_length,
        eos_token_ids=loaded.eos_token_ids,
        num_slots=cache.allocator.num_slots,
        slot_bytes=loaded.shape.slot_bytes,
        device=device.type,
        dtype=str(loaded.dtype).removeprefix("torch."),
        attention=loaded.attention,
        exact=loaded.exact and not lossy,
        inexact_reason=loaded.inexact_reason or (LOSSY if lossy else None),
        fallback_reason=loaded.fallback_reason or without_graphs,
        cache_enabled=settings.cache,
    )
    return _core(settings, Runner(loaded, pool, graphs), cache, info.device, tiers), info


def _device(wanted: str) -> torch.device:
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device is 'cuda', but torch finds no CUDA device")
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")


def _dtype(wanted: str, device: torch.device) -> torch.dtype:
    if wanted == "auto":
        wanted = "bfloat16" if device.type == "cuda" else "float32"
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[wanted]
