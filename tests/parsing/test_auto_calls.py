"""Calls that no marker begins: with tool_choice auto an answer that begins like a call is one that
obeys its schema, and any other text is free.
"""

from __future__ import annotations

import functools
import json
import random
import re
from collections.abc import Callable

import numpy as np
import pytest
import tokenizers
from jsonschema import Draft202012Validator
from tokenizers import AddedToken

from radixserve.grammar import Compiled, Vocabulary, compile_grammar
from radixserve.parsing.formats import FORMATS
from radixserve.parsing.layouts import CONSTRAINTS
from radixserve.parsing.parts import CallArguments, CallBegun, CallEnded
from radixserve.parsing.reasoning import HARMONY
from radixserve.parsing.tool import Tool
from tests.fakes import byte_tokenizer
from tests.parsing.transcripts import joined

NAMES = sorted(
    FORMATS["harmony"].markers | FORMATS["llama3_json"].markers | FORMATS["llama_pythonic"].markers
)
PLACE = Tool(
    "place",
    {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
        "required": ["city"],
        "additionalProperties": False,
    },
)
NOW = Tool("now", {"type": "object", "additionalProperties": False})
OTHER = Tool("place.2/x:y", {"type": "object", "additionalProperties": False})
TOOLS = [PLACE, NOW, OTHER]
OSLO = '{"city": "Oslo", "days": 3}'
CALL = f'{{"name": "place", "parameters": {OSLO}}}'
AGAIN = '{"name": "now", "parameters": {}}'
MESSAGE = "<|channel|>commentary json<|message|>"
THOUGHT = "<|channel|>analysis<|message|>The place. to=functions.x<|end|><|start|>assistant"

GOOD = {
    "llama3_json": [
        *("", "Hello", "{", '{"a": 1}', '{"name": "Ada", "age": 3}', '{"name": "place", "x": 1}'),
        *('{"name": "place"}', '{"name": "places", "parameters": 1}', f"I call {CALL}"),
        *(CALL, f"\n{CALL}", f"{CALL}; {AGAIN}", f"{CALL}\n{AGAIN};{CALL}"),
        CALL.replace("parameters", "arguments").replace('": ', '":', 2),
        CALL.replace("{", '{"type": "function", ', 1),
        '{"name": "place.2/x:y", "parameters": {}}',
        *(f"<|python_tag|>{CALL}", f"I call <|python_tag|>{CALL}; {AGAIN}"),
        *("<|python_tag|>print(1)", "a<|end|>{<|python_tag|>b<|end|>", "<|end|>"),
    ],
    "llama_pythonic": [
        *("", "Hello", "[", "[1, 2]", "[place]", "[place](https://x)", "see [place(1)]"),
        *("[now()]", ' [place(city="Oslo"), now( ),place(city="", days=1)]', "[place.2/x:y()]"),
        *("<|python_start|>[now()]<|python_end|>", "a<|python_start|>[b]", "[x<|end|>[place("),
    ],
    "harmony": [
        "",
        "<|channel|>final<|message|>Hello, to=functions.place",
        f"{THOUGHT} to=functions.place{MESSAGE}{OSLO}",
        f"{THOUGHT}<|channel|>commentary to=functions.now <|constrain|>json<|message|>{{}}",
        f"{THOUGHT} to=now<|channel|>commentary<|message|>{{}}",
        f"<|channel|>commentary<|message|>I look.<|end|><|start|>assistant to=place{MESSAGE}{OSLO}",
        f" to=functions.place.2/x:y{MESSAGE}{{}}",
        "<|channel|>analysis<|message|>x<|channel|>final<|message|>y<|return|>",
        "<|channel|>into=x<|message|>",
    ],
}
BAD = {
    "llama3_json": [
        *(CALL.replace("Oslo", "Oslo\n"), CALL.replace("3", "3.5"), CALL.replace("city", "town")),
        *(f"{CALL}; {AGAIN.replace('{}', '1')}", f"{CALL} So.", CALL[:-1], AGAIN.replace("{}", "")),
        *(f"x<|python_tag|>{AGAIN.replace('{}', '[]')}", f'{CALL}; {{"a": 1}}'),
    ],
    "llama_pythonic": [
        *("[place()]", '[place(town="x")]', "[now(1)]", "[now()", "[now(), x()]", "[now()] So."),
        *('[place(city="Oslo", days="3")]', "x<|python_start|>[now(a=1)]"),
    ],
    "harmony": [
        f" to=functions.place{MESSAGE}{{}}",
        f" to=functions.places{MESSAGE}{OSLO}",
        f" to=browser.open{MESSAGE}{{}}",
        f"{THOUGHT} to=functions.now{MESSAGE}{{}}<|call|><|start|>assistant",
        f"<|channel|>commentary to=functions.now <|constrain|>json<|message|>{OSLO}",
        f" to=functions.now{MESSAGE}so {{}}",
    ],
}
WISHES = {
    "llama3_json": ('{"name": "place", "parameters": ', "<|python_tag|>", '"}}', ";"),
    "llama_pythonic": ('[place(city="', "now(", '")]', "<|python_start|>"),
    "harmony": (" to=functions.place", " to=now", "<|message|>", "<|start|>", '"}', "<|end|>"),
}


