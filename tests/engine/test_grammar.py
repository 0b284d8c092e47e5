"""Constrained requests in the engine: the tokens are those of drawing one by one under masks found
by brute force, whatever else happens in the engine.
"""

from __future__ import annotations

import functools
import threading
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from radixserve.engine.core import EngineCore
from radixserve.engine.counters import GENERATED_TOKENS, PREEMPTIONS, STEPS
from radixserve.engine.grammars import MAX_KEPT, Grammars
from radixserve.engine.scheduler import Limits
from radixserve.errors import BadRequest
from radixserve.grammar import Vocabulary, compile_grammar
from radixserve.grammar.compiled import Matcher
from radixserve.request import Grammar, Request
from tests.engine.content_model import ContentModel, Prefix
from tests.engine.harness import Harness, request
from tests.grammar.accept import byte_vocabulary, grammar

EOS = 256
VOCAB = 300  # of the model; the tokenizer has 258
PROMPT = [*b"say: "]

OBJECT = grammar(
    "json_schema",
    {
        "type": "object",
        "properties": {"kind": {"enum": ["a", "bb"]}, "value": {"type": "integer", "maximum": 99}},
        "required": ["kind", "value"],
        "additionalProperties": False,
    },
    whitespace="",
)
WORDS = grammar("regex", "(ab|cd)+")
PAIRS = grammar("regex", "(one: [0-9]; |two: [a-z]; )+")
CHOICE = grammar("choice", ["hello there", "hello you"])
FIXED = grammar("choice", ["fixed"])
FREE = grammar("lark", 'start: /[a-z]*/ | "<" <turn> "x"')
GRAMMARS = [OBJECT, WORDS, CHOICE, FIXED, FREE]


def scores(prefix: Prefix) -> torch.Tensor:
    """A logit for each token, which depends on the whole prefix. The end of text is likely."""
    state = functools.reduce(lambda a, b: (a * 31 + b + 1) % 1_000_003, prefix, 7)
    logits = torch.sin(torch.arange(VOCAB) * (state % 97 + 1.0)) * 4
    logits[EOS] += 3
    return logits


class ByteModel(ContentModel):
    """The content model over bytes."""

    def _logits(self, rows: list[Prefix]) -> torch.Tensor:
        logits = torch.stack([scores(prefix) for prefix in rows])
        for i, prefix in enumerate(rows):
            if prefix in self.poisoned:
                logits[i] = float("nan")
        return logits


class Bytes(Harness):
    """An engine over bytes whose grammars are compiled at once."""

    def __init__(self, *, ahead: bool = False, **options: Any) -> None:
        super().__init__(ahead=ahead, **options)
        self.model = ByteModel()
        limits = Limits(options.get("max_running", 4), options.get("max_step_tokens", 16))
        grammars = Grammars(byte_vocabulary)
        self.core = EngineCore(self.model, self.cache, limits, grammars=grammars, ahead=ahead)

    def run(self) -> None:
        """Also waits for the compiler."""
        while self.core.scheduler.awaits_grammar:
            self.step()
        super().run()

    def text(self, name: str) -> str:
        return bytes(token for token in self.tokens(name) if token < EOS).decode()


def constrained(name: str, wanted: Grammar, max_tokens: int = 24, **sampling: object) -> Request:
    settled = {"max_tokens": max_tokens, "stop_token_ids": (EOS,)} | sampling
    return request(name, PROMPT, grammar=wanted, **settled)  # type: ignore[arg-type]


@functools.cache
def compiled(wanted: Grammar) -> Any:
    return compile_grammar(wanted, byte_vocabulary())


def goes_on(matcher: Matcher, token_id: int) -> bool:
    return matcher._library.validate_tokens([token_id]) == 1


def reference(each: Request) -> tuple[list[int], str]:
    """Greedy tokens and how the request ends, one token at a time, with masks found by trying."""
    sampling, output = each.sampling, list[int]()
    assert sampling.grammar is not None
    matcher = compiled(sampling.grammar).matcher()
    while len(output) < sampling.max_tokens:
        allowed = {i for i in range(258) if goes_on(matcher, i)}
        early = len(output) < sampling.min_tokens
        if matcher.is_accepting and not early:
            allowed |= set(sampling.stop_token_ids)
        elif early:
            allowed = allowed - set(sampling.stop_token_ids) or allowed
        logits = scores((*each.prompt_ids, *output))
        output.append(max(sorted(allowed), key=lambda i: float(logits[i])))
        if output[-1] in sampling.stop_token_ids:
            return output, "stop"
        matcher.consume(output[-1:])
        if matcher.is_complete:
            return output, "stop"
    return output, "length"


