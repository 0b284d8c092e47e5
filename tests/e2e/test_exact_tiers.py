"""Exact across tiers: device, host memory, disk, restart and import give the bits of a computation
from nothing.
"""

from __future__ import annotations

import random
import select
from pathlib import Path

import msgspec
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from radixserve.cache.kvcache import KVCache
from radixserve.checkpoints.embedded import embedded_model
from radixserve.config import Settings
from radixserve.engine import build
from radixserve.engine.core import EngineCore
from radixserve.engine.load import Load
from radixserve.engine.scheduler import Limits
from radixserve.engine.tiers import Tiers
from radixserve.model.load import load_model, prepare_model
from radixserve.model.loaded import LoadedModel
from radixserve.model.runner import Runner
from radixserve.request import Request
from radixserve.store.admin import transfer
from radixserve.store.folder.disk_store import DiskStore
from radixserve.tensors.copies import Copies
from radixserve.tensors.kv import KVPool
from radixserve.tiers.contract import Tier
from radixserve.tiers.counters import TIER_TOKENS
from radixserve.tiers.disk import DiskTier
from radixserve.tiers.host import HostTier
from radixserve.tiers.pace import Pace
from tests import tiny
from tests.e2e.answers import Answer, alone, trace
from tests.e2e.test_exact import FAMILIES
from tests.store.parts import QuickDisk


def engine(
    loaded: LoadedModel,
    folder: Path | None,
    num_slots: int,
    host_slots: int = 0,
    budget: int = 1 << 30,
) -> EngineCore:
    pool, cache = KVPool(loaded.shape, num_slots, loaded.device), KVCache(num_slots)
    below: list[Tier] = []
    if host_slots:
        below.append(HostTier(pool, loaded.shape, host_slots, Copies(loaded.device)))
    if folder:
        store = DiskStore(folder, budget, "this model", loaded.shape, disk=QuickDisk())
        below.append(DiskTier(store, cache, pool, Pace()))
    limits = Limits(max_running=6, max_step_tokens=50)
    return EngineCore(Runner(loaded, pool), cache, limits, tiers=Tiers(cache, pool, below))


def run(core: EngineCore, requests: list[Request], gap: int = 0) -> dict[str, Answer]:
    """All requests through one engine, arriving `gap` steps apart; then until nothing is on its
    way.
    """
    answers = {request.id: Answer() for request in requests}

    def step() -> None:
        told, patience = core.tiers.filenos(), core.patience
        if told and patience != 0.0:
            select.select(told, [], [], 5.0 if patience is None else patience)
        for event in core.step():
            assert event.finish in (None, "length"), event.error
            answers[event.request_id].token_ids += event.token_ids
            answers[event.request_id].logprobs += event.logprobs or []

    for request in requests:
        core.submit(request, [])
        for _ in range(gap):
            step()
    while core.has_work or core.tiers.patience != 0.0:
        step()
    core.cache.check()
    return answers


def promoted(core: EngineCore) -> tuple[int, int]:
    stats = core.stats()
    host, disk = (int(stats.value(TIER_TOKENS, tier, "up")) for tier in ("host", "disk"))
    return host, disk


