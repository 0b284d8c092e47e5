"""A hit equals a miss bit for bit: ids and logprobs do not depend on cache, batch, chunks or preemption.

One trace of requests is run through engines that differ in everything that must not matter, and one whose steps fail;
every answer, logprobs included, must be equal to that of the same request alone on an engine without a cache.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from radixserve.cache.kvcache import KVCache
from radixserve.cache.pool import KVPool
from radixserve.engine.core import EngineCore
from radixserve.engine.scheduler import Limits
from radixserve.model.embedded import embedded_model
from radixserve.model.loaded import LoadedModel
from radixserve.model.loader import load_model
from radixserve.model.runner import Runner
from radixserve.request import Request, Sampling
from radixserve.step import Chunk, TokenLogprob
from tests import tiny

FAMILIES = ["llama_grouped", "qwen2", "qwen3", "mistral", "gpt2", "phi", "gemma"]


@dataclass
class Answer:
    """Everything that a client could tell two answers apart by."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)


@dataclass(frozen=True)
class Setup:
    """What must not matter."""

    num_slots: int = 4096
    max_running: int = 4
    max_step_tokens: int = 64
    cache: bool = True
    gap: int = 0  # steps between two arrivals
    ahead: bool = False  # a step is launched before the one in front of it is known

    def engine(self, loaded: LoadedModel) -> EngineCore:
        pool = KVPool(loaded.shape, self.num_slots, loaded.device)
        cache = KVCache(self.num_slots, enabled=self.cache)
        limits = Limits(self.max_running, self.max_step_tokens)
        return EngineCore(Runner(loaded, pool), cache, limits, ahead=self.ahead)


def run(core: EngineCore, requests: list[Request], gap: int = 0) -> dict[str, Answer]:
    """All requests through one engine, arriving `gap` steps apart (0: at once)."""
    answers = {request.id: Answer() for request in requests}
    for request in requests:
        core.submit(request, [])
        for _ in range(gap):
            step(core, answers)
    while core.has_work:
        step(core, answers)
    core.cache.check()
    return answers


def step(core: EngineCore, answers: dict[str, Answer]) -> None:
    if not core.has_work:
        return
    for event in core.step():
        assert event.finish in (None, "length"), event.error
        answers[event.request_id].token_ids += event.token_ids
        answers[event.request_id].logprobs += event.logprobs or []


def alone(loaded: LoadedModel, requests: list[Request]) -> dict[str, Answer]:
    """The reference: each request with nothing cached and nobody beside it, its prompt in one chunk."""
    setup = Setup(num_slots=512, max_running=1, max_step_tokens=512, cache=False)
    return {request.id: run(setup.engine(loaded), [request])[request.id] for request in requests}


def sampling(draw: random.Random, max_tokens: int) -> Sampling:
    """Greedy, or sampled with filters and penalties; always with logprobs."""
    if draw.random() < 0.4:
        return Sampling(max_tokens=max_tokens, seed=0, temperature=0.0, logprobs=3)
    return Sampling(
        max_tokens=max_tokens,
        seed=draw.randrange(2**63),
        temperature=draw.choice([0.5, 1.0, 1.5]),
        top_p=draw.choice([0.7, 0.95, 1.0]),
        top_k=draw.choice([0, 20]),
        repetition_penalty=draw.choice([1.0, 1.2]),
        logprobs=3,
    )


def trace(draw: random.Random, vocab: int, count: int, length: int) -> list[Request]:
    """Prompts that branch off each other at any position, inside nodes too."""
    prompts: list[list[int]] = []
    for _ in range(count):
        base = draw.choice(prompts) if prompts and draw.random() < 0.8 else []
        own = [draw.randrange(vocab) for _ in range(draw.randrange(1, length))]
        prompts.append(base[: draw.randrange(len(base) + 1)] + own)
    return [
        Request(id=f"r{i}", prompt_ids=prompt[: 3 * length], sampling=sampling(draw, draw.randrange(1, 10)))
        for i, prompt in enumerate(prompts)
    ]


@pytest.fixture(scope="module")
def tiny_model() -> Callable[[str], LoadedModel]:
    loaded: dict[str, LoadedModel] = {}
    return lambda family: loaded.setdefault(family, tiny.load_tiny(family))


