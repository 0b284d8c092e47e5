"""What is found out about chat templates, and what they are given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tokenizers

from radixserve.errors import BadRequest
from radixserve.text.conversation import Conversation
from radixserve.text.probes import drops_reasoning, try_template
from radixserve.text.templates import ChatTemplate
from radixserve.text.tokenizer import Tokenizer
from tests.text.conftest import load_saved
from tests.text.templates import TEMPLATES, tokenizer_of

USER = {"role": "user", "content": "Hi"}
TOOL = {"type": "function", "function": {"name": "time", "parameters": {"type": "object"}}}
CALL = {"id": "call_1", "type": "function", "function": {"name": "time", "arguments": {"a": "ä"}}}
LOOP: list[dict[str, Any]] = [
    USER,
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "12", "tool_call_id": "call_1"},
]


def template(smollm2: Tokenizer, text: str) -> ChatTemplate:
    return ChatTemplate(smollm2._loaded, text)


@pytest.mark.parametrize(
    ("kind", "has_system", "wants_text_and_short_ids"),
    [
        ("hermes", True, False),
        ("llama", True, False),
        ("mistral", False, True),
        ("xml", True, False),
    ],
)
def test_a_template_shows_what_it_can_do(
    smollm2: Tokenizer,
    tmp_path: Path,
    kind: str,
    has_system: bool,
    wants_text_and_short_ids: bool,
) -> None:
    facts = tokenizer_of(kind, smollm2, tmp_path).facts
    assert (facts.has_tools, facts.has_system) == (True, has_system)
    assert facts.wants_argument_text == wants_text_and_short_ids
    assert facts.wants_short_ids == wants_text_and_short_ids


def test_the_embedded_models_template_has_no_place_for_tools(smollm2: Tokenizer) -> None:
    facts = smollm2.facts
    assert (facts.has_tools, facts.has_system, facts.drops_reasoning) == (False, True, False)


def test_calls_are_written_in_the_form_that_the_template_wants(
    smollm2: Tokenizer, tmp_path: Path
) -> None:
    text = tokenizer_of("mistral", smollm2, tmp_path)._render(Conversation(LOOP, [TOOL]))
    [short] = {part.partition('"')[0] for part in text.split('id": "')[1:]}
    assert len(short) == 9
    assert text.startswith(
        '<s>[INST] Hi[/INST][TOOL_CALLS] [{"name": "time", "arguments": {"a": "ä"}'
    )
    kept = [{**LOOP[1], "tool_calls": [{**CALL, "id": "abc123XYZ"}]}]
    again = tokenizer_of("mistral", smollm2, tmp_path)._render(Conversation(kept))
    assert '"id": "abc123XYZ"' in again


def test_arguments_that_are_text_already_stay_text(smollm2: Tokenizer, tmp_path: Path) -> None:
    function = {"name": "time", "arguments": "{broken"}
    messages = [{"role": "assistant", "tool_calls": [{**CALL, "function": function}]}]
    text = tokenizer_of("mistral", smollm2, tmp_path)._render(Conversation(messages))
    assert '"arguments": {broken, "id"' in text


def test_the_template_for_tools_is_used_when_there_are_tools(
    smollm2: Tokenizer, tmp_path: Path
) -> None:
    named = {
        "default": "plain {{ messages[0].content }}",
        "tool_use": "{{ tools | tojson if tools }} tools {{ messages[0].content }}",
    }
    backend = tokenizers.Tokenizer.from_str(smollm2._backend.to_str())
    tokenizer = load_saved(backend, tmp_path, chat_template=named)
    assert tokenizer.template.text == named["tool_use"]
    assert tokenizer.facts.has_tools
    assert tokenizer._render(Conversation([USER])) == "plain Hi"
    assert tokenizer._render(Conversation([USER], [TOOL])).endswith("] tools Hi")
    assert tokenizer._render(Conversation(LOOP)) == " tools Hi"


def test_options_and_documents_reach_the_template(smollm2: Tokenizer) -> None:
    rendered = template(
        smollm2, "{{ enable_thinking }} {{ reasoning_effort }} {{ documents[0].title }}"
    ).render(
        Conversation(
            [USER],
            options={"enable_thinking": False, "reasoning_effort": "low"},
            documents=[{"title": "T"}],
        )
    )
    assert rendered == "False low T"


@pytest.mark.parametrize("name", ["messages", "tools", "tokenize", "chat_template", "no name", ""])
def test_options_cannot_replace_what_the_server_passes(smollm2: Tokenizer, name: str) -> None:
    with pytest.raises(BadRequest, match="cannot set") as refusal:
        smollm2.encode_chat(Conversation([USER], options={name: True}))
    assert refusal.value.param == f"chat_template_kwargs.{name}"


def test_the_growth_of_a_prompt_counts_all_that_the_client_wrote(smollm2: Tokenizer) -> None:
    doubles = template(smollm2, "{{ tools | tojson }}" * 3 + "{{ messages[0].content * 9 }}")
    large = {"type": "function", "function": {"name": "f", "description": "d" * 2_000_000}}
    assert len(doubles.render(Conversation([USER], [large]))) > 6_000_000
    with pytest.raises(BadRequest, match="more than the limit"):
        doubles.render(Conversation([{"role": "user", "content": "u" * 2_000_000}]))


def test_deep_values_are_refused(smollm2: Tokenizer) -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(BadRequest, match=r"cannot render these messages \(RecursionError\)"):
        smollm2.encode_chat(Conversation([USER], options={"deep": deep}))


KEEPS = "{% for m in messages %}<think>{{ m.reasoning_content }}</think>{{ m.content }}{% endfor %}"
LAST_ONLY = (
    "{% for m in messages %}{% if loop.last %}<think>{{ m.reasoning_content }}</think>{% endif %}"
    "{{ m.content }}{% endfor %}"
)
NONE = "{% for m in messages %}{{ m.content }}{% endfor %}"


@pytest.mark.parametrize(("text", "drops"), [(KEEPS, False), (LAST_ONLY, True), (NONE, False)])
def test_a_template_that_drops_earlier_reasoning_is_known(
    smollm2: Tokenizer, text: str, drops: bool
) -> None:
    assert drops_reasoning(template(smollm2, text)) == drops
    assert try_template(template(smollm2, text)).drops_reasoning == drops


def test_the_end_of_the_rendered_text_shows_open_reasoning(
    smollm2: Tokenizer, tmp_path: Path
) -> None:
    assert TEMPLATES["xml"].count("<think>") == 1
    tokenizer = tokenizer_of("xml", smollm2, tmp_path)
    tail = tokenizer.encode_chat(
        Conversation([{"role": "user", "content": "x" * 99}])
    ).rendered_tail
    assert tail.endswith("x<|im_end|>\n<|im_start|>assistant\n<think>\n")
    assert len(tail) == 64
