"""A model with windows, through the engine, with window slots that are short: whatever runs beside
a request, wherever it hits, and while the budget moves, its answer has the bits of the same request
alone without a cache.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from radixserve.cache.kvcache import KVCache
from radixserve.cache.windows import WindowSlots
from radixserve.config import Settings
from radixserve.engine import window_layout
from radixserve.engine.core import EngineCore
from radixserve.engine.scheduler import Limits
from radixserve.engine.tiers import Tiers
from radixserve.engine.window_layout import EVEN_TOKENS, MORE_TOKENS, WindowLayout
from radixserve.model.load import prepare_model
from radixserve.model.loaded import LoadedModel
from radixserve.model.runner import Runner
from radixserve.request import Request, Sampling
from radixserve.step import TokenEvent
from radixserve.tensors.kv import KVPool
from radixserve.tiers import trimming
from tests.model.test_windows import WINDOW, model_of
from tests.tiny import CPU, VOCAB

STEP, SLOTS, WINDOW_SLOTS = 32, 900, 230


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return prepare_model(model_of("gemma3"), CPU)


def engine_of(loaded: LoadedModel, *, windowed: bool) -> EngineCore:
    windows, pool = None, KVPool(loaded.shape, SLOTS, CPU)
    if windowed:
        layout = WindowLayout(loaded.shape, WINDOW, tuple(map(bool, loaded.windows)))
        windows = WindowSlots(SLOTS, WINDOW_SLOTS, WINDOW, least=2 * WINDOW + STEP + 64)
        pool = layout.pool(SLOTS, windows)
    cache = KVCache(SLOTS, enabled=windowed, second=windows)
    limits = Limits(4, STEP, speculates=windowed)
    return EngineCore(Runner(loaded, pool), cache, limits, tiers=Tiers(cache, pool))


def requests() -> list[Request]:
    rng, made = np.random.default_rng(2), []
    shared = rng.integers(2, VOCAB, (3, 200)).tolist()
    for number in range(24):
        cut, tail = int(rng.integers(1, 200)), rng.integers(2, VOCAB, int(rng.integers(1, 40)))
        prompt = shared[number % 3][:cut] + tail.tolist()
        sampling = Sampling(max_tokens=int(rng.integers(1, 40)), seed=number, logprobs=0)
        made.append(Request(id=f"{number}", prompt_ids=prompt, sampling=sampling))
    return made


def answers(events: list[TokenEvent]) -> dict[str, list[tuple[int, float]]]:
    found: dict[str, list[tuple[int, float]]] = {}
    for event in events:
        rows = [(each.token_id, each.logprob) for each in event.logprobs or []]
        found.setdefault(event.request_id, []).extend(rows)
    return found


def test_answers_have_the_bits_of_requests_alone(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trimming, "AGAIN_SECONDS", 0.0)
    alone, engine = (engine_of(loaded, windowed=each) for each in (False, True))
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
    windows = engine.cache.second
    assert windows is not None
    engine.scheduler.resize(500)
    while engine.tiers.trimming_patience is not None:
        engine.tiers.settle()
    assert windows.allocator.end == windows.allocator.num_slots == 144, "what is left is together"


# Which models have window slots, and how many.


def layout_of(loaded: LoadedModel, **settings: object) -> WindowLayout | None:
    return window_layout.window_layout(Settings(**settings), loaded)  # type: ignore[arg-type]


def test_the_budget_holds_three_times_the_tokens_of_a_model_with_five_of_six_windows(
    loaded: LoadedModel,
) -> None:
    windows = (*[1024] * 5, None) * 8
    large = replace(loaded, windows=windows, shape=replace(loaded.shape, layers=48))
    layout = layout_of(large)
    assert layout is not None
    assert layout.slot_bytes / large.shape.slot_bytes < 0.35
    num_slots = EVEN_TOKENS * 10
    slots = layout.window_slots(num_slots, 256)
    assert slots is not None
    assert slots.allocator.capacity == pytest.approx(10 * (1024 + MORE_TOKENS), rel=0.01)
    taken = slots.main_bytes * num_slots + slots.slot_bytes * slots.allocator.capacity
    assert 0 <= num_slots * layout.slot_bytes - taken < slots.slot_bytes
    assert layout.window_slots(EVEN_TOKENS, 256) is None, "one sequence would not fit"


def test_kv_is_kept_whole_where_windows_are_long_or_tiers_stand_below(
    loaded: LoadedModel,
) -> None:
    assert layout_of(loaded) is not None
    assert layout_of(loaded, host_budget=1 << 30) is None
    assert layout_of(loaded, disk_path="somewhere") is None
    assert layout_of(replace(loaded, windows=(EVEN_TOKENS, None))) is None
    assert layout_of(replace(loaded, windows=())) is None


def test_a_model_with_windows_only_has_no_other_pool(loaded: LoadedModel) -> None:
    layout = WindowLayout(loaded.shape, WINDOW, (True, True))
    windows = WindowSlots(64, 32, WINDOW)
    pool = layout.pool(64, windows)
    assert [each.shape.layers for each in pool.parts] == [0, 2]
    pool.fill(64)
    assert torch.equal(pool.parts[1].k, torch.zeros(2, 33, *pool.parts[1].k.shape[2:]))
