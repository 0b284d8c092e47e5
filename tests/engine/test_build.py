"""Which lengths an engine tells the front, from settings and the model's own facts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from radixserve.cache.policies.arc import AdaptiveReplacement
from radixserve.config import Settings
from radixserve.engine.build_fake import build_engine
from radixserve.errors import ConfigError
from radixserve.request import Request, Sampling
from radixserve.step import EngineInfo

_SLOT_BYTES = 16  # of the model of no cost


@pytest.fixture
def model(tmp_path: Path) -> str:
    config = {"vocab_size": 97, "max_position_embeddings": 256}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return str(tmp_path)


def info_of(model: str, **settings: int) -> EngineInfo:
    return build_engine(Settings(fake_model=True, **settings), model)[1]  # type: ignore[arg-type]


def test_a_request_may_be_as_long_as_context_and_budget_allow(model: str) -> None:
    assert info_of(model).max_request_tokens == 256
    small = info_of(model, kv_budget=100 * _SLOT_BYTES)
    # the last token drawn needs no K/V
    assert (small.context_length, small.num_slots, small.max_request_tokens) == (256, 100, 101)


def test_a_request_of_exactly_that_length_runs(model: str) -> None:
    settings = Settings(fake_model=True, kv_budget=100 * _SLOT_BYTES)
    core, info = build_engine(settings, model)

    def reasons(max_tokens: int) -> list[str | None]:
        sampling = Sampling(max_tokens=max_tokens, seed=0)
        request = Request(id=f"r{max_tokens}", prompt_ids=[1] * 41, sampling=sampling)
        events = core.submit(request, [])
        while core.has_work:
            events += core.step()
        return [event.finish for event in events if event.finish is not None]

    assert reasons(info.max_request_tokens - 41) == ["length"]
    assert reasons(info.max_request_tokens - 40) == ["error"]


def test_max_model_len_bounds_the_context(model: str) -> None:
    bounded = info_of(model, max_model_len=200)
    assert (bounded.context_length, bounded.max_request_tokens) == (200, 200)
    with pytest.raises(ConfigError, match="max_model_len is 257, but the model's context is 256"):
        info_of(model, max_model_len=257)


def test_a_budget_that_may_grow_has_a_pool_of_its_largest_size(model: str) -> None:
    core, info = build_engine(
        Settings(fake_model=True, kv_budget=100 * _SLOT_BYTES, kv_budget_max=300 * _SLOT_BYTES),
        model,
    )
    assert (info.num_slots, info.pool_slots, info.max_request_tokens) == (100, 300, 101)
    assert (core.cache.stats().num_slots, core.cache.slots.allocator.capacity) == (100, 300)
    assert core.scheduler.budget == 100
    least = info_of(model, kv_budget_max=300 * _SLOT_BYTES, kv_budget_min=200 * _SLOT_BYTES)
    assert least.num_slots == 300  # the fake model's budget is more than that


def test_the_chosen_policy_of_eviction_is_that_of_the_cache(model: str) -> None:
    core, _ = build_engine(Settings(fake_model=True, eviction_policy="arc"), model)
    assert core.cache.slots.hindsight is not None
    assert isinstance(core.cache.slots.hindsight.policy, AdaptiveReplacement)


def test_no_node_of_an_engine_has_the_number_of_one_in_an_earlier_engine(model: str) -> None:
    first, _ = build_engine(Settings(fake_model=True), model)
    serials = [first.cache.tree.root(str(number)).serial for number in range(100)]
    second, _ = build_engine(Settings(fake_model=True), model)
    assert max(serials) < second.cache.tree.root("0").serial < 2**53
