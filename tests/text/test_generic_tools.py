"""Tools in the text of messages, for templates that have no place for them."""

from __future__ import annotations

from typing import Any

import pytest

from radixserve.errors import BadRequest
from radixserve.text.conversation import Conversation
from radixserve.text.generic_tools import with_generic_tools
from radixserve.text.tokenizer import Tokenizer

Messages = list[dict[str, Any]]


def tool(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}}


def calls(*names: str) -> dict[str, Any]:
    return {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": f"id-{name}", "type": "function", "function": {"name": name, "arguments": {}}}
            for name in names
        ],
    }


def result(name: str, content: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": f"id-{name}", "content": content}


TOOLS = [tool("time"), tool("weather")]
SYSTEM = {"role": "system", "content": "Be brief."}
USER = {"role": "user", "content": "Hi"}
LOOP: Messages = [
    SYSTEM,
    USER,
    calls("time", "weather"),
    result("weather", "ra\nin"),
    result("time", "12"),
    {"role": "assistant", "content": "Noon, rain."},
    {**calls("time"), "content": "Again:"},
    {**result("time", "13"), "name": "clock"},
]


def text_of(tokenizer: Tokenizer, messages: Messages, tools: Messages = TOOLS) -> str:
    ids = tokenizer.encode_chat(Conversation(messages, tools)).ids
    return tokenizer.decode(ids, skip_special_tokens=False)


def test_the_embedded_model_reads_tools_calls_and_results(smollm2: Tokenizer) -> None:
    text = text_of(smollm2, LOOP)
    system, user, called, results, answer, again, last, _ = text.split("<|im_start|>")[1:]
    assert system.startswith("system\nYou can call tools.")
    assert '\n{"type": "function", "function": {"name": "weather", "param' in system
    assert system.endswith("\n\nBe brief.<|im_end|>\n")
    assert user == "user\nHi<|im_end|>\n"
    assert called == (
        'assistant\n<tool_call>{"name": "time", "arguments": {}}</tool_call>\n'
        '<tool_call>{"name": "weather", "arguments": {}}</tool_call><|im_end|>\n'
    )
    assert results == (
        'user\n<tool_response>{"name": "weather", "content": "ra\\nin"}</tool_response>\n'
        '<tool_response>{"name": "time", "content": "12"}</tool_response><|im_end|>\n'
    )
    assert answer == "assistant\nNoon, rain.<|im_end|>\n"
    assert again.startswith("assistant\nAgain:\n<tool_call>")
    assert last.startswith('user\n<tool_response>{"name": "clock", "content": "13"}')


def test_a_longer_conversation_begins_with_the_prompt_of_the_shorter_one(
    smollm2: Tokenizer,
) -> None:
    before = text_of(smollm2, LOOP[:2])
    for length in (5, 6, 8):
        after = text_of(smollm2, LOOP[:length])
        assert after.startswith(before.removesuffix("<|im_start|>assistant\n"))
        before = after


def test_history_with_calls_is_rendered_without_tools_too(smollm2: Tokenizer) -> None:
    text = text_of(smollm2, LOOP, [])
    assert "You can call tools" not in text
    assert text.count("<tool_call>") == 3


def test_a_template_without_system_messages_gets_the_tools_in_the_first_message(
    smollm2: Tokenizer,
) -> None:
    template = (
        "{% for m in messages %}{% if m.role not in ('user', 'assistant') %}"
        "{{ raise_exception('no such role') }}{% endif %}<|im_start|>{{ m.content }}{% endfor %}"
    )
    tokenizer = Tokenizer(smollm2._loaded, chat_template=template)
    assert not tokenizer.facts.has_system
    text = text_of(tokenizer, LOOP[1:3])
    assert text.startswith("<|im_start|>You can call tools.")
    assert text.endswith("</tool_call>")
    assert "\n\nHi<|im_start|><tool_call>" in text


def test_plain_conversations_stay_as_they_are(smollm2: Tokenizer) -> None:
    assert "tool" not in text_of(smollm2, [SYSTEM, USER], [])
    given = Conversation([USER, {"role": "assistant", "content": "Yes."}])
    assert with_generic_tools(given, has_system=True) == given


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [{"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]}],
        [{"role": "assistant", "tool_calls": ["x"]}],
        [{"role": "tool", "tool_call_id": "1"}],
        [{"content": "Hi"}],
    ],
)
def test_incomplete_messages_are_refused(smollm2: Tokenizer, messages: Messages) -> None:
    with pytest.raises(BadRequest, match="not complete") as refusal:
        smollm2.encode_chat(Conversation(messages, TOOLS))
    assert refusal.value.param == "messages"
