"""A hit equals a miss bit for bit: ids and logprobs do not depend on cache, batch, chunks or
preemption.

One trace of requests is run through engines that differ in everything that must not matter, and one
whose steps fail; every answer, logprobs included, must be equal to that of the same request alone
on an engine without a cache.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import msgspec
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from radixserve.checkpoints.embedded import embedded_model
from radixserve.engine.counters import PROMPT_TOKENS, STEP_SEQUENCES
from radixserve.model.load import load_model
from radixserve.model.loaded import LoadedModel
from radixserve.model.runner import Runner
from radixserve.request import Request, Sampling
from radixserve.step import Chunk
from tests import tiny
from tests.e2e.answers import (
    Answer,
    Interruptions,
    Setup,
    alone,
    both,
    cached,
    preempt,
    run,
    step,
    tokens,
    trace,
)

FAMILIES = [
    "llama_grouped",
    "qwen2",
    "qwen3",
    "mistral",
    "gpt2",
    "bert",
    "generic",
    *tiny.IN_BFLOAT16,
    *tiny.QUANTISED[1:],
]
BOTH_PATHS = ["qwen2", "generic"]  # our decoder, and the model's own modules


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
    speculates=st.booleans(),
)
@settings(
    max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_answers_of_tiny_models_have_the_same_bits_in_every_setup(
    tiny_model: Callable[[str], LoadedModel],
    family: str,
    seed: int,
    num_slots: int,
    max_running: int,
    max_step_tokens: int,
    gap: int,
    speculates: bool,
) -> None:
    loaded = tiny_model(family)
    assert loaded.exact, loaded.inexact_reason
    requests = trace(random.Random(seed), tiny.VOCAB, count=10, length=60)
    expected = alone(loaded, requests)
    roomy = Setup(
        max_running=max_running, max_step_tokens=max_step_tokens, gap=gap, speculates=speculates
    )
    core = roomy.engine(loaded)
    assert run(core, requests, gap) == expected, "cold"
    assert run(core, requests[::-1]) == expected, "warm, in another order"
    tight = Setup(num_slots, max_running, max_step_tokens)
    assert run(tight.engine(loaded), requests, gap) == expected, (
        "with a budget that evicts and preempts"
    )
    off = Setup(num_slots, max_running, max_step_tokens, cache=False)
    assert run(off.engine(loaded), requests) == expected, "in a batch, without cache"
    ahead = replace(tight, ahead=True)
    assert run(ahead.engine(loaded), requests, gap) == expected, (
        "a step ahead, with a budget that evicts and preempts"
    )


@dataclass
class Failing:
    """A model whose steps of several sequences sometimes raise, with their K/V ruined."""

    runner: Runner
    draw: random.Random
    num_failed: int = 0

    def forward(
        self,
        chunks: Sequence[Chunk],
        drawn: torch.Tensor | None,
        between_layers: Callable[[], None] | None = None,
    ) -> torch.Tensor:
        logits = self.runner.forward(chunks, drawn, between_layers)
        if len(chunks) == 1 or self.draw.random() < 0.7:
            return logits
        self.num_failed += 1
        for chunk in chunks:
            slots = torch.from_numpy(chunk.slots[chunk.start :].copy()).long()
            self.runner.pool.k[:, slots] = self.runner.pool.v[:, slots] = float("nan")
        raise (
            torch.OutOfMemoryError if self.num_failed % 2 else RuntimeError("the device is on fire")
        )


@pytest.mark.parametrize("ahead", [False, True], ids=["in turn", "ahead"])
@pytest.mark.parametrize("family", ["llama_grouped", "generic"])
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
def test_the_real_model_gives_the_same_bits_cold_warm_evicted_and_in_batches(
    real_model: LoadedModel,
) -> None:
    assert real_model.exact, real_model.inexact_reason
    requests = trace(random.Random(11), real_model.vocab_size, count=8, length=120)
    expected = alone(real_model, requests)
    core = Setup(max_running=3, max_step_tokens=100).engine(real_model)
    assert run(core, requests, gap=2) == expected, "cold"
    assert run(core, requests[::-1]) == expected, "warm"
    core.cache.slots.evict(200)
    assert run(core, requests) == expected, "partly evicted"
    tight = Setup(num_slots=420, max_running=8, max_step_tokens=77).engine(real_model)
    assert run(tight, requests) == expected, "evicting all the time"
    assert tight.cache.stats().evicted_tokens_total > 0


@pytest.mark.model
def test_an_answer_as_the_prefix_of_the_next_turn_is_as_if_prefilled(
    real_model: LoadedModel,
) -> None:
    draw = random.Random(3)
    first = Request(
        id="turn 1",
        prompt_ids=tokens(draw, real_model.vocab_size, 70),
        sampling=Sampling(max_tokens=40, seed=5, temperature=1.0, logprobs=2),
    )
    core = Setup().engine(real_model)
    said = run(core, [first])["turn 1"].token_ids
    second = Request(
        id="turn 2",
        prompt_ids=first.prompt_ids + said + tokens(draw, real_model.vocab_size, 20),
        sampling=Sampling(max_tokens=8, seed=6, temperature=0.0, logprobs=2),
    )
    assert cached(core, second) == 70 + 39
    assert run(core, [second]) == alone(real_model, [second])


# Batches


@pytest.fixture(scope="module")
def crowd(real_model: LoadedModel) -> tuple[list[Request], dict[str, Answer]]:
    """32 requests, each of 16 asked twice, and their answers alone."""
    requests = trace(
        random.Random(21), real_model.vocab_size, count=16, length=40, max_tokens=(7, 10)
    )
    expected = alone(real_model, requests)
    twins = {f"{each.id} of {turn}": each for turn in range(2) for each in requests}
    requests = [msgspec.structs.replace(each, id=name) for name, each in twins.items()]
    return requests, {name: expected[each.id] for name, each in twins.items()}


@pytest.mark.model
@pytest.mark.parametrize("size", [2, 8, 32])
def test_the_real_model_gives_the_same_bits_in_batches_of_sequences_in_different_phases(
    real_model: LoadedModel, crowd: tuple[list[Request], dict[str, Answer]], size: int
) -> None:
    requests, expected = crowd
    core = Setup(max_running=size, max_step_tokens=16 + 4 * size).engine(real_model)
    phases: set[tuple[bool, ...]] = set()

    def look() -> None:
        phases.add(tuple({sequence.num_pending > 1 for sequence in core.scheduler.running}))

    chosen = requests[: 2 * size]
    assert run(core, chosen, before_step=look) == {each.id: expected[each.id] for each in chosen}
    assert max(core.stats().seen(STEP_SEQUENCES)) == size
    assert (False, True) in phases, "some decode while others prefill"


# Preemption on purpose


@pytest.mark.parametrize("family", BOTH_PATHS)
@given(seed=st.integers(0, 2**32), max_running=st.integers(1, 8), ahead=st.booleans())
@settings(
    max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_tiny_models_go_on_with_the_same_bits_whoever_is_preempted_and_whenever(
    tiny_model: Callable[[str], LoadedModel], family: str, seed: int, max_running: int, ahead: bool
) -> None:
    draw, loaded = random.Random(seed), tiny_model(family)
    requests = trace(draw, tiny.VOCAB, count=8, length=50)
    core = Setup(
        max_running=max_running, max_step_tokens=draw.randrange(8, 60), ahead=ahead
    ).engine(loaded)
    interrupt = Interruptions(core, draw, count=25)
    assert run(core, requests, gap=1, before_step=interrupt) == alone(loaded, requests)
    assert core.scheduler.totals.preemptions == len(interrupt.phases)


def preempted_at(loaded: LoadedModel, request: Request, at: int, left: int) -> tuple[str, Answer]:
    """What the request was doing when preempted after `at` steps, and its answer; `left` tokens
    stayed cached.
    """
    core, answers = Setup(max_step_tokens=16).engine(loaded), {request.id: Answer()}
    core.submit(request, [])
    for _ in range(at):
        step(core, answers)
    phase = preempt(core)
    core.cache.slots.evict(max(0, core.cache.stats().cached - left))
    while core.has_work:
        step(core, answers)
    assert core.scheduler.totals.preemptions == 1
    return phase, answers[request.id]


@pytest.mark.model
@pytest.mark.parametrize("which", [0, 1], ids=["greedy", "sampled"])
def test_the_real_model_goes_on_with_the_same_bits_after_preemption_at_each_step(
    real_model: LoadedModel, which: int
) -> None:
    request = both(random.Random(31), real_model.vocab_size, length=45, max_tokens=4)[which]
    expected = alone(real_model, [request])[request.id]
    phases = []
    for at, left in ((1, 9), (2, 4096), (2, 0), (3, 40), (4, 4096), (5, 7)):
        phase, answer = preempted_at(real_model, request, at, left)
        assert answer == expected, f"preempted after step {at} with {left} tokens left"
        phases.append(phase)
    assert phases == ["prefill"] * 3 + ["decode"] * 3


@pytest.mark.model
def test_a_batch_of_the_real_model_gives_the_same_bits_although_sequences_are_preempted(
    real_model: LoadedModel, crowd: tuple[list[Request], dict[str, Answer]]
) -> None:
    requests, expected = crowd
    core = Setup(max_running=8, max_step_tokens=24).engine(real_model)
    interrupt = Interruptions(core, random.Random(5), count=12)
    chosen = requests[:12]
    assert run(core, chosen, before_step=interrupt) == {
        each.id: expected[each.id] for each in chosen
    }
    assert {"prefill", "decode"} <= set(interrupt.phases)


# Warm up to any token


def warm_up_to(loaded: LoadedModel, request: Request, cut: int, draw: random.Random) -> Request:
    """A request that shares exactly the first `cut` tokens of the other's prompt: the cut lies
    inside a node.
    """
    differs = (
        (request.prompt_ids[cut] + 1) % loaded.vocab_size if cut < len(request.prompt_ids) else 0
    )
    prompt = [
        *request.prompt_ids[:cut],
        differs,
        *tokens(draw, loaded.vocab_size, draw.randrange(30)),
    ]
    return Request(
        id="neighbour", prompt_ids=prompt, sampling=Sampling(max_tokens=1, seed=0, temperature=0.0)
    )


@pytest.mark.parametrize("family", FAMILIES)
@given(
    seed=st.integers(0, 2**32),
    turns=st.lists(st.tuples(st.booleans(), st.integers(0, 150)), min_size=4, max_size=8),
)
@settings(
    max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_tiny_models_give_the_same_bits_warm_up_to_any_token_and_after_evicting_any_part(
    tiny_model: Callable[[str], LoadedModel], family: str, seed: int, turns: list[tuple[bool, int]]
) -> None:
    draw, loaded = random.Random(seed), tiny_model(family)
    request = both(draw, tiny.VOCAB, length=150, max_tokens=3)[draw.randrange(2)]
    expected = alone(loaded, [request])
    core = Setup(max_step_tokens=draw.choice([30, 70, 256])).engine(loaded)
    for evicts, count in turns:
        if evicts:
            core.cache.slots.evict(count)
        else:
            core.cache.slots.evict(core.cache.stats().cached)
            run(core, [warm_up_to(loaded, request, count, draw)])
            assert cached(core, request) == min(count, 149)
        found, before = cached(core, request), core.stats().value(PROMPT_TOKENS, "device")
        assert run(core, [request]) == expected, f"{found} of 150 tokens cached"
        assert core.stats().value(PROMPT_TOKENS, "device") - before == found


@pytest.mark.model
def test_the_real_model_gives_the_same_bits_warm_up_to_any_token(real_model: LoadedModel) -> None:
    draw = random.Random(41)
    request = both(draw, real_model.vocab_size, length=90, max_tokens=3)[1]
    expected = alone(real_model, [request])
    core = Setup(max_step_tokens=100).engine(real_model)
    for cut in draw.sample(range(1, 90), 5):
        core.cache.slots.evict(core.cache.stats().cached)
        run(core, [warm_up_to(real_model, request, cut, draw)])
        assert cached(core, request) == cut
        assert run(core, [request]) == expected, f"{cut} tokens cached"
        core.cache.slots.evict(draw.randrange(1, 90))
        assert run(core, [request]) == expected, f"{cut} tokens cached, then some evicted"


# Resumed by another engine


def assert_resumed_anywhere(loaded: LoadedModel, requests: list[Request], places: range) -> None:
    """After some tokens sent, an engine that knows nothing and one that has it all cached give the
    same rest.
    """
    warm = Setup(max_step_tokens=50).engine(loaded)
    for request in requests:
        expected = alone(loaded, [request])[request.id]
        run(warm, [request])
        for place in places:
            sent, rest = expected.token_ids[:place], {request.id: expected.rest(place)}
            cold = Setup(max_step_tokens=50).engine(loaded)
            assert run(cold, [request], sent=sent) == rest, f"cold, {place} tokens sent"
            assert run(warm, [request], sent=sent) == rest, f"warm, {place} tokens sent"


@pytest.mark.parametrize("family", FAMILIES)
def test_tiny_models_resumed_at_any_token_give_the_same_rest(
    tiny_model: Callable[[str], LoadedModel], family: str
) -> None:
    requests = both(random.Random(51), tiny.VOCAB, length=70, max_tokens=12)
    assert_resumed_anywhere(tiny_model(family), requests, range(12))


@pytest.mark.model
def test_the_real_model_resumed_at_any_token_gives_the_same_rest(real_model: LoadedModel) -> None:
    requests = both(random.Random(52), real_model.vocab_size, length=40, max_tokens=4)
    assert_resumed_anywhere(real_model, requests, range(1, 4))
