"""From settings to an engine of no cost, to measure everything around the model.

Loads neither transformers nor kernels, so it starts in a fraction of the time of a real one.
"""

from __future__ import annotations

import json
from pathlib import Path

from radixserve.cache.kvcache import KVCache
from radixserve.config import Settings
from radixserve.engine.core import EngineCore
from radixserve.engine.scheduler import Limits
from radixserve.errors import ModelRefused
from radixserve.model.fake import FakeModel
from radixserve.step import EngineInfo

_SLOT_BYTES = 16
_SLOTS = 1 << 20
_STEP_TOKENS = 256


def build_engine(settings: Settings, model: str) -> tuple[EngineCore, EngineInfo]:
    """The engine with the model of no cost, which has the vocabulary and the context of the one in
    folder `model`.

    Raises:
        ModelRefused: there is no such folder.
    """
    try:
        config = json.loads((Path(model) / "config.json").read_text())
    except OSError as error:
        raise ModelRefused(f"no model configuration in {model}: {error.strerror}") from error
    info = EngineInfo(
        vocab_size=config["vocab_size"],
        context_length=config["max_position_embeddings"],
        eos_token_ids=(),
        num_slots=settings.kv_budget // _SLOT_BYTES or _SLOTS,
        slot_bytes=_SLOT_BYTES,
        device="cpu",
        dtype="float32",
        attention="none",
        exact=True,
        cache_enabled=settings.cache,
    )
    cache = KVCache(info.num_slots, enabled=settings.cache)
    limits = Limits(settings.max_running, settings.max_step_tokens or _STEP_TOKENS)
    return EngineCore(FakeModel(info.vocab_size), cache, limits), info
