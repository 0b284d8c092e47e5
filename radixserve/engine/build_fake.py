"""Builds an engine with the fake model from settings, to measure everything around the model.

Loads neither transformers nor kernels, so it starts in a fraction of the time of a real engine.
"""

from __future__ import annotations

import json
from pathlib import Path

from radixserve.cache.kvcache import KVCache
from radixserve.cache.policies.table import make_policy
from radixserve.cache.survey import first_serial
from radixserve.config import Settings
from radixserve.engine.core import EngineCore
from radixserve.engine.grammars import grammars_of
from radixserve.engine.lengths import context_length_of, max_request_tokens
from radixserve.engine.scheduler import Limits
from radixserve.errors import ModelRefused
from radixserve.model.fake import FakeModel
from radixserve.step import EngineInfo

_SLOT_BYTES = 16
_SLOTS = 1 << 20
_STEP_TOKENS = 256


def build_engine(settings: Settings, model: str) -> tuple[EngineCore, EngineInfo]:
    """The engine with the fake model, which has the vocabulary and the context length of the model
    in folder `model`.

    Raises:
        StartupError: there is no such folder, or a setting makes it impossible.
    """
    try:
        config = json.loads((Path(model) / "config.json").read_text())
    except OSError as error:
        raise ModelRefused(f"no model configuration in {model}: {error.strerror}") from error
    context_length = context_length_of(settings, config["max_position_embeddings"])
    wanted = max(settings.kv_budget // _SLOT_BYTES or _SLOTS, settings.kv_budget_min // _SLOT_BYTES)
    pool_slots = settings.kv_budget_max // _SLOT_BYTES or wanted
    num_slots = min(wanted, pool_slots)
    info = EngineInfo(
        vocab_size=config["vocab_size"],
        context_length=context_length,
        eos_token_ids=(),
        max_request_tokens=max_request_tokens(context_length, num_slots),
        num_slots=num_slots,
        pool_slots=pool_slots,
        most_running=settings.max_step_tokens or _STEP_TOKENS,
        slot_bytes=_SLOT_BYTES,
        device="cpu",
        dtype="float32",
        checkpoint_dtype="float32",
        kv_dtype="float32",
        attention="none",
        exact=True,
        cache_enabled=settings.cache,
    )
    cache = KVCache(
        pool_slots,
        slot_bytes=_SLOT_BYTES,
        enabled=settings.cache,
        policy=make_policy(settings.eviction_policy, pool_slots),
    )
    cache.tree.number_behind(first_serial())
    cache.slots.resize(num_slots)
    limits = Limits(
        settings.max_running,
        settings.max_step_tokens or _STEP_TOKENS,
        settings.prefill_share,
        settings.shared_step_ms / 1000,
        settings.pin_share,
        settings.request_pin_share,
        speculates=settings.speculate == "tree",
    )
    return EngineCore(FakeModel(info.vocab_size), cache, limits, grammars=grammars_of(model)), info
