"""From settings to an engine that is ready to step: device, model, K/V pool, cache, scheduler.

Imported by the engine process after its first message, because torch and transformers load with it.
"""

from __future__ import annotations

import json
from pathlib import Path

from radixserve.cache.kvcache import KVCache
from radixserve.config import Settings
from radixserve.engine.core import EngineCore, StepModel
from radixserve.engine.scheduler import Limits
from radixserve.errors import ModelRefused
from radixserve.model.fake import FakeModel
from radixserve.step import EngineInfo

_FAKE_SLOT_BYTES = 16
_FAKE_SLOTS = 1 << 20
_STEP_TOKENS = {"cpu": 256, "cuda": 2048}


def build_engine(settings: Settings, model: str) -> tuple[EngineCore, EngineInfo]:
    """The engine for `model`, a folder or a hub name.

    Raises:
        StartupError: the model or a setting makes it impossible; says why.
    """
    step_model, info = _fake(settings, model) if settings.fake_model else _real(settings, model)
    cache = KVCache(info.num_slots, enabled=settings.cache)
    limits = Limits(settings.max_running, settings.max_step_tokens or _STEP_TOKENS[info.device])
    return EngineCore(step_model, cache, limits), info


def _fake(settings: Settings, model: str) -> tuple[StepModel, EngineInfo]:
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
    return FakeModel(info.vocab_size), info


def _real(settings: Settings, model: str) -> tuple[StepModel, EngineInfo]:
    raise ModelRefused("not yet")
