"""Constrained answers of whole models have the same bits whatever is cached and who shares the
batch.
"""

from __future__ import annotations

import functools
import json
import random
from collections.abc import Sequence
from dataclasses import replace

import jsonschema
import msgspec
import pytest
import tokenizers
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from radixserve.checkpoints.embedded import embedded_model
from radixserve.engine.grammars import Grammars, grammars_of
from radixserve.grammar import Vocabulary
from radixserve.model.load import load_model
from radixserve.model.loaded import LoadedModel
from radixserve.request import Grammar, Request, Sampling
from tests import tiny
from tests.e2e.answers import Interruptions, Setup, run, trace
from tests.grammar.accept import grammar

GRAMMARS = [
    grammar("json_object", whitespace=""),
    grammar("regex", "(one: [0-9]; |two: [a-z]*; )+"),
    grammar("choice", ["yes, please", "yes, but later", "no"]),
    grammar("json_schema", {"enum": [{"kind": "a", "of": []}, {"kind": "a", "in": 1}]}),
]


@functools.cache
def ascii_grammars() -> Grammars:
    """Token i is the character of code 32 + i, and two control tokens follow; as many as the tiny
    models have. All of GRAMMARS are compiled.
    """
    vocab = {("Ġ" if code == 32 else chr(code)): code - 32 for code in range(32, 127)}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken("<a>", special=True), AddedToken("<b>", special=True)])
    assert backend.get_vocab_size() == tiny.VOCAB
    found = Grammars(lambda: Vocabulary(backend.to_str()))
    compile_all(found, GRAMMARS)
    return found


def compile_all(grammars: Grammars, wanted: Sequence[Grammar]) -> None:
    for each in wanted:
        grammars.compile(each).result(timeout=60)


def constrained(requests: Sequence[Request], draw: random.Random) -> list[Request]:
    """Two thirds of the requests with a grammar, some of them without logprobs."""
    return [
        msgspec.structs.replace(
            each,
            sampling=msgspec.structs.replace(
                each.sampling,
                grammar=draw.choice([None, None, *GRAMMARS]),
                logprobs=draw.choice([None, 2]),
            ),
        )
        for each in requests
    ]


@functools.cache
def tiny_model(family: str) -> LoadedModel:
    return tiny.load_tiny(family)


@pytest.mark.parametrize("family", ["qwen2", "generic"])
@given(seed=st.integers(0, 2**32), max_step_tokens=st.integers(8, 200))
@settings(max_examples=3, deadline=None)
def test_constrained_answers_have_the_same_bits_in_every_setup(
    family: str, seed: int, max_step_tokens: int
) -> None:
    loaded, draw = tiny_model(family), random.Random(seed)
    requests = constrained(trace(draw, tiny.VOCAB, 10, 60, (1, 40)), draw)
    roomy = Setup(max_running=8, max_step_tokens=max_step_tokens, grammars=ascii_grammars())
    single = replace(roomy, max_running=1, max_step_tokens=512, cache=False)
    expected = {each.id: run(single.engine(loaded), [each])[each.id] for each in requests}
    core = roomy.engine(loaded)
    assert run(core, requests) == expected, "cold"
    assert run(core, requests[::-1]) == expected, "warm, in another order"
    ahead = replace(roomy, ahead=True).engine(loaded)
    assert run(ahead, requests) == expected, "ahead where steps may be"
    tight = replace(roomy, num_slots=300).engine(loaded)
    interruptions = Interruptions(tight, draw, 6)
    assert run(tight, requests, 1, interruptions) == expected, "preempted"


@pytest.mark.model
def test_answers_of_the_embedded_model_parse_validate_and_end() -> None:
    schema = {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 20},
            "age": {"type": "integer", "minimum": 1, "maximum": 99},
            "kind": {"enum": ["cat", "dog", "bird"]},
            "tags": {"type": "array", "items": {"enum": ["big", "small"]}, "maxItems": 2},
        },
        "required": ["name", "age", "kind", "tags"],
        "additionalProperties": False,
    }
    folder = embedded_model(progress=False)
    backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    prompt = "<|im_start|>user\nDescribe a pet as JSON.<|im_end|>\n<|im_start|>assistant\n"
    ids = backend.encode(prompt, add_special_tokens=False).ids
    wanted, grammars = grammar("json_schema", schema), grammars_of(str(folder))
    compile_all(grammars, [wanted])
    requests = [
        Request(
            id=f"r{i}",
            prompt_ids=ids,
            sampling=Sampling(
                max_tokens=120, seed=i, temperature=i % 4 / 2, grammar=wanted, stop_token_ids=(2,)
            ),
        )
        for i in range(24)
    ]
    setup = Setup(max_running=8, max_step_tokens=256, grammars=grammars)
    answers = run(setup.engine(load_model(str(folder), tiny.CPU, torch.float32)), requests)
    texts = [backend.decode(answer.token_ids) for answer in answers.values()]
    for text in texts:
        jsonschema.validate(json.loads(text), schema)
    assert len(set(texts)) > 6, "they are answers and not one answer"
