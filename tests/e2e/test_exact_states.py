"""A model whose layers have a state, through the engine, with state slots that are short: whatever
runs beside a request, wherever it hits, and while the budget moves, its answer has the bits of the
same request alone without a cache.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from radixserve.cache.kvcache import KVCache
from radixserve.cache.states import LEAST, StateSlots
from radixserve.config import Settings
from radixserve.engine.core import EngineCore
from radixserve.engine.scheduler import Limits
from radixserve.engine.state_layout import EVEN_TOKENS, StateLayout, state_layout
from radixserve.engine.tiers import Tiers
from radixserve.errors import ConfigError
from radixserve.model.load import prepare_model
from radixserve.model.loaded import LoadedModel
from radixserve.model.runner import Runner
from radixserve.tensors.kv import KVShape, StateShape
from radixserve.tiers import trimming
from tests.e2e.test_exact_windows import answers, requests
from tests.model.test_families import tiny
from tests.tiny import CPU

STEP, SLOTS, STATE_SLOTS = 32, 900, 40


@pytest.fixture(scope="module", params=["lfm2", "qwen3_next"])
def loaded(request: pytest.FixtureRequest) -> LoadedModel:
    return prepare_model(tiny(request.param), CPU)


def engine_of(loaded: LoadedModel, *, with_cache: bool) -> EngineCore:
    states = StateSlots(SLOTS, STATE_SLOTS, every=24)
    pool = loaded.pool(SLOTS, STATE_SLOTS)
    cache = KVCache(SLOTS, enabled=with_cache, second=states)
    return EngineCore(Runner(loaded, pool), cache, Limits(4, STEP), tiers=Tiers(cache, pool))


def test_answers_have_the_bits_of_requests_alone(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trimming, "AGAIN_SECONDS", 0.0)
    alone, engine = (engine_of(loaded, with_cache=each) for each in (False, True))
    expected, found, rng = [], [], np.random.default_rng(3)
    for request in requests():
        alone.submit(request, [])
        while alone.has_work:
            expected += alone.step()
    for request in requests():
        engine.submit(request, [])
        for _ in range(int(rng.integers(12))):
            found += engine.step()
        engine.scheduler.resize(int(rng.integers(500, SLOTS + 1)))
        engine.cache.check()
    while engine.has_work:
        found += engine.step()
    assert answers(found) == answers(expected)
    assert sum(event.num_cached or 0 for event in found), "nothing was hit"
    assert engine.cache.second is not None
    engine.scheduler.resize(500)
    while engine.tiers.trimming_patience is not None:
        engine.tiers.settle()
    slots = engine.cache.second.allocator
    assert slots.end == slots.num_slots == STATE_SLOTS * 500 // SLOTS, "what is left is together"


# How the budget is divided.


def layout_of(loaded: LoadedModel, **settings: object) -> StateLayout:
    layout = state_layout(Settings(**settings), loaded)  # type: ignore[arg-type]
    assert layout is not None
    return layout


def test_states_take_about_as_much_of_the_budget_as_keys_and_values(loaded: LoadedModel) -> None:
    """A model of 48 layers, of which 36 have matrices of 32 heads."""
    shape = StateShape((True, True, True, False) * 12, 3 * 8192, 32 * 128 * 128)
    kv = KVShape(12, 2, 256, 256, loaded.dtype)
    layout = layout_of(replace(loaded, shape=kv, states=shape))
    assert layout.every == 1024
    assert 1 < layout.slot_bytes / kv.slot_bytes < 4
    num_slots = 10 * EVEN_TOKENS
    states = layout.state_slots(num_slots)
    taken = num_slots * kv.slot_bytes + states.allocator.capacity * shape.slot_bytes
    assert 0 <= num_slots * layout.slot_bytes - taken < shape.slot_bytes
    with pytest.raises(ConfigError, match=f"room for 0 states of .* {LEAST} are needed"):
        layout.state_slots(EVEN_TOKENS // 10)


@pytest.mark.parametrize(
    "asked",
    [
        {"host_budget": 1 << 30},
        {"disk_path": "somewhere"},
        {"speculate": "tree"},
        {"kv_events": "tcp://127.0.0.1:5557"},
    ],
)
def test_what_does_not_go_with_states_is_refused(
    loaded: LoadedModel, asked: dict[str, object]
) -> None:
    with pytest.raises(ConfigError, match="does not go with this model, whose layers have a state"):
        layout_of(loaded, **asked)
