"""Adapters in the engine: which K/V requests with them share, what they take of the K/V budget, and
how they are loaded and unloaded beside requests that run.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from radixserve.adapters import AdapterInfo, AdapterSource, namespace_with
from radixserve.cache.kvcache import KVCache
from radixserve.config import Settings
from radixserve.engine.adapter_loader import AdapterLoader
from radixserve.engine.adapters import Adapters, load_all
from radixserve.engine.build import build_engine
from radixserve.engine.core import EngineCore
from radixserve.engine.counters import ADAPTER_BYTES
from radixserve.engine.scheduler import Limits
from radixserve.errors import AdapterRefused
from radixserve.kernels.cpu import native
from radixserve.kernels.cpu.levels import Level
from radixserve.model.loaded import LoadedModel
from radixserve.model.runner import Runner
from radixserve.prefix import PUBLIC
from radixserve.questions import (
    AdapterLoaded,
    AdapterUnloaded,
    AnyQuestion,
    Asked,
    Configure,
    Failed,
    LoadAdapter,
    UnloadAdapter,
)
from radixserve.request import Request
from radixserve.step import TokenEvent
from radixserve.tensors.kv import KVPool
from tests.adapters import write_adapter
from tests.engine.harness import request
from tests.tiny import CPU, load_tiny, tiny_model

SLOTS = 1024
PROMPT = [5, 17, 3, 88, 41, 2, 60, 60, 9, 33]
LAST = r"layers\.1\."


class Engine:
    """An engine with a tiny model, and the answers to its requests."""

    def __init__(self, loaded: LoadedModel) -> None:
        pool = KVPool(loaded.shape, SLOTS, CPU)
        loader = AdapterLoader(())
        loader.model = loaded
        cache = KVCache(SLOTS, slot_bytes=loaded.shape.slot_bytes)
        adapters = Adapters(loader, SLOTS, loaded.shape.slot_bytes)
        self.core = EngineCore(Runner(loaded, pool), cache, Limits(4, 64))
        self.core.serve_adapters(adapters)
        self.events: dict[str, list[TokenEvent]] = {}

    def ask(self, question: AnyQuestion) -> Any:
        self.core.ask(Asked(1, question))
        until = time.monotonic() + 20
        while not (answers := self.core.answers()):
            assert time.monotonic() < until
            self.step()
        return answers[0].answer

    def load(self, path: Path) -> AdapterInfo:
        answer = self.ask(LoadAdapter(source=AdapterSource(path.name, str(path))))
        assert isinstance(answer, AdapterLoaded), answer
        return answer.info

    def submit(self, name: str, adapter: AdapterInfo | None = None, **more: Any) -> None:
        for event in self.core.submit(asked(name, adapter, **more), []):
            self.events.setdefault(name, []).append(event)

    def step(self) -> None:
        for event in self.core.step():
            self.events.setdefault(event.request_id, []).append(event)
        self.core.cache.check()

    def run(self) -> None:
        while self.core.has_work:
            self.step()

    def answer(self, name: str, adapter: AdapterInfo | None = None) -> tuple[int | None, Any]:
        """How much of a prompt was cached, and all that a client is told."""
        self.submit(name, adapter)
        self.run()
        events = self.events[name]
        told = [(each.token_ids, each.logprobs, each.finish) for each in events]
        return events[0].num_cached, told


def asked(name: str, adapter: AdapterInfo | None, **more: Any) -> Request:
    found = request(name, PROMPT, 6, logprobs=3, **more)
    if adapter is None:
        return found
    namespace = namespace_with(PUBLIC, adapter.kv_digest)
    return msgspec.structs.replace(found, adapter=adapter.digest, namespace=namespace)


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return load_tiny("llama_grouped")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An adapter that changes all K/V, another, and one that changes none."""
    folder, model = tmp_path_factory.mktemp("adapters"), tiny_model("llama_grouped")
    last = ("q_proj", "o_proj", "down_proj")
    return {
        "whole": write_adapter(folder / "whole", model),
        "other": write_adapter(folder / "other", model, seed=1),
        "last": write_adapter(folder / "last", model, last, only=LAST),
    }


