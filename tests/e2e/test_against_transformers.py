"""Greedy tokens equal `transformers.generate` in float32: cold, warm, evicting all the time, alone
and in batches.

The reference is the model as transformers loads it, untouched, one prompt at a time. Ours is the
whole engine without its process: scheduler, cache, runner, sampling.
"""

from __future__ import annotations

import random

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from radixserve.cache.kvcache import KVCache
from radixserve.checkpoints.embedded import embedded_model
from radixserve.engine.core import EngineCore
from radixserve.engine.scheduler import Limits
from radixserve.model.load import load_model
from radixserve.model.loaded import LoadedModel
from radixserve.model.runner import Runner
from radixserve.request import Request, Sampling
from radixserve.tensors.kv import KVPool
from tests import tiny

NEW_TOKENS = 12
SYSTEMS = [
    "You are a patient teacher. You answer in one short sentence and never use hard words.",
    "You are the clerk of a bookshop. You know every book, and you recommend one for each "
    "question.",
    "Translate what the user says into simple English. Keep names as they are. Do not "
    "explain anything.",
]
QUESTIONS = [
    "Why is the sky blue?",
    "What should I read on a long train ride?",
    "How do bees make honey?",
    "Who wrote Hamlet, and when?",
    "Is seven a prime number?",
    "Name three rivers in Europe.",
    "What does a compass do?",
]


def generate(model: PreTrainedModel, prompt: list[int], count: int) -> list[int]:
    """What transformers says, end-of-text ignored so that every prompt gives `count` tokens."""
    with torch.inference_mode():
        output = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=count,
            min_new_tokens=count,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
    return [int(token) for token in output[0, len(prompt) :]]


def engine(
    loaded: LoadedModel, num_slots: int, *, max_running: int = 8, max_step_tokens: int = 64
) -> EngineCore:
    pool = KVPool(loaded.shape, num_slots, loaded.device)
    return EngineCore(
        Runner(loaded, pool), KVCache(num_slots), Limits(max_running, max_step_tokens)
    )


def answers(core: EngineCore, prompts: list[list[int]], count: int) -> list[list[int]]:
    """All prompts at once through `core`."""
    found: dict[str, list[int]] = {}
    for i, prompt in enumerate(prompts):
        core.submit(
            Request(
                id=str(i),
                prompt_ids=prompt,
                sampling=Sampling(max_tokens=count, seed=0, temperature=0.0),
            ),
            [],
        )
        found[str(i)] = []
    while core.has_work:
        for event in core.step():
            assert event.finish in (None, "length")
            found[event.request_id] += event.token_ids
    core.cache.check()
    return list(found.values())


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    """21 chat prompts in three groups that share their opening."""
    tokenizer = AutoTokenizer.from_pretrained(embedded_model())
    chats = [
        [{"role": "system", "content": system}, {"role": "user", "content": question}]
        for system in SYSTEMS
        for question in QUESTIONS
    ]
    texts = [
        tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        for chat in chats
    ]
    return [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]


@pytest.fixture(scope="module")
def reference(prompts: list[list[int]]) -> list[list[int]]:
    model = AutoModelForCausalLM.from_pretrained(embedded_model(), dtype=torch.float32).eval()
    return [generate(model, prompt, NEW_TOKENS) for prompt in prompts]


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return load_model(str(embedded_model()), torch.device("cpu"), torch.float32)


@pytest.mark.model
def test_the_real_model_says_what_transformers_says(
    loaded: LoadedModel, prompts: list[list[int]], reference: list[list[int]]
) -> None:
    core = engine(loaded, 4096)
    assert answers(core, prompts, NEW_TOKENS) == reference, "cold, in mixed batches"
    assert answers(core, prompts, NEW_TOKENS) == reference, "warm, in mixed batches"
    for prompt, expected in zip(prompts[::5], reference[::5], strict=True):
        assert answers(core, [prompt], NEW_TOKENS) == [expected], "warm, alone"
        assert answers(engine(loaded, 256), [prompt], NEW_TOKENS) == [expected], "cold, alone"


@pytest.mark.model
def test_the_real_model_says_the_same_while_everything_is_evicted(
    loaded: LoadedModel, prompts: list[list[int]], reference: list[list[int]]
) -> None:
    order = list(range(len(prompts)))
    random.Random(5).shuffle(order)
    core = engine(loaded, 200)
    assert answers(core, [prompts[i] for i in order], NEW_TOKENS) == [reference[i] for i in order]
    assert core.cache.stats().evicted_tokens_total > 300


@pytest.mark.parametrize("family", sorted(tiny.CONFIGS))
def test_tiny_models_of_other_families_say_what_transformers_says(family: str) -> None:
    original = tiny.tiny_model(family)
    draw = random.Random(family)
    opening = [draw.randrange(tiny.VOCAB) for _ in range(40)]
    given = [
        opening[: draw.randrange(1, 40)] + [draw.randrange(tiny.VOCAB) for _ in range(30)]
        for _ in range(6)
    ]
    expected = [generate(original, prompt, NEW_TOKENS) for prompt in given]
    loaded = tiny.load_tiny(family)
    roomy, tight = engine(loaded, 2048, max_step_tokens=23), engine(loaded, 128, max_step_tokens=23)
    for core in (roomy, roomy, tight):
        assert answers(core, given, NEW_TOKENS) == expected
