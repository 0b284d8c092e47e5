"""What is computed of a checkpoint's tensors can be computed again, also of other values; what is
not known for sure has no origin.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from radixserve.checkpoints.weight_files import Part
from radixserve.model.recipe import _Follower, _Writer
from radixserve.tensors.origins import JustRead, Origins, note_stored, origin_of

Tensors = dict[str, torch.Tensor]


class Files:
    """The tensors of a checkpoint, read into memory that is used again."""

    functions: dict[str, Callable[..., Any]] = {}

    def __init__(self, tensors: Tensors) -> None:
        self._tensors, self._memory = tensors, torch.empty(0)
        self.num_read = 0

    def read(self, *parts: Part) -> torch.Tensor:
        found = [
            self._tensors[each] if isinstance(each, str) else self._tensors[each[0]][each[1]]
            for each in parts
        ]
        self.num_read += sum(each.numel() for each in found)
        self._memory.fill_(float("nan"))
        self._memory = torch.cat(found)
        return self._memory


def tensors(seed: int) -> Tensors:
    """`a` and `b` [4, 6], `c` [6], and `stack` [3, 4, 6]."""
    random = torch.Generator().manual_seed(seed)
    shapes = {"a": (4, 6), "b": (4, 6), "c": (6,), "stack": (3, 4, 6)}
    return {name: torch.randn(shape, generator=random) for name, shape in shapes.items()}


def experts(each: Tensors) -> list[torch.Tensor]:
    """As transformers joins experts, and as they are taken apart again."""
    up = torch.stack([each["a"], each["b"]], dim=0)
    gates = torch.stack([each["b"], each["a"]], dim=0)
    biases = [None] * 2
    joined = torch.cat([gates, up], dim=1)
    return [weight.contiguous() for weight, _ in zip(joined, biases, strict=True)]


WAYS: dict[str, Callable[[Tensors], torch.Tensor | list[torch.Tensor]]] = {
    "as it is": lambda each: each["a"],
    "as a parameter": lambda each: nn.Parameter(each["a"].to(torch.bfloat16)).detach(),
    "below each other": lambda each: torch.cat([each["a"], each["b"], each["a"]]),
    "converted": lambda each: torch.cat([each["a"].to(torch.bfloat16), each["b"].bfloat16()]),
    "turned": lambda each: each["a"].T.contiguous(),
    "in turns": lambda each: torch.cat([each["a"][::2], each["a"][1::2]]),
    "one of a stack": lambda each: [*each["stack"]],
    "turned in a stack": lambda each: [part.T for part in each["stack"].transpose(1, 2)],
    "experts": experts,
    "a norm": lambda each: torch.cat([(each["c"].float().reshape(-1) + 1.0).repeat(2), each["c"]]),
    "parts": lambda each: [*each["a"].chunk(2, -1), *torch.split(each["b"], [1, 3])],
    "positions": lambda each: each["a"][2:] + each["c"][:1].expand(2, -1),
    "padded": lambda each: F.pad(-each["a"].view(2, 2, 6), (0, 2)),
    "a curve": lambda each: torch.cat([torch.ones(1), F.softplus(each["c"]) * 2 - 1]),
    "divided": lambda each: torch.arange(6.0) / each["c"],
}


def made_again(found: torch.Tensor, files: Files) -> torch.Tensor:
    writer = _Writer()
    argument = writer.argument(found)
    result = _Follower(writer.calls, files)._value(argument)
    assert isinstance(result, torch.Tensor)
    return result


@pytest.mark.parametrize("way", WAYS)
def test_it_can_be_made_again_of_other_values(way: str) -> None:
    first, others = tensors(0), tensors(1)
    for name, each in first.items():
        note_stored(each, name)
    with Origins():
        found = WAYS[way](first)
    expected = WAYS[way](others)
    found, expected = ([e] if isinstance(e, torch.Tensor) else e for e in (found, expected))
    for ours, theirs in zip(found, expected, strict=True):
        assert origin_of(ours) is not None
        again = made_again(ours, Files(others))
        assert again.dtype == theirs.dtype
        assert torch.equal(again, theirs)


def test_of_an_expert_nothing_else_is_read() -> None:
    first = tensors(0)
    for name, each in first.items():
        note_stored(each, name)
    with Origins():
        found = [*experts(first), *first["stack"]]
    sizes = []
    for each in found:
        files = Files(first)
        made_again(each, files)
        sizes.append(files.num_read)
    assert sizes == [48, 48, 24, 24, 24]


def written_in_place(each: torch.Tensor) -> torch.Tensor:
    copy = each.to(torch.float64)
    copy[0] = 1
    return copy


def test_what_another_thread_reads_and_converts_has_an_origin() -> None:
    first = tensors(0)["a"]
    note_stored(first, "a")
    with ThreadPoolExecutor(1) as thread:
        found = thread.submit(lambda: first.as_subclass(JustRead).to(torch.bfloat16)).result()
        same = thread.submit(lambda: first.as_subclass(JustRead).to(torch.float32)).result()
    assert (type(found), type(same)) == (torch.Tensor, torch.Tensor)
    expected = tensors(1)
    assert torch.equal(made_again(found, Files(expected)), expected["a"].bfloat16())
    assert torch.equal(made_again(same, Files(expected)), expected["a"])


UNKNOWN: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "another function": lambda each: torch.sort(each)[0],
    "written": written_in_place,
    "added to": lambda each: each.clone().add_(1),
    "a part is written": lambda each: (copy := each.clone(), copy[1:].mul_(2))[0],
    "an output": lambda each: torch.add(each, 1, out=each.clone()),
    "by numpy": lambda each: torch.from_numpy(each.numpy() + 1),
}


@pytest.mark.parametrize("way", UNKNOWN)
def test_what_is_not_known_for_sure_has_no_origin(way: str) -> None:
    first = tensors(0)["a"]
    note_stored(first, "a")
    with Origins():
        found = UNKNOWN[way](first)
    assert origin_of(found) is None
    assert origin_of(first) is not None


def test_what_lies_beside_what_is_written_keeps_its_origin() -> None:
    memory = torch.zeros(20)
    note_stored(memory[:10], "a")
    with Origins():
        memory[10:].fill_(1)
        assert origin_of(memory[:10]) is not None
        memory[9:].fill_(1)
        assert origin_of(memory[:10]) is None


def test_memory_that_is_used_again_has_no_origin() -> None:
    for _ in range(2000):
        tensor = torch.zeros(64)
        assert origin_of(tensor) is None
        note_stored(tensor, "a")
        del tensor
    gc.collect()
