"""Requests to an engine whose model has layers with a state, over the readable model: whatever runs
beside them and wherever they hit, rows follow the right state, and the answers are right.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from radixserve.cache.kvcache import KVCache
from radixserve.cache.states import LEAST, StateSlots
from radixserve.engine.core import EngineCore
from radixserve.engine.counters import LOSS_TOKENS
from radixserve.engine.scheduler import Limits
from radixserve.prefix import Prefix
from radixserve.questions import Explain, Pin
from radixserve.step import Chunk
from tests.engine.content_model import ContentModel, expected
from tests.engine.content_model import Prefix as Content
from tests.engine.harness import Harness, request

STEP, EVERY = 16, 12
NAMESPACE = request("", [1]).namespace


class StatefulModel(ContentModel):
    """Reads the state before each part of a chunk, and writes the one behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.in_state: dict[int, Content] = {}
        self.raises = 0  # steps from now on, of those that raise once their states are written

    def forward(
        self,
        chunks: Sequence[Chunk],
        drawn: torch.Tensor | None = None,
        between_layers: Callable[[], None] | None = None,
    ) -> torch.Tensor:
        for chunk in chunks:
            first = chunk.states[0].source
            before = self.content.get(int(chunk.slots[chunk.start - 1])) if chunk.start else None
            found = self.in_state.get(first) if first >= 0 else None
            self._require(found == before, "a row follows the state of something else")
        if self.raises:
            self.raises -= 1
            for part in (part for chunk in chunks for part in chunk.states):
                self.in_state.pop(part.target, None)
            raise RuntimeError("in the middle of a step")
        logits = super().forward(chunks, drawn, between_layers)
        for chunk in chunks:
            for part in chunk.states:
                self.in_state[part.target] = self.content[int(chunk.slots[part.stop - 1])]
        return logits


class Stateful(Harness):
    def __init__(self, num_slots: int = 256, num_state_slots: int = 24) -> None:
        super().__init__(num_slots, ahead=False)
        self.states = StateSlots(num_slots, num_state_slots, EVERY)
        self.cache = KVCache(num_slots, second=self.states)
        self.stateful = self.model = StatefulModel()
        self.core = EngineCore(self.model, self.cache, Limits(4, STEP, pin_share=0.5))

    def ask(self, prompt: list[int], max_tokens: int = 4) -> int | None:
        """A request alone, whose answer must be right; how much of it was cached."""
        self.submit(request("alone", prompt, max_tokens))
        self.run()
        assert self.tokens("alone") == expected(prompt, max_tokens)
        return self.events.pop("alone")[0].num_cached

    def pin(self, prompt: list[int]) -> int:
        pin = Pin(id=f"{prompt}", seconds=60.0, renews=False)
        return self.core.pins.add(pin, Prefix.of(NAMESPACE, prompt)).tokens


def prompt_of(seed: int, num_tokens: int) -> list[int]:
    ids: list[int] = np.random.default_rng(seed).integers(0, 11, num_tokens).tolist()
    return ids


def test_random_traffic() -> None:
    """Shared prefixes, preemption, eviction, aborts, failed steps, and a budget that moves."""
    engine, rng = Stateful(), np.random.default_rng(5)
    asked = {}
    for number in range(60):
        shared = prompt_of(int(rng.integers(3)), 60)[: int(rng.integers(1, 60))]
        prompt = shared + rng.integers(0, 3, int(rng.integers(1, 50))).tolist()
        asked[f"{number}"] = prompt, int(rng.integers(1, 60))
        engine.submit(request(f"{number}", *asked[f"{number}"]))
        engine.stateful.raises = int(number % 7 == 3)
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
    assert sum(events[0].num_cached or 0 for events in engine.events.values()), "nothing was hit"
    engine.assert_drained()
    assert (engine.states.of < 0).all()


def test_what_is_hit() -> None:
    engine, prompt = Stateful(), prompt_of(1, 80)
    assert engine.ask(prompt) == 0
    assert engine.ask(prompt) == 79
    assert engine.ask([*prompt, *expected(prompt, 4)[:3], 5]) == 83, "what the answer computed"
    branches = [[*prompt[:43], (prompt[43] + n) % 11, 3] for n in (1, 2, 3)]
    assert [engine.ask(each) for each in branches] == [36, 43, 43]


def test_what_is_cached_without_a_state_is_not_told_as_evicted() -> None:
    engine, prompt = Stateful(), prompt_of(1, 80)
    engine.ask(prompt)
    branch = [*prompt[:43], (prompt[43] + 1) % 11, 3]
    told = engine.answer_to(Explain(namespace=NAMESPACE, tokens=branch))
    assert told.matched == {"device": 36}
    assert told.lost == {"not_kept": 7, "never_seen": 1}
    assert told.gone_seconds is None
    engine.ask(branch)
    numbers = engine.core.scheduler.numbers()
    assert numbers[LOSS_TOKENS.key("not_kept")] == 7
    assert not numbers.get(LOSS_TOKENS.key("evicted"))


def test_a_pin_keeps_its_state() -> None:
    engine, prompt = Stateful(512, 8), prompt_of(1, 60)
    engine.ask(prompt, 1)
    assert engine.pin(prompt) == 60
    for seed in range(2, 8):
        engine.ask(prompt_of(seed, 60))
    assert engine.ask([*prompt, 3]) == 60


def test_short_pins_hold_their_share_of_the_states_at_most() -> None:
    engine = Stateful(512, 16)
    for seed in range(8):
        engine.ask(prompt_of(seed, 20), 1)
        assert engine.pin(prompt_of(seed, 20)) == 20, "up to a half of the state slots"
    engine.ask(prompt_of(20, 30), 1)
    asked = Pin(id="more", seconds=60.0, renews=False)
    refused = engine.core.pins.add(asked, Prefix.of(NAMESPACE, prompt_of(20, 30)))
    assert refused.status == "refused"
    assert "pin_share" in refused.why
    assert engine.states.num_held == 8, "others are left to requests"
    engine.core.pins.limit(64)
    assert engine.states.num_held == 2, "with a smaller budget"
    assert engine.pin(prompt_of(20, 30)) == 0


def test_a_pin_of_a_request_that_has_no_state_left_holds_nothing() -> None:
    engine = Stateful(512, 16)
    tenants = [f"t{n}" for n in range(4)]
    for seed, tenant in enumerate(tenants):
        for part in (0, 1, 2):
            prompt = prompt_of(10 * seed + part, 20)
            engine.ask(prompt, 1)
            asked = Pin(id=f"{tenant}-{part}", seconds=60.0, renews=False, tenant=tenant)
            engine.core.pins.add(asked, Prefix.of(NAMESPACE, prompt))
        assert engine.core.pins.states()[-1].tokens == 20
    held = [each.tokens for each in engine.core.pins.states()]
    assert held == [20] * 8, "two of each tenant, the last ones"


def test_a_request_gets_the_states_of_pins_where_there_are_no_others() -> None:
    engine = Stateful(512, LEAST)
    for seed in range(4):
        engine.ask(prompt_of(seed, 20), 1)
        engine.pin(prompt_of(seed, 20))
    engine.ask(prompt_of(9, 100), 30)
