"""Properties of items: what an answer becomes, streamed or whole, and what it means when it is sent
back.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from openai.types.responses import ResponseOutputItem, ResponseStreamEvent
from pydantic import TypeAdapter

from radixserve.api.openai.responses.events import EventWriter
from radixserve.api.openai.responses.items import conversation_of
from radixserve.api.openai.responses.output import Output
from radixserve.api.openai.responses.translate import translate
from radixserve.api.openai.responses.wire import ResponsesBody
from radixserve.errors import BadRequest
from radixserve.front.stream import joined
from radixserve.parsing.parts import CallArguments, CallBegun, CallEnded, Part, Reasoning, Text

EVENTS: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
ITEMS: TypeAdapter[Any] = TypeAdapter(list[ResponseOutputItem])

words = st.text(max_size=8)
# Pieces of one kind of content, of one reasoning, or of one call.
texts = st.lists(st.text(min_size=1, max_size=5), min_size=1, max_size=3)
turns = st.lists(
    st.tuples(st.sampled_from(["text", "reasoning", "function", "custom"]), texts, st.booleans()),
    max_size=5,
)


def parts_of(turn: list[tuple[str, list[str], bool]]) -> list[Part]:
    """The parts of an answer; a call may lack its end."""
    parts: list[Part] = []
    for i, (kind, pieces, is_complete) in enumerate(turn):
        if kind == "text":
            parts += [Text(piece) for piece in pieces]
        elif kind == "reasoning":
            parts += [Reasoning(piece) for piece in pieces]
        else:
            parts.append(CallBegun(i, f"call_{i}", kind))
            arguments = json.dumps({"input": "".join(pieces)})
            parts += [CallArguments(i, arguments[:3]), CallArguments(i, arguments[3:])]
            parts += [CallEnded(i)] * is_complete
    return parts


def items_of(parts: list[Part], **more: bool) -> tuple[list[Any], bytes]:
    """The items that the parts become, each pushed alone, and all events."""
    output = Output(EventWriter(), "x", frozenset({"custom"}))
    output.seals_reasoning = more.get("seals", False)
    output.summarises = more.get("summarises", False)
    events = b"".join([output.push([part], []) for part in parts])
    events += output.finish(is_complete=True)
    return msgspec.to_builtins(output.items), events


@given(turns, st.booleans(), st.booleans())
def test_an_answer_is_the_same_in_pieces_and_whole_and_every_event_is_known(
    turn: list[tuple[str, list[str], bool]], seals: bool, summarises: bool
) -> None:
    parts = parts_of(turn)
    items, events = items_of(parts, seals=seals, summarises=summarises)
    whole, _ = items_of(joined(parts), seals=seals, summarises=summarises)
    assert items == whole
    ITEMS.validate_python(items, strict=True)
    lines = [line for line in events.decode().split("\n") if line.startswith("data: ")]
    told = [json.loads(line.removeprefix("data: ")) for line in lines]
    for number, event in enumerate(told):
        EVENTS.validate_python(event, strict=True)
        assert event["sequence_number"] == number
    assert [e["item"] for e in told if e["type"] == "response.output_item.done"] == items
    added = [e["output_index"] for e in told if e["type"] == "response.output_item.added"]
    assert added == list(range(len(items)))


@given(turns, st.booleans())
def test_an_answer_that_is_sent_back_says_what_was_answered(
    turn: list[tuple[str, list[str], bool]], summarises: bool
) -> None:
    parts = parts_of(turn)
    items, _ = items_of(parts, seals=True, summarises=summarises)
    body = ResponsesBody(input=[{"role": "user", "content": "a"}, *items])
    _, *sent = conversation_of(body, ignore_unknown=False).messages
    assert {message.role for message in sent} == {"assistant"}
    lists = [each.content for each in sent if isinstance(each.content, list)]
    contents = [part.text or "" for content in lists for part in content]
    assert "".join(contents) == "".join(part.text for part in parts if isinstance(part, Text))
    reasoning = "".join(each.reasoning_content or "" for each in sent)
    assert reasoning == "".join(part.text for part in parts if isinstance(part, Reasoning))
    calls = [call for each in sent for call in each.tool_calls or ()]
    assert [call.id for call in calls] == [p.id for p in parts if isinstance(p, CallBegun)]
    assert all(call.function and json.loads(str(call.function.arguments)) for call in calls)


NAMES = ["type", "role", "content", "id", "call_id", "name", "arguments", "input", "output",
         "summary", "text", "encrypted_content", "status", "what"]  # fmt: skip
WORDS = ["message", "function_call", "function_call_output", "custom_tool_call", "reasoning",
         "item_reference", "input_text", "output_text", "user", "assistant", "x"]  # fmt: skip
leaves = st.none() | st.sampled_from(WORDS) | st.integers() | st.booleans()
members = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4)
    ),
    max_leaves=6,
)


@given(st.lists(st.dictionaries(st.sampled_from(NAMES), members, max_size=6), max_size=3))
def test_whatever_the_items_are_they_are_translated_or_refused_by_name(
    items: list[dict[str, Any]],
) -> None:
    refused: BadRequest | None = None
    try:
        translation = translate(ResponsesBody(input=items))
    except BadRequest as refusal:
        refused = refusal
    if refused is not None:
        assert (refused.param or "").startswith("input")
        return
    for i, message in enumerate(translation.chat.messages):
        fields = ["content[0].text", "role", "tool_call_id", "reasoning_content"]
        fields += [f"tool_calls[{k}].function.name" for k, _ in enumerate(message.tool_calls or ())]
        for field in fields:
            place = translation.conversation.source_of(f"messages[{i}].{field}")
            assert place is not None
            assert place.startswith("input[")