@functools.cache
def vocabulary() -> Vocabulary:
    """Token i is byte i; the markers of these formats are control tokens."""
    backend = tokenizers.Tokenizer.from_str(byte_tokenizer().tokenizer.to_json())
    backend.add_special_tokens([AddedToken(name) for name in NAMES])
    return Vocabulary(backend.to_str())


def ids(text: str) -> list[int]:
    parts = re.split(f"({'|'.join(map(re.escape, NAMES))})", text)
    numbers = vocabulary().token_ids
    return [i for part in parts for i in ([numbers[part]] if part in NAMES else part.encode())]


def compiled(name: str, *, parallel: bool = True, after: str = "") -> Compiled:
    control = {each: vocabulary().token_ids[each] for each in NAMES}
    wanted = CONSTRAINTS[name].grammar(
        TOOLS, required=False, parallel=parallel, control=control, after=after
    )
    assert wanted is not None
    return compile_grammar(wanted, vocabulary())


def accepting(name: str, *, parallel: bool = True, after: str = "") -> Callable[[str], bool]:
    grammar = compiled(name, parallel=parallel, after=after)

    def accepts(text: str) -> bool:
        matcher = grammar.matcher()
        return matcher.consume(ids(text)) and matcher.is_accepting

    return accepts


@pytest.mark.parametrize("name", GOOD)
def test_only_a_text_that_has_begun_a_call_is_constrained(name: str) -> None:
    accepts = accepting(name)
    assert [text for text in GOOD[name] if not accepts(text)] == []
    assert [text for text in BAD[name] if accepts(text)] == []


@pytest.mark.parametrize("name", ["llama3_json", "llama_pythonic"])
def test_behind_reasoning_an_answer_begins(name: str) -> None:
    accepts = accepting(name, after="</think>")
    for call in (text for text in GOOD[name] + BAD[name] if text[:1] in "[{"):
        assert accepts(f"hm {call}</think>{call}") == (call in GOOD[name])
        assert not accepts(call)


def test_reasoning_that_the_prompt_has_begun_ends_with_its_message() -> None:
    accepts = accepting("harmony", after=HARMONY.end)
    rest = " to=functions.x<|end|><|start|>assistant to=now<|message|>"
    assert accepts(rest + "{}")
    assert not accepts(rest + "[]")


def test_one_call_only() -> None:
    assert not accepting("llama3_json", parallel=False)(f"{CALL}; {AGAIN}")
    assert not accepting("llama_pythonic", parallel=False)("[now(), now()]")
    assert accepting("llama3_json", parallel=False)(CALL)
    assert accepting("llama_pythonic", parallel=False)("[now()]")


def test_channels_that_are_no_tokens_are_not_told_from_text() -> None:
    each = CONSTRAINTS["harmony"]
    assert each.grammar(TOOLS, required=False, parallel=True, control={}) is None


@pytest.mark.parametrize("name", GOOD)
def test_what_the_parser_takes_for_a_whole_call_obeys_its_schema(name: str) -> None:
    grammar, draw = compiled(name), random.Random(0)
    num_calls = 0
    for _ in range(40):
        text = walk(grammar, draw, WISHES[name])
        parser = FORMATS[name].parser(TOOLS)
        parts = joined(parser.push(text) + parser.finish())
        for begun, arguments, ended in zip(parts, parts[1:], parts[2:], strict=False):
            if isinstance(begun, CallBegun) and isinstance(ended, CallEnded):
                assert isinstance(arguments, CallArguments)
                check(begun.name, arguments.text, text)
                num_calls += 1
    assert num_calls >= 5


def check(name: str, arguments: str, text: str) -> None:
    schema = next(tool.parameters for tool in TOOLS if tool.name == name)
    assert [*Draft202012Validator(dict(schema)).iter_errors(json.loads(arguments))] == [], text


def walk(grammar: Compiled, draw: random.Random, wishes: tuple[str, ...]) -> str:
    """An output of the grammar, drawn at random; often one of `wishes` is tried."""
    matcher, written = grammar.matcher(), list[int]()
    wish = ids(draw.choice(wishes))
    while not matcher.is_complete and len(written) < 300:
        bits = np.unpackbits(matcher.mask().view(np.uint8), bitorder="little")
        allowed = [int(i) for i in np.flatnonzero(bits) if 9 < i < 127 or i > 255]
        if not wish and draw.random() < 0.2:
            wish = ids(draw.choice(wishes))
        token = wish.pop(0) if wish else draw.choice(allowed)
        if token not in allowed:
            wish.clear()
            token = draw.choice(allowed)
        assert matcher.consume([token])
        written.append(token)
    names = {number: name for name, number in vocabulary().token_ids.items()}
    return "".join(names[i] if i in names else chr(i) for i in written)