@pytest.mark.parametrize("family", FAMILIES)
@given(seed=st.integers(0, 2**32), host_slots=st.sampled_from([0, 200, 500]), gap=st.integers(0, 3))
@settings(
    max_examples=3, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_tiny_models_answer_with_the_same_bits_from_every_tier(
    tmp_path_factory: pytest.TempPathFactory, family: str, seed: int, host_slots: int, gap: int
) -> None:
    """A device, a host memory and a folder too small for the trace: everything moves all
    the time.
    """
    loaded, folder = tiny.load_tiny(family), tmp_path_factory.mktemp("s") / "s"
    requests = trace(random.Random(seed), tiny.VOCAB, count=10, length=60)
    expected = alone(loaded, requests)
    budget = (560 << 10) + 300 * loaded.shape.slot_bytes
    for order in (requests, requests[::-1], requests):
        core = engine(loaded, folder, 260, host_slots, budget)
        assert run(core, order, gap) == expected
        core.tiers.close(10.0)


@pytest.mark.parametrize("kv_dtype", [torch.int8, torch.uint8], ids=["int8", "fp8"])
def test_k_v_of_one_byte_comes_back_with_the_same_bits_from_every_tier(
    tmp_path: Path, kv_dtype: torch.dtype
) -> None:
    loaded = prepare_model(tiny.tiny_model("llama_grouped"), tiny.CPU, kv_dtype)
    requests = trace(random.Random(3), tiny.VOCAB, count=10, length=60)
    expected = alone(loaded, requests)
    budget = (560 << 10) + 300 * loaded.shape.slot_bytes
    for order in (requests, requests[::-1], requests):
        core = engine(loaded, tmp_path / "s", 260, 200, budget)
        assert run(core, order, gap=1) == expected
        core.tiers.close(10.0)
    assert sum(promoted(core)) > 0


@pytest.fixture(scope="module")
def real_model() -> LoadedModel:
    return load_model(str(embedded_model()), torch.device("cpu"), torch.float32)


@pytest.mark.model
def test_the_real_model_answers_with_the_same_bits_from_every_tier(
    real_model: LoadedModel, tmp_path: Path
) -> None:
    requests = trace(random.Random(5), real_model.vocab_size, count=8, length=120)
    expected = alone(real_model, requests)
    first = engine(real_model, tmp_path / "s", 450, host_slots=300)
    assert run(first, requests, gap=2) == expected, "cold"
    first.cache.slots.evict(450)
    assert run(first, requests[::-1]) == expected, "from host memory and the disk"
    assert promoted(first)[0] > 100
    first.tiers.close(10.0)
    again = engine(real_model, tmp_path / "s", 2000)
    assert run(again, requests) == expected, "after a restart"
    assert promoted(again)[1] > 300
    again.tiers.close(10.0)
    for row in transfer_names(tmp_path / "s"):
        transfer.export_prefix(tmp_path / "s", row, tmp_path / row)
        transfer.import_prefix(tmp_path / "t", tmp_path / row)
    imported = engine(real_model, tmp_path / "t", 2000)
    assert run(imported, requests) == expected, "imported elsewhere"
    assert promoted(imported)[1] > 300
    imported.tiers.close(10.0)


def transfer_names(folder: Path) -> list[str]:
    with transfer.reading(folder) as index:
        return [row.name for row in index.rows()]


@pytest.mark.model
def test_what_is_kept_as_float8_is_near_and_the_claim_is_withdrawn(
    real_model: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "load_model", lambda *_: Load(real_model, torch.float32, "run"))
    chosen = Settings(
        disk_path=str(tmp_path / "s"),
        kv_budget=900 * real_model.shape.slot_bytes,
        host_budget=32 << 20,
        tier_dtype="float8",
    )
    requests = trace(random.Random(7), real_model.vocab_size, 4, 120)
    expected = alone(real_model, requests)
    core, info = build.build_engine(chosen, str(embedded_model()))
    assert not info.exact
    assert "float8" in (info.inexact_reason or "")
    assert run(core, requests) == expected, "what was computed here is exact"
    core.tiers.close(10.0)
    again, _ = build.build_engine(chosen, str(embedded_model()))
    warm = run(again, requests)
    again.tiers.close(10.0)
    assert promoted(again)[1] > 0
    for name, answer in expected.items():
        (_, exactly), (_, nearly) = answer.logprobs[0].top[0], warm[name].logprobs[0].top[0]
        assert abs(exactly - nearly) < 0.3
    exact, info = build.build_engine(
        msgspec.structs.replace(chosen, tier_dtype="same"), str(embedded_model())
    )
    assert info.exact
    assert run(exact, requests) == expected, "float8 of another start is not taken for float32"
    assert promoted(exact)[1] == 0
    exact.tiers.close(10.0)
