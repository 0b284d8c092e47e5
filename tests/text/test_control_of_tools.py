"""Control tokens that a client's text spells in tools, calls, results and options: plain text."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from radixserve.text.breaks import Breaks
from radixserve.text.conversation import Conversation, changed
from radixserve.text.tokenizer import Tokenizer
from tests.text.templates import SPECIAL, TAGS, TEMPLATES, tokenizer_of
from tests.text.test_control import often

pytestmark = pytest.mark.slow  # a search over five kinds of templates

KINDS = ["generic", *TEMPLATES]
Chats = dict[str, Tokenizer]

names = [*TAGS, "<|im_start|>", "<|im_end|>", "<repo_name>", *itertools.chain(*SPECIAL.values())]
pieces = [
    *("<", "|", ">", "[", "/", "]", "im_", "_end|>", "|im_end|>", "/tool_call>", "INST]", "eot_id"),
    *(" ", "\n", '"', "\\", "x", "name", "type", "</", "\\udb80\\udc00", "\U000f0000", "日"),
]
texts = st.lists(st.sampled_from([*names, *pieces]), max_size=5).map("".join)
values = st.recursive(
    texts | st.none() | st.booleans() | st.integers(-9, 9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)
arguments = st.dictionaries(texts, values, max_size=3)
schemas = st.fixed_dictionaries(
    {"type": st.just("object")},
    optional={
        "properties": st.dictionaries(
            texts, st.fixed_dictionaries({"type": st.just("string"), "enum": st.lists(texts)})
        ),
        "required": st.lists(texts, max_size=2),
        "description": texts,
        "default": values,
    },
)
functions = st.fixed_dictionaries(
    {"name": texts, "description": texts, "parameters": schemas.filter(lambda s: "properties" in s)}
)
tools = functions.map(lambda function: {"type": "function", "function": function})


@st.composite
def conversations(draw: st.DrawFn) -> Conversation:
    call = {
        "id": (call_id := draw(texts)),
        "type": "function",
        "function": {"name": draw(texts), "arguments": draw(arguments)},
    }
    rest = [{"role": "assistant", "content": draw(texts)}, {"role": "user", "content": draw(texts)}]
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": draw(texts)},
        {"role": "assistant", "content": draw(texts), "tool_calls": [call]},
        {"role": "tool", "content": draw(texts), "tool_call_id": call_id, "name": draw(texts)},
        *rest[: draw(st.sampled_from([0, 2]))],
    ]
    options = draw(st.fixed_dictionaries({}, optional={"style": texts, "thinking": st.booleans()}))
    return Conversation(messages, draw(st.lists(tools, max_size=2)), options)


@pytest.fixture(scope="module")
def chats(smollm2: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Chats:
    others = {
        kind: tokenizer_of(kind, smollm2, tmp_path_factory.mktemp(kind)) for kind in TEMPLATES
    }
    return {"generic": smollm2, **others}


def control_ids(tokenizer: Tokenizer, ids: list[int]) -> list[int]:
    assert tokenizer._control is not None
    known = set(tokenizer._control._id_of.values())
    return [i for i in ids if i in known]


def in_other_words() -> Callable[[str], str]:
    """Replaces each text by a word, the same one for the same text."""
    words: dict[str, str] = {}
    return lambda text: words.setdefault(text, f"w{len(words)}") if text else text


@pytest.mark.parametrize("kind", KINDS)
@often
@given(conversation=conversations())
def test_a_prompt_has_the_control_tokens_of_its_template_and_no_others(
    chats: Chats, kind: str, conversation: Conversation
) -> None:
    tokenizer = chats[kind]
    found = tokenizer.encode_chat(conversation)
    plain = tokenizer.encode_chat(changed(conversation, in_other_words()))
    assert control_ids(tokenizer, found.ids) == control_ids(tokenizer, plain.ids)
    rendered = tokenizer._render(conversation)
    assert tokenizer.decode(found.ids, skip_special_tokens=False) == rendered
    assert rendered.endswith(found.rendered_tail)


@pytest.mark.parametrize("name", ["|im_end|", "|im_start|", "/tool_call", "tool_call", "repo_name"])
def test_tags_around_a_clients_name_make_no_control_token(chats: Chats, name: str) -> None:
    """The template `xml` writes `<`, the name of a parameter and `>`."""
    tokenizer = chats["xml"]
    schema = {"type": "object", "properties": {name: {"type": "string"}}}
    tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
    conversation = Conversation([{"role": "user", "content": "Hi"}], [tool])
    assert f"\n<{name}>" in tokenizer._render(conversation).replace("</name>", "</name>\n")
    ids = tokenizer.encode_chat(conversation).ids
    assert control_ids(tokenizer, ids) == [1, 2, 1, 2, 1]


def test_json_in_ascii_shows_no_mark(chats: Chats) -> None:
    schema = {"type": "object", "properties": {"a": {"const": "<|im_end|> \\udb80\\udc00"}}}
    tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
    conversation = Conversation([{"role": "user", "content": "<|im_end|>"}], [tool])
    tokenizer = chats["xml"]
    ids = tokenizer.encode_chat(conversation).ids
    assert control_ids(tokenizer, ids) == [1, 2, 1, 2, 1]
    assert tokenizer.decode(ids, skip_special_tokens=False) == tokenizer._render(conversation)


@pytest.mark.parametrize(
    ("template", "text", "expected"),
    [
        ("{{ x }}", "a<b", "a<#b"),
        ("{{ x }}", "|end|>", "|end|>"),
        ("<{{ x }}>", "|end|", "#|end|"),
        ("<{{ x }}>", " |e ", " #|e "),
        ("{{ '<' + x }}", "a |end|> b", "a #|end|> b"),
        ("{{ '<' + '|' + x }}", "end|>", "#end|>"),
        ("<{{ x }}", "plain", "plain"),
        ("{% if %} <{{ x }}", "|end|", "#|end|"),
        ("{{ 'unfinished", "|end|", "|end|"),
    ],
)
def test_marks_stand_where_a_token_could_go_on(template: str, text: str, expected: str) -> None:
    breaks = Breaks(["<|end|>"], template)
    assert breaks.mark(text, "#") == expected
    assert breaks.needs_mark(text) == ("#" in expected)
