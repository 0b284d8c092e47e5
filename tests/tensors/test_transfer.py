"""No launch waits for the device: whole steps on torch's meta device, which has no values that the
host could read.

Reading a value or copying one to the host raises there. What would make a CUDA device wait and the
meta device does not mind, copies from ordinary memory that do not say `non_blocking` and indices
that lie on the host, is looked for in every operator that runs.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Self

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from radixserve.cache.kvcache import KVCache
from radixserve.engine.faults import Fault
from radixserve.engine.flight import Flight
from radixserve.engine.planning import Plan
from radixserve.engine.sequence import Sequence
from radixserve.model import attention
from radixserve.model.graphs import DecodeGraphs
from radixserve.model.loaded import LoadedModel
from radixserve.model.runner import Runner
from radixserve.request import Request, Sampling
from radixserve.sampling import sampler
from radixserve.tensors.kv import KVPool
from radixserve.tensors.transfer import Download, upload, upload_ids
from tests.tiny import load_tiny, tiny_model

META = torch.device("meta")
SLOTS = 600


class Waits(TorchDispatchMode):
    """Collects the operators that mix tensors of the host and of the device in a way that waits."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.num_uploads = 0
        self._lists = Lists(self.found)

    def __enter__(self) -> Self:
        self._lists.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._lists.__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        given, made = tensors(args, kwargs), tensors(out)
        from_host = any(each.device.type == "cpu" and each.dim() for each in given)
        if from_host and any(each.is_meta for each in (*given, *made)):
            if says_non_blocking(func, args, kwargs):
                self.num_uploads += 1
            else:
                self.found.append(str(func))
        return out


class Lists(TorchFunctionMode):
    """Collects what turns a list into a tensor of the device, which dispatching does not see."""

    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self._found = found

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        index = func in (torch.Tensor.__getitem__, torch.Tensor.__setitem__)
        if index and args[0].is_meta and any(map(list_, tree_leaves(args[1], list_))):
            self._found.append("a list as an index")
        if func in (torch.tensor, torch.as_tensor) and out.is_meta:
            self._found.append("a tensor made of values")
        return out


def list_(value: Any) -> bool:
    return isinstance(value, list)


def tensors(*values: Any) -> list[torch.Tensor]:
    return [each for each in tree_leaves(values) if isinstance(each, torch.Tensor)]


def says_non_blocking(func: Any, args: Any, kwargs: dict[str, Any]) -> bool:
    names = [argument.name for argument in func._schema.arguments]
    return bool((dict(zip(names, args, strict=False)) | kwargs).get("non_blocking"))


def test_what_waits_is_found() -> None:
    device, host = torch.zeros(4, 4, device=META), torch.zeros(2, dtype=torch.int64)
    for wait in (
        lambda: host.to(META),
        lambda: device[[0, 1]],
        lambda: device[host],
        lambda: device[0].copy_(torch.zeros(4)),
        lambda: torch.tensor([1, 2], device=META),
    ):
        with Waits() as waits:
            wait()
        assert waits.found, wait
    for read in (
        lambda: device.tolist(),
        lambda: device[0, 0].item(),
        lambda: device.cpu(),
        lambda: bool(device.any()),
        lambda: device.nonzero(),
        lambda: device[device > 0],
        lambda: device.numpy(),
    ):
        with pytest.raises((NotImplementedError, RuntimeError, TypeError)):
            read()
    with Waits() as waits:
        ids = upload_ids([1, 2], META)
        device[ids] = device[ids] + 1.0
        device[ids, ids] = -torch.inf
        upload(np.zeros(3), META)
    assert (waits.found, waits.num_uploads) == ([], 2)


KINDS: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 0.0, "logprobs": 3},
    {},
    {"top_k": 5, "logprobs": 1},
    {"top_p": 0.9},
    {"top_k": 2000, "top_p": 0.5, "min_p": 0.1},
    {"logit_bias": {3: 1.0}},
    {"min_tokens": 9, "stop_token_ids": (1, 2)},
    {"repetition_penalty": 1.2, "presence_penalty": 0.5, "frequency_penalty": 0.5},
    {"prompt_logprobs": 2},
]


@pytest.fixture
def downloads(monkeypatch: pytest.MonkeyPatch) -> list[Download]:
    """Of each download that was started."""
    made: list[Download] = []
    start = Download.__init__

    def noted(self: Download, *tensors: torch.Tensor) -> None:
        made.append(self)
        start(self, *tensors)

    monkeypatch.setattr(Download, "__init__", noted)
    return made


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    """A model without values; the reference attends, which is made of plain operators."""
    model = tiny_model("llama_grouped").to(META)
    model.set_attn_implementation(attention.TORCH)
    return replace(load_tiny("llama_grouped"), decoder=None, model=model, device=META)


def runner(loaded: LoadedModel, *, graphs: bool) -> Runner:
    pool = KVPool(loaded.shape, SLOTS, META)
    captured = DecodeGraphs(
        loaded, pool, scratch_slot=SLOTS - 1, max_batch=16, capture=lambda run: run
    )
    return Runner(loaded, pool, captured if graphs else None)


def sequences(cache: KVCache) -> list[Sequence]:
    """One for each kind of draw, with a lease."""
    made = []
    for i, kind in enumerate(KINDS):
        sampling = Sampling(**({"max_tokens": 8, "seed": i} | kind))
        sequence = Sequence.of(
            Request(id=str(i), prompt_ids=list(range(i, i + 20)), sampling=sampling), []
        )
        sequence.lease = cache.lease(sequence.prefix(20), 30)
        made.append(sequence)
    return made


def planned(sequences: list[Sequence]) -> Flight:
    plan = Plan(1000)
    for sequence in sequences:
        plan.add(sequence)
    return Flight(plan.works())


@pytest.mark.parametrize("graphs", [False, True], ids=["plain", "graphs"])
def test_two_launches_in_a_row_wait_for_nothing(
    loaded: LoadedModel, downloads: list[Download], graphs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampler, "_FEW", 16)  # a short list that may not do
    model, before, live = runner(loaded, graphs=graphs), None, sequences(KVCache(SLOTS - 1))
    for step, num_downloads in enumerate((2, 1)):
        flight = planned(live)
        assert all((work.drawn_row is not None) == bool(step) for work in flight.works)
        downloads.clear()
        with Waits() as waits:
            flight.launch(model, before, ahead=True)
        assert flight._fault is None, flight._fault
        assert waits.found == []
        assert flight.drawn is not None
        assert (flight.drawn.device, flight.drawn.shape) == (META, (len(KINDS),))
        assert len(downloads) == num_downloads, "the sampled ids, and once for prompt logprobs"
        before = flight
    assert bool(model._graphs and model._graphs._replays) == graphs


def test_in_turn_a_launch_may_look_at_the_device(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampler, "_FEW", 16)
    flight = planned(sequences(KVCache(SLOTS - 1)))
    flight.launch(runner(loaded, graphs=False), None, ahead=False)
    assert isinstance(flight.land(), Fault)
    assert flight.drawn is None, "the launch asked whether the short lists were enough"


def test_on_the_host_nothing_is_copied() -> None:
    values = np.arange(5)
    tensor = upload(values, torch.device("cpu"))
    assert tensor.data_ptr() == values.ctypes.data
    [arrived] = Download(tensor).wait()
    assert arrived is tensor