@pytest.fixture(params=[False, True], ids=["in turn", "ahead"])
def ahead(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


OPTIONS: dict[str, dict[str, object]] = {
    "plain": {},
    "no stop token": {"stop_token_ids": ()},
    "min_tokens": {"min_tokens": 7},
    "a stop token that is text": {"stop_token_ids": (EOS, ord("b"), ord("l"))},
    "few tokens": {"max_tokens": 4},
    "one token": {"max_tokens": 1},
}


@pytest.mark.parametrize("options", OPTIONS)
def test_the_tokens_are_those_of_brute_force(ahead: bool, options: str) -> None:
    requests = [
        constrained(f"r{i}", wanted, **OPTIONS[options])  # type: ignore[arg-type]
        for i, wanted in enumerate(GRAMMARS)
    ]
    harness = Bytes(ahead=ahead)
    harness.submit(*requests)
    harness.run()
    for each in requests:
        found = harness.tokens(each.id), harness.finish(each.id)
        assert found == reference(each), each.sampling
    harness.assert_drained()


def test_a_complete_grammar_ends_the_request(ahead: bool) -> None:
    harness = Bytes(ahead=ahead)
    harness.submit(constrained("a", FIXED))
    harness.run()
    assert harness.text("a") == "fixed"
    assert harness.finish("a") == "stop"
    assert harness.events["a"][-1].stop_token_id is None


def test_an_object_that_is_cut_says_so(ahead: bool) -> None:
    harness = Bytes(ahead=ahead)
    harness.submit(constrained("a", OBJECT, max_tokens=10))
    harness.run()
    assert harness.text("a") == '{"kind":"a'[: len(harness.text("a"))]
    assert harness.finish("a") == "length"


def test_forced_tokens_take_one_step_together() -> None:
    harness = Bytes(max_step_tokens=64)
    harness.submit(
        constrained("a", grammar("choice", ["a long fixed text: x", "a long fixed text: y"]))
    )
    harness.run()
    assert len(harness.tokens("a")) == 20
    assert harness.core.stats().value(STEPS) == 1
    [event] = [event for event in harness.events["a"] if event.token_ids]
    assert event.finish == "stop"
    assert event.num_cached == 0
    assert event.queue_seconds is not None
    assert harness.core.stats().value(GENERATED_TOKENS) == 20


def test_logprobs_are_the_models_own_also_of_forced_tokens(ahead: bool) -> None:
    harness = Bytes(ahead=ahead)
    for max_tokens in (24, 5):
        each = constrained(f"r{max_tokens}", OBJECT, max_tokens, logprobs=2)
        harness.submit(each)
        harness.run()
        output = harness.tokens(each.id)
        assert output == reference(each)[0]
        found = harness.logprobs(each.id)
        assert [logprob.token_id for logprob in found] == output
        for i, logprob in enumerate(found):
            own = scores((*PROMPT, *output[:i])).log_softmax(-1)
            assert logprob.logprob == pytest.approx(float(own[output[i]]), abs=1e-5)
            assert len(logprob.top) == 2


def test_prompt_logprobs_and_those_of_forced_tokens_keep_apart() -> None:
    harness = Bytes(max_step_tokens=3)
    harness.submit(constrained("a", OBJECT, logprobs=0, prompt_logprobs=0))
    harness.run()
    first = next(event for event in harness.events["a"] if event.prompt_logprobs is not None)
    assert [each.token_id for each in first.prompt_logprobs or []] == PROMPT[1:]
    assert [each.token_id for each in harness.logprobs("a")] == harness.tokens("a")


SAMPLINGS: list[dict[str, object]] = [
    {},
    {"temperature": 1.0, "seed": 5},
    {"temperature": 1.0, "top_p": 0.9, "seed": 6, "logprobs": 1},
    {"temperature": 0.7, "top_k": 3, "presence_penalty": 1.0, "repetition_penalty": 1.2},
    {"logit_bias": {ord("b"): 8.0, EOS: -3.0}, "logprobs": 0},
    {"stop_token_ids": (), "logprobs": 0, "max_tokens": 70},
]


def answers(requests: list[Request], **options: Any) -> list[tuple[Any, ...]]:
    harness = Bytes(**options)
    harness.submit(*requests)
    harness.run()
    harness.assert_drained()
    return [harness.answer(each.id) for each in requests]


def many() -> list[Request]:
    return [
        constrained(f"{i}-{j}", wanted, **sampling)  # type: ignore[arg-type]
        for i, wanted in enumerate(GRAMMARS)
        for j, sampling in enumerate(SAMPLINGS)
    ]


@functools.cache
def alone() -> list[tuple[Any, ...]]:
    return [answers([each])[0] for each in many()]


@pytest.mark.parametrize(
    "options",
    [
        {"max_running": 8, "max_step_tokens": 64},
        {"max_running": 8, "max_step_tokens": 5},
        {"max_running": 8, "cache": False},
        {"max_running": 6, "num_slots": 80},
        {"max_running": 8, "ahead": True},
        {"max_running": 6, "num_slots": 80, "ahead": True},
    ],
    ids=str,
)
def test_an_answer_does_not_depend_on_the_batch_the_cache_and_the_budget(
    options: dict[str, Any],
) -> None:
    assert answers(many(), **options) == alone()


def test_a_preempted_sequence_goes_on_where_it_was(ahead: bool) -> None:
    requests = [
        constrained(
            *(f"r{i}", wanted),
            **{"max_tokens": 70, "stop_token_ids": (), "temperature": 1.0, "seed": i},  # type: ignore[arg-type]
            logprobs=0 if i % 2 else None,
        )
        for i, wanted in enumerate([WORDS, PAIRS] * 3)
    ]
    harness = Bytes(num_slots=100, max_running=6, ahead=ahead)
    harness.submit(*requests)
    harness.run()
    harness.assert_drained()
    assert harness.core.stats().value(PREEMPTIONS) > 0
    for each in requests:
        assert harness.answer(each.id) == answers([each])[0]


def test_an_answer_warm_is_the_answer_cold() -> None:
    harness = Bytes()
    for _ in range(2):
        requests = many()
        harness.events.clear()
        harness.submit(*requests)
        harness.run()
        assert [harness.answer(each.id) for each in requests] == alone()


@pytest.mark.slow
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_another_engine_goes_on_behind_any_event(data: st.DataObject) -> None:
    """What the front has when an engine dies is what whole events brought."""
    i = data.draw(st.integers(0, len(many()) - 1))
    each, first = many()[i], Bytes()
    first.submit(each)
    first.run()
    events = [event for event in first.events[each.id] if event.token_ids]
    num_kept = data.draw(st.integers(0, len(events) - 1))
    kept = [token for event in events[:num_kept] for token in event.token_ids]
    second = Bytes(ahead=data.draw(st.booleans()))
    second.take(second.core.submit(each, kept))
    second.run()
    assert kept + second.tokens(each.id) == first.tokens(each.id)
    assert second.finish(each.id) == first.finish(each.id)
    of_events = [logprob for event in events[num_kept:] for logprob in event.logprobs or []]
    assert second.logprobs(each.id) == of_events


def test_a_step_that_fails_changes_no_answer(ahead: bool) -> None:
    for call in range(6):
        harness = Bytes(ahead=ahead)
        harness.model.fail_calls(call)
        requests = many()[:10]
        harness.submit(*requests)
        harness.run()
        assert [harness.answer(each.id) for each in requests] == alone()[:10]


# Compiling.


class Slow:
    """A vocabulary that arrives when it is let go."""

    def __init__(self) -> None:
        self.go = threading.Event()

    def __call__(self) -> Vocabulary:
        assert self.go.wait(20)
        return byte_vocabulary()


def slow_engine() -> tuple[Bytes, Slow]:
    harness, slow = Bytes(), Slow()
    harness.core = EngineCore(harness.model, harness.cache, Limits(4, 16), grammars=Grammars(slow))
    return harness, slow


def test_others_go_on_while_a_grammar_is_compiled() -> None:
    harness, slow = slow_engine()
    harness.submit(constrained("a", FIXED), request("b", PROMPT, 3))
    while not harness.events["b"] or harness.finish("b") is None:
        harness.step()
    assert not harness.events["a"]
    assert harness.core.has_work
    harness.step()
    assert harness.core.patience is not None
    assert 0 < harness.core.patience < 0.1, "it polls and does not spin"
    slow.go.set()
    harness.run()
    assert harness.text("a") == "fixed"


def test_a_request_may_leave_while_its_grammar_is_compiled() -> None:
    harness, slow = slow_engine()
    harness.submit(constrained("a", FIXED))
    harness.step()
    harness.take(harness.core.abort("a"))
    slow.go.set()
    assert not harness.core.has_work
    assert harness.finish("a") == "abort"
    harness.assert_drained()


@pytest.mark.parametrize("bad", [grammar("regex", "("), grammar("json_schema", {"not": {}})])
def test_a_grammar_that_cannot_be_compiled_ends_its_request_only(bad: Grammar) -> None:
    harness = Bytes()
    harness.submit(constrained("a", bad), constrained("b", FIXED))
    harness.run()
    assert harness.finish("a") == "refused"
    assert "not" in (harness.events["a"][-1].error or "")
    assert harness.text("b") == "fixed"
    harness.assert_drained()


def test_a_tokenizer_that_cannot_be_loaded_ends_the_request() -> None:
    def broken() -> Vocabulary:
        raise BadRequest("no tokenizer here")

    harness = Bytes()
    harness.core = EngineCore(
        harness.model, harness.cache, Limits(4, 16), grammars=Grammars(broken)
    )
    harness.submit(constrained("a", FIXED), request("b", PROMPT, 3))
    harness.run()
    assert harness.finish("a") == "refused"
    assert harness.finish("b") == "length"


def test_an_engine_without_grammars_says_so() -> None:
    harness = Harness(ahead=False)
    harness.submit(constrained("a", FIXED))
    assert harness.finish("a") == "error"


def test_a_row_whose_logits_are_not_finite_ends_as_without_a_grammar() -> None:
    harness = Bytes()
    harness.model.poisoned.add((*PROMPT, *b"{"))
    harness.submit(constrained("a", grammar("json_object")), constrained("b", FIXED))
    harness.run()
    assert harness.finish("a") == "error"
    assert harness.core.scheduler.totals.faults == {"not_finite": 1}
    assert harness.text("b") == "fixed"


def test_compiled_grammars_are_kept_up_to_a_number() -> None:
    grammars = Grammars(byte_vocabulary)
    wanted = [grammar("choice", [f"c{i}"]) for i in range(MAX_KEPT + 5)]
    for each in wanted:
        grammars.compile(each).result(timeout=20)
    assert list(grammars._kept) == wanted[5:]
    assert grammars.compile(wanted[-1]) is grammars.compile(wanted[-1])


def test_the_vocabulary_is_built_once_and_before_the_first_grammar_if_asked_for() -> None:
    loads: list[Vocabulary] = []

    def load() -> Vocabulary:
        loads.append(byte_vocabulary())
        return loads[-1]

    grammars = Grammars(load)
    assert grammars.prepare().result(timeout=20) is byte_vocabulary()
    assert len(loads) == 1
    assert grammars.compile(FIXED).result(timeout=20).vocabulary is byte_vocabulary()
    assert len(loads) == 1


def test_more_grammars_than_are_kept_may_be_wanted_at_a_time() -> None:
    harness, slow = slow_engine()
    names = [f"choice {i}" for i in range(2 * MAX_KEPT)]
    harness.submit(*(constrained(name, grammar("choice", [name])) for name in names))
    harness.step()
    slow.go.set()
    harness.run()
    assert [harness.text(name) for name in names] == names


TOO_COMPLEX = grammar("regex", "(a|aa|aaa){500}(x|y){500}[a-z]{0,500}z")


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize(
    ("wanted", "sampling", "code"),
    [
        (TOO_COMPLEX, {}, "grammar_too_complex"),
        (CHOICE, {"allowed_token_ids": (5,)}, "invalid_value"),
        (CHOICE, {"bad_words": ((ord("y"),), (ord("t"),))}, "invalid_value"),
        (None, {"allowed_token_ids": (EOS,), "min_tokens": 3}, "invalid_value"),
        (None, {"allowed_token_ids": (5,), "bad_words": ((5,),)}, "invalid_value"),
    ],
)
def test_what_leaves_no_token_is_refused_and_harms_nobody(
    ahead: bool, wanted: Grammar | None, sampling: dict[str, Any], code: str
) -> None:
    harness = Bytes(ahead=ahead)
    harness.submit(
        request("impossible", PROMPT, 24, stop_token_ids=(EOS,), grammar=wanted, **sampling)
    )
    harness.submit(constrained("other", CHOICE))
    harness.run()
    assert harness.finish("impossible") == "refused"
    assert harness.events["impossible"][-1].code == code
    assert harness.text("other") in ("hello there", "hello you")
    assert harness.core.scheduler.totals.faults["not_finite"] == 0
