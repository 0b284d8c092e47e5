"""K/V of windowed layers in a pool of its own gives the bits of K/V that is kept whole: cold, warm
with nothing but the windows before the cut, and in single rows.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from radixserve.model.runner import Runner
from radixserve.step import Chunk, Logits, Slots
from radixserve.tensors.kv import KVPool, WindowedLayers
from tests.model.test_windows import NUM_TOKENS, WINDOW, prompt, runner_of
from tests.tiny import CPU

FAST = ("mistral, a long window", "gemma2", "qwen2", "gpt_oss")


class InWindows:
    """A model over a pool in which a token has a window slot only while a window may need it. Freed
    window slots are overwritten with large numbers.
    """

    def __init__(self, name: str) -> None:
        loaded = runner_of(name).loaded
        is_windowed = [each is not None for each in loaded.windows]
        self.window = max(each or 0 for each in loaded.windows)
        self.of = np.full(NUM_TOKENS, -1, np.int32)
        layers = WindowedLayers(loaded.shape, is_windowed, NUM_TOKENS, CPU, self.of)
        main = replace(loaded.shape, layers=is_windowed.count(False))
        self.pool = KVPool(main, NUM_TOKENS, CPU, layers)
        self.runner = Runner(loaded, self.pool)
        self.slots: Slots = np.random.default_rng(7).permutation(NUM_TOKENS).astype(np.int32)
        self.order = iter(np.random.default_rng(8).permutation(NUM_TOKENS).tolist())

    def compute(self, start: int, stop: int) -> torch.Tensor:
        """Logits of these positions, of which earlier ones were computed before."""
        for slot in self.slots[start:stop]:
            self.of[slot] = next(self.order)
        gone = self.slots[: max(0, start - self.window + 1)]
        lost, windowed = self.of[gone][self.of[gone] >= 0], self.pool.windowed
        assert windowed is not None
        windowed.pool.k[:, lost], windowed.pool.v[:, lost] = 1e30, 1e30
        self.of[gone] = -1
        ids = np.array(prompt()[start:stop], np.int32)
        chunk = Chunk(ids, start, self.slots[:stop], Logits.ALL)
        return self.runner.forward([chunk]).clone()


def whole(name: str) -> torch.Tensor:
    chunk = Chunk(
        np.array(prompt(), np.int32), 0, np.arange(NUM_TOKENS, dtype=np.int32), Logits.ALL
    )
    return runner_of(name).forward([chunk]).clone()


@pytest.mark.parametrize("name", FAST)
def test_windows_alone_give_the_bits_of_whole_kv(name: str) -> None:
    cold = whole(name)
    assert torch.equal(InWindows(name).compute(0, NUM_TOKENS), cold)
    for cut in (1, WINDOW - 1, WINDOW, WINDOW + 1, 64, 71, NUM_TOKENS - 1):
        model = InWindows(name)
        found = [model.compute(0, cut), model.compute(cut, NUM_TOKENS)]
        assert torch.equal(torch.cat(found), cold), cut


@pytest.mark.parametrize("name", FAST)
def test_a_step_without_all_logits_does_too(name: str) -> None:
    """The last layer computes the last row only, over the plan of its own part of the pool."""
    model, ids = InWindows(name), np.array(prompt(), np.int32)
    model.compute(0, 10)
    for slot in model.slots[10:]:
        model.of[slot] = next(model.order)
    found = model.runner.forward([Chunk(ids[10:], 10, model.slots)])
    assert torch.equal(found, whole(name)[-1:])


@pytest.mark.parametrize("name", FAST)
def test_single_rows_do_too(name: str) -> None:
    model, cold = InWindows(name), whole(name)
    model.compute(0, 50)
    for position in range(50, 80):
        assert torch.equal(model.compute(position, position + 1), cold[position : position + 1])


def test_the_windows_of_a_model_are_those_of_its_layers() -> None:
    assert runner_of("gemma3").loaded.windows == (WINDOW, None)
    assert runner_of("mistral").loaded.windows == (WINDOW, WINDOW)
