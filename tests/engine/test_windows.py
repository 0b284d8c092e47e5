"""Requests to an engine whose model has layers with a window, over the readable model: whatever
runs beside them, every row sees the windows that it should, and the answers are right.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch

from radixserve.cache.kvcache import KVCache
from radixserve.cache.windows import WindowSlots
from radixserve.engine.core import EngineCore
from radixserve.engine.scheduler import Limits
from radixserve.prefix import Prefix
from radixserve.questions import Pin
from radixserve.step import Chunk
from tests.engine.content_model import ContentModel, expected
from tests.engine.content_model import Prefix as Content
from tests.engine.harness import Harness, request

WINDOW, STEP = 8, 16
NAMESPACE = request("", [1]).namespace
LEAST = 2 * WINDOW + STEP + 8


class WindowedModel(ContentModel):
    """Reads the windows of each chunk, and writes the window slots of its rows."""

    def __init__(self, windows: WindowSlots) -> None:
        super().__init__()
        self.windows = windows
        self.in_window: dict[int, Content] = {}

    def forward(
        self,
        chunks: Sequence[Chunk],
        drawn: torch.Tensor | None = None,
        between_layers: Callable[[], None] | None = None,
    ) -> torch.Tensor:
        for chunk in chunks:
            places = self.windows.of[chunk.slots].tolist()
            first = max(0, chunk.start - WINDOW + 1)
            self._require(min(places[first:], default=0) >= 0, "a row lacks its window")
            for place, slot in zip(places[first : chunk.start], chunk.slots[first:], strict=False):
                right = self.in_window.get(place) == self.content.get(int(slot))
                self._require(right, "a row sees K/V of something else")
        logits = super().forward(chunks, drawn, between_layers)
        for chunk in chunks:
            for slot in chunk.slots[chunk.start : chunk.stop].tolist():
                self.in_window[int(self.windows.of[slot])] = self.content[slot]
        return logits


class Windowed(Harness):
    def __init__(
        self, num_slots: int = 256, num_window_slots: int = 64, *, speculates: bool = False
    ) -> None:
        super().__init__(num_slots, ahead=False)
        self.windows = WindowSlots(num_slots, num_window_slots, WINDOW, least=LEAST)
        self.windows.stride = 4
        self.cache = KVCache(num_slots, second=self.windows)
        self.model = WindowedModel(self.windows)
        limits = Limits(4, STEP, pin_share=0.5, speculates=speculates)
        self.core = EngineCore(self.model, self.cache, limits)

    def ask(self, prompt: list[int], max_tokens: int = 8) -> None:
        """A request alone, whose answer must be right."""
        self.submit(request("alone", prompt, max_tokens))
        self.run()
        assert self.tokens("alone") == expected(prompt, max_tokens)
        del self.events["alone"]

    def match(self, prompt: list[int]) -> int:
        return self.cache.match(Prefix.of(NAMESPACE, prompt))

    def pin(self, prompt: list[int]) -> None:
        pinned = self.core.pins.add(
            Pin(id=f"{prompt}", seconds=60.0, renews=False), Prefix.of(NAMESPACE, prompt)
        )
        assert pinned.tokens == len(prompt)


def prompt_of(seed: int, num_tokens: int) -> list[int]:
    ids: list[int] = np.random.default_rng(seed).integers(0, 11, num_tokens).tolist()
    return ids


@pytest.mark.parametrize("speculates", [False, True])
def test_random_traffic(speculates: bool) -> None:
    """Shared prefixes, preemption, eviction, aborts, drops and a budget that moves."""
    engine, rng = Windowed(speculates=speculates), np.random.default_rng(5)
    asked = {}
    for number in range(60):
        shared = prompt_of(int(rng.integers(3)), 60)[: int(rng.integers(1, 60))]
        prompt = shared + rng.integers(0, 3, int(rng.integers(1, 50))).tolist()
        asked[f"{number}"] = prompt, int(rng.integers(1, 60))
        engine.submit(request(f"{number}", *asked[f"{number}"]))
        for _ in range(int(rng.integers(12))):
            engine.step()
        if not number % 10:
            engine.core.scheduler.resize(int(rng.integers(170, 257)))
            if engine.core.abort(f"{number}"):
                del asked[f"{number}"]
    engine.run()
    for name, (prompt, max_tokens) in asked.items():
        assert engine.tokens(name) == expected(prompt, max_tokens), name
    assert engine.core.scheduler.totals.preemptions, "slots were never short"
    engine.assert_drained()
    assert (engine.windows.of < 0).all()


@pytest.mark.parametrize("cut", [1, WINDOW - 1, WINDOW, WINDOW + 1, 3 * WINDOW, 79])
def test_a_prompt_that_branches_off_hits_where_it_does(cut: int) -> None:
    engine, prompt = Windowed(num_slots=256, num_window_slots=256), prompt_of(1, 80)
    engine.ask(prompt)
    branch = [*prompt[:cut], (prompt[cut] + 1) % 11, 3]
    engine.submit(request("branch", branch))
    engine.run()
    assert engine.events["branch"][0].num_cached == cut
    assert engine.tokens("branch") == expected(branch, 4)


def test_inner_windows_go_before_those_at_ends() -> None:
    """When window slots are short, each of several long prompts still hits at its end, but the
    first one not inside; the tokens themselves stay.
    """
    engine = Windowed(num_slots=512, num_window_slots=112)
    prompts = [prompt_of(seed, 60) for seed in range(5)]
    for prompt in prompts:
        engine.ask(prompt, 1)
    assert engine.cache.stats().evicted_tokens_total == 0
    for prompt in prompts:
        assert engine.match(prompt) == 60
    assert engine.match(prompts[0][:30]) < WINDOW
    engine.ask([*prompts[0][:30], 1, 2], 1)
    assert engine.match(prompts[0][:30]) == 30, "a branch is learned"
    assert engine.match(prompts[0]) == 60
    for cut in (35, 40, 45, 50):
        engine.ask([*prompts[0][:cut], 1, 2], 1)
    assert engine.match(prompts[1]) == 60, "what is computed again on the way is no end"


def test_a_pin_keeps_its_window() -> None:
    engine, prompt = Windowed(num_slots=512, num_window_slots=64), prompt_of(1, 60)
    engine.ask(prompt, 1)
    engine.pin(prompt)
    for seed in range(2, 8):
        engine.ask(prompt_of(seed, 60), 1)
    assert engine.match(prompt) == 60


def test_a_request_gets_the_windows_of_pins_where_there_are_no_others() -> None:
    engine = Windowed(num_slots=512, num_window_slots=LEAST)
    for seed in range(4):
        engine.ask(prompt_of(seed, 20), 1)
        engine.pin(prompt_of(seed, 20))
    engine.ask(prompt_of(9, 100), 30)