def test_kv_is_shared_with_the_model_exactly_where_an_adapter_leaves_it_alone(
    loaded: LoadedModel, folders: dict[str, Path]
) -> None:
    cold = {}
    for name in ("", *folders):
        engine = Engine(loaded)
        cold[name] = engine.answer("a", engine.load(folders[name]) if name else None)
        assert cold[name][0] == 0
    assert len({str(told) for _, told in cold.values()}) == 4
    engine = Engine(loaded)
    infos = {name: engine.load(path) for name, path in folders.items()}
    for i, (name, cached) in enumerate(
        [("", 0), ("last", 9), ("whole", 0), ("other", 0), ("whole", 9), ("last", 9), ("", 9)]
    ):
        assert engine.answer(str(i), infos.get(name)) == (cached, cold[name][1])
    for name in ("", *folders, "", *folders):  # those that run at the same time
        engine.submit(f"{name} together {len(engine.events)}", infos.get(name))
        engine.step()
    engine.run()
    for name, events in engine.events.items():
        if " together " in name:
            told = [(each.token_ids, each.logprobs, each.finish) for each in events]
            assert told == cold[name.split(" ")[0]][1]


def test_adapters_and_kv_share_one_budget(loaded: LoadedModel, folders: dict[str, Path]) -> None:
    engine, size = Engine(loaded), loaded.shape.slot_bytes
    slots = engine.core.cache.slots
    first, second = engine.load(folders["whole"]), engine.load(folders["other"])
    taken = -(-(first.num_bytes + second.num_bytes) // size)
    assert slots.budget == SLOTS - taken
    assert engine.core.stats().value(ADAPTER_BYTES) == first.num_bytes + second.num_bytes
    engine.ask(Configure(kv_budget=800 * size))
    assert slots.budget == 800 - taken
    engine.submit("a", first)
    engine.step()
    assert engine.ask(UnloadAdapter(digest=first.digest)) == AdapterUnloaded(1)
    engine.submit("b", first)
    assert engine.events["b"][-1].finish == "refused"
    assert engine.core.scheduler.adapters.num_bytes == first.num_bytes + second.num_bytes
    engine.run()
    assert engine.events["a"][-1].finish == "length"
    assert slots.budget == 800 - -(-second.num_bytes // size)
    assert engine.ask(UnloadAdapter(digest=second.digest)) == AdapterUnloaded(0)
    assert slots.budget == 800
    again = engine.load(folders["whole"])
    assert again == first
    assert engine.answer("c", again)[0] == 9  # its K/V is that of before
    engine.ask(Configure(kv_budget=4 * first.num_bytes))
    engine.load(folders["last"])
    refused = engine.ask(LoadAdapter(source=AdapterSource("x", str(folders["other"]))))
    assert isinstance(refused, Failed)
    assert refused.refused
    assert "adapters may take at most" in refused.message


@pytest.mark.parametrize("name", ["lora", "lora_dir"])
def test_no_step_with_an_adapter_needs_a_kernel_that_is_not_in_memory(
    name: str, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_model("llama_grouped").save_pretrained(tmp_path)
    used: set[str] = set()
    address = native.address

    def noting(kernel: Callable[[Any], None], level: Level | None = None) -> int:
        used.add(kernel.__name__)
        return address(kernel, level)

    monkeypatch.setattr(native, "address", noting)
    settings = Settings(device="cpu", kv_budget=1 << 20)
    build_engine(settings, str(tmp_path))
    assert not _of_adapters(used)
    source = AdapterSource("whole", str(folders["whole"]))
    if name == "lora":
        core, info = build_engine(settings, str(tmp_path), [source])
        (adapter,) = info.adapters
    else:
        with_folder = msgspec.structs.replace(settings, lora_dir=str(folders["whole"].parent))
        core, _ = build_engine(with_folder, str(tmp_path))
        adapters = core.scheduler.adapters
        adapter = adapters.add(source, adapters.load(source))
    ready = _of_adapters(used)
    core.submit(asked("a", adapter), [])
    while core.has_work:
        core.step()
    assert _of_adapters(used) == ready == {"low_rank_float32"}


def _of_adapters(kernels: set[str]) -> set[str]:
    return {each for each in kernels if each.startswith("low_rank")}


def test_an_engine_that_starts_loads_what_the_one_before_had(
    loaded: LoadedModel, folders: dict[str, Path], tmp_path: Path
) -> None:
    path = tmp_path / "moving"
    shutil.copytree(folders["whole"], path)
    digest = Engine(loaded).load(path).digest
    known = [AdapterSource("a", str(path), digest), AdapterSource("b", str(folders["last"]))]
    loader = AdapterLoader(known)
    loader.model = loaded
    first = Adapters(loader, SLOTS, 512)
    assert [each.name for each in load_all(first, known)] == ["a", "b"]
    shutil.copytree(folders["other"], path, dirs_exist_ok=True)
    assert [each.name for each in load_all(Adapters(loader, SLOTS, 512), known)] == ["b"]
    shutil.rmtree(path)
    assert [each.name for each in load_all(Adapters(loader, SLOTS, 512), known)] == ["b"]
    with pytest.raises(AdapterRefused, match="There is no adapter_config"):
        AdapterLoader([AdapterSource("a", str(path))])