@pytest.mark.parametrize("family", FAMILIES)
@given(
    seed=st.integers(0, 2**32),
    num_slots=st.integers(220, 400),
    max_running=st.integers(2, 32),
    max_step_tokens=st.integers(32, 200),
    gap=st.integers(0, 3),
)
@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_answers_of_tiny_models_have_the_same_bits_in_every_setup(
    tiny_model: Callable[[str], LoadedModel],
    family: str,
    seed: int,
    num_slots: int,
    max_running: int,
    max_step_tokens: int,
    gap: int,
) -> None:
    loaded = tiny_model(family)
    assert loaded.exact, loaded.inexact_reason
    requests = trace(random.Random(seed), tiny.VOCAB, count=10, length=60)
    expected = alone(loaded, requests)
    roomy = Setup(max_running=max_running, max_step_tokens=max_step_tokens, gap=gap)
    core = roomy.engine(loaded)
    assert run(core, requests, gap) == expected, "cold"
    assert run(core, requests[::-1]) == expected, "warm, in another order"
    tight = Setup(num_slots, max_running, max_step_tokens)
    assert run(tight.engine(loaded), requests, gap) == expected, "with a budget that evicts and preempts"
    off = Setup(num_slots, max_running, max_step_tokens, cache=False)
    assert run(off.engine(loaded), requests) == expected, "in a batch, without cache"
    ahead = replace(tight, ahead=True)
    assert run(ahead.engine(loaded), requests, gap) == expected, "a step ahead, with a budget that evicts and preempts"


@dataclass
class Failing:
    """A model whose steps of several sequences sometimes raise, with their K/V ruined."""

    runner: Runner
    draw: random.Random
    num_failed: int = 0

    def forward(self, chunks: Sequence[Chunk], drawn: torch.Tensor | None) -> torch.Tensor:
        logits = self.runner.forward(chunks, drawn)
        if len(chunks) == 1 or self.draw.random() < 0.7:
            return logits
        self.num_failed += 1
        for chunk in chunks:
            slots = torch.from_numpy(chunk.slots[chunk.start :].copy()).long()
            self.runner.pool.k[:, slots] = self.runner.pool.v[:, slots] = float("nan")
        raise torch.OutOfMemoryError if self.num_failed % 2 else RuntimeError("the device is on fire")


@pytest.mark.parametrize("ahead", [False, True], ids=["in turn", "ahead"])
@pytest.mark.parametrize("family", ["llama_grouped", "gpt2"])
def test_answers_have_the_same_bits_although_steps_fail(
    tiny_model: Callable[[str], LoadedModel], family: str, ahead: bool
) -> None:
    loaded = tiny_model(family)
    requests = trace(random.Random(4), tiny.VOCAB, count=10, length=60)
    core = Setup(num_slots=300, max_running=6, ahead=ahead).engine(loaded)
    assert isinstance(core.model, Runner)
    failing = core.model = Failing(core.model, random.Random(1))
    assert run(core, requests, gap=1) == alone(loaded, requests)
    assert failing.num_failed >= 4


@pytest.fixture(scope="module")
def real_model() -> LoadedModel:
    return load_model(str(embedded_model()), torch.device("cpu"), torch.float32)


@pytest.mark.model
def test_the_real_model_gives_the_same_bits_cold_warm_evicted_and_in_batches(real_model: LoadedModel) -> None:
    assert real_model.exact, real_model.inexact_reason
    requests = trace(random.Random(11), real_model.vocab_size, count=8, length=120)
    expected = alone(real_model, requests)
    core = Setup(max_running=3, max_step_tokens=100).engine(real_model)
    assert run(core, requests, gap=2) == expected, "cold"
    assert run(core, requests[::-1]) == expected, "warm"
    core.cache.evict(200)
    assert run(core, requests) == expected, "partly evicted"
    tight = Setup(num_slots=420, max_running=8, max_step_tokens=77).engine(real_model)
    assert run(tight, requests) == expected, "evicting all the time"
    assert tight.cache.stats().evicted_tokens_total > 0


@pytest.mark.model
def test_an_answer_as_the_prefix_of_the_next_turn_is_as_if_prefilled(real_model: LoadedModel) -> None:
    draw = random.Random(3)
    first = Request(
        id="turn 1",
        prompt_ids=[draw.randrange(real_model.vocab_size) for _ in range(70)],
        sampling=Sampling(max_tokens=40, seed=5, temperature=1.0, logprobs=2),
    )
    core = Setup().engine(real_model)
    said = run(core, [first])["turn 1"].token_ids
    tail = [draw.randrange(real_model.vocab_size) for _ in range(20)]
    second = Request(
        id="turn 2",
        prompt_ids=first.prompt_ids + said + tail,
        sampling=Sampling(max_tokens=8, seed=6, temperature=0.0, logprobs=2),
    )
    assert core.cache.match("public", b"".join(t.to_bytes(4, "little") for t in second.prompt_ids)) == 70 + 39
    assert run(core, [second]) == alone(real_model, [second])
