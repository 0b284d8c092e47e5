"""Engines that differ in what must not matter, the traces they are given, and everything they
answer.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from radixserve.cache.kvcache import KVCache
from radixserve.cache.states import StateSlots
from radixserve.engine.core import EngineCore
from radixserve.engine.grammars import Grammars
from radixserve.engine.scheduler import Limits
from radixserve.model.loaded import LoadedModel
from radixserve.model.runner import Runner
from radixserve.prefix import Prefix
from radixserve.request import Request, Sampling
from radixserve.step import TokenLogprob

MAX_STEPS = 5000
STATE_SLOTS, STATE_EVERY = 24, 16  # of models whose layers have a state


@dataclass
class Answer:
    """Everything that a client could tell two answers apart by."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)

    def rest(self, start: int) -> Answer:
        return Answer(self.token_ids[start:], self.logprobs[start:])


@dataclass(frozen=True)
class Setup:
    """What must not matter."""

    num_slots: int = 4096
    max_running: int = 4
    max_step_tokens: int = 64
    cache: bool = True
    gap: int = 0  # steps between two arrivals
    ahead: bool = False  # a step is launched before the one in front of it is known
    speculates: bool = False  # tokens are guessed
    grammars: Grammars | None = None

    def engine(self, loaded: LoadedModel) -> EngineCore:
        pool = loaded.pool(self.num_slots, STATE_SLOTS)
        states = None
        if loaded.states is not None:
            states = StateSlots(self.num_slots, STATE_SLOTS, STATE_EVERY)
        cache = KVCache(self.num_slots, enabled=self.cache, second=states)
        limits = Limits(self.max_running, self.max_step_tokens, speculates=self.speculates)
        runner, grammars = Runner(loaded, pool), self.grammars
        ahead = self.ahead and loaded.states is None  # a state is on the CPU only
        return EngineCore(runner, cache, limits, grammars=grammars, ahead=ahead)


def run(
    core: EngineCore,
    requests: Sequence[Request],
    gap: int = 0,
    before_step: Callable[[], None] = lambda: None,
    sent: Sequence[int] = (),
) -> dict[str, Answer]:
    """All requests through one engine, arriving `gap` steps apart (0: at once), each after the
    tokens `sent`.
    """
    answers = {request.id: Answer() for request in requests}
    for request in requests:
        core.submit(request, list(sent))
        for _ in range(gap):
            step(core, answers, before_step)
    for _ in range(MAX_STEPS):
        if not core.has_work:
            core.cache.check()
            return answers
        step(core, answers, before_step)
    raise AssertionError("the engine does not come to an end")


def step(
    core: EngineCore, answers: dict[str, Answer], before_step: Callable[[], None] = lambda: None
) -> None:
    """One step, if there is anything to compute."""
    before_step()
    for event in core.step() if core.has_work else ():
        assert event.finish in (None, "length", "stop"), event.error
        answers[event.request_id].token_ids += event.token_ids
        answers[event.request_id].logprobs += event.logprobs or []


def alone(loaded: LoadedModel, requests: Sequence[Request]) -> dict[str, Answer]:
    """The reference: each request with nothing cached and nobody beside it, its prompt in one
    chunk.
    """
    setup = Setup(num_slots=512, max_running=1, max_step_tokens=512, cache=False)
    return {request.id: run(setup.engine(loaded), [request])[request.id] for request in requests}


class Interruptions:
    """Before steps drawn at random: preempts a running sequence and evicts some of what it left in
    the cache.
    """

    def __init__(self, core: EngineCore, draw: random.Random, count: int) -> None:
        self.phases: list[str] = []  # of the sequences when they were preempted
        self._core = core
        self._draw = draw
        self._left = count

    def __call__(self) -> None:
        running = list(self._core.scheduler.running)
        if self._left and running and self._draw.random() < 0.4:
            self._left -= 1
            self.phases.append(preempt(self._core, self._draw.randrange(len(running))))
            self._core.cache.slots.evict(self._draw.choice([0, self._draw.randrange(60), 4096]))
            self._core.cache.check()


def preempt(core: EngineCore, index: int = 0) -> str:
    """Take the slots of the running sequence at `index`, as pressure would; says what it
    was doing.
    """
    sequence = list(core.scheduler.running)[index]
    assert sequence.lease is not None, "what runs holds a lease"
    started = sequence.num_computed > sequence.lease.num_cached
    decodes = sequence.num_computed >= sequence.num_prompt
    core.scheduler.running.preempt(sequence)
    return "decode" if decodes else "prefill" if started else "start"


def cached(core: EngineCore, request: Request) -> int:
    """How many tokens of its prompt the request would find now."""
    found = core.cache.match(Prefix.of(request.namespace, request.prompt_ids))
    return min(found, len(request.prompt_ids) - 1)


def tokens(draw: random.Random, vocab: int, count: int) -> list[int]:
    return [draw.randrange(vocab) for _ in range(count)]


def sampling(draw: random.Random, max_tokens: int) -> Sampling:
    """Greedy, or sampled with filters and penalties; always with logprobs."""
    return greedy(max_tokens) if draw.random() < 0.4 else sampled(draw, max_tokens)


def greedy(max_tokens: int) -> Sampling:
    return Sampling(max_tokens=max_tokens, seed=0, temperature=0.0, logprobs=3)


def sampled(draw: random.Random, max_tokens: int) -> Sampling:
    return Sampling(
        max_tokens=max_tokens,
        seed=draw.randrange(2**63),
        temperature=draw.choice([0.5, 1.0, 1.5]),
        top_p=draw.choice([0.7, 0.95, 1.0]),
        top_k=draw.choice([0, 20]),
        repetition_penalty=draw.choice([1.0, 1.2]),
        logprobs=3,
    )


def both(draw: random.Random, vocab: int, length: int, max_tokens: int) -> list[Request]:
    """A greedy request and a sampled one, of one random prompt each."""
    return [
        Request(id="greedy", prompt_ids=tokens(draw, vocab, length), sampling=greedy(max_tokens)),
        Request(
            id="sampled", prompt_ids=tokens(draw, vocab, length), sampling=sampled(draw, max_tokens)
        ),
    ]


def trace(
    draw: random.Random, vocab: int, count: int, length: int, max_tokens: tuple[int, int] = (1, 10)
) -> list[Request]:
    """Prompts that branch off each other at any position, inside nodes too."""
    prompts: list[list[int]] = []
    for _ in range(count):
        base = draw.choice(prompts) if prompts and draw.random() < 0.8 else []
        own = tokens(draw, vocab, draw.randrange(1, length))
        prompts.append(base[: draw.randrange(len(base) + 1)] + own)
    return [
        Request(
            id=f"r{i}",
            prompt_ids=prompt[: 3 * length],
            sampling=sampling(draw, draw.randrange(*max_tokens)),
        )
        for i, prompt in enumerate(prompts)
    ]
