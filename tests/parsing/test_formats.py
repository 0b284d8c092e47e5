"""Which format a chat template belongs to, and what formats promise."""

from __future__ import annotations

import re
from typing import get_args

import pytest

from radixserve.config import ReasoningParser, ToolParser
from radixserve.parsing.formats import FORMATS, detect_tool_format, parser
from radixserve.parsing.parser import PlainParser
from radixserve.parsing.parts import CallArguments, CallBegun, CallEnded
from radixserve.parsing.reasoning import REASONING_FORMATS, detect_reasoning
from tests.parsing.cases import WEATHER
from tests.parsing.transcripts import TOOLS, Setup

TEMPLATES = {
    "hermes": "{% if tools %}within <tool_call></tool_call> tags: <tool_call>{{ call }}{% endif %}",
    "qwen3_coder": "<tool_call>\n<function=name>\n<parameter=key>{{ value }}</parameter>",
    "seed_oss": "<seed:tool_call>\n<function=name>\n<parameter=key>{{ value }}</parameter>",
    "glm": "<tool_call>{{ name }}\n<arg_key>{{ key }}</arg_key>",
    "glm47": "<tool_call>{{ name }}<arg_key>{{ key }}</arg_key><arg_value>{{ value }}",
    "llama3_json": "{{ '<|python_tag|>' }} {{ tools }}",
    "llama_pythonic": "<|python_start|>[{{ calls }}]<|python_end|>",
    "mistral": "[AVAILABLE_TOOLS]{{ tools }}[/AVAILABLE_TOOLS] [TOOL_CALLS]",
    "mistral_args": "{{ tools }} [TOOL_CALLS]{{ name }}[ARGS]{{ arguments }}",
    "deepseek": "<｜tool▁calls▁begin｜>{{ type }}<｜tool▁sep｜>{{ name }}\n```json\n",
    "deepseek_v31": "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>{{ name }}<｜tool▁sep｜>",
    "kimi_k2": "<|tool_calls_section_begin|><|tool_call_begin|>{{ id }}"
    "<|tool_call_argument_begin|>{{ arguments }}<|tool_call_end|>",
    "minimax_m2": "{{ '<minimax:tool_call>' }}\n<invoke name=\"tool-name\">",
    "cohere": '<|START_ACTION|>[ {"tool_call_id": "0", "tool_name": "{{ name }}"}]<|END_ACTION|>',
    "lfm2": '{{ "<|tool_call_start|>[" + calls + "]<|tool_call_end|>" }}',
    "harmony": "<|start|>assistant<|channel|>final<|message|>{{ content }}<|return|>",
}


@pytest.mark.parametrize(("name", "template"), TEMPLATES.items())
def test_a_template_tells_its_format(name: str, template: str) -> None:
    assert detect_tool_format(template) == name


def test_every_format_is_detected_but_the_generic_one_which_is_ours() -> None:
    assert set(TEMPLATES) == set(FORMATS) - {"generic"}


def test_the_settings_take_exactly_these_names() -> None:
    assert get_args(ToolParser) == ("auto", *FORMATS)
    assert get_args(ReasoningParser) == ("auto", "none", *REASONING_FORMATS)


def test_a_template_without_a_place_for_tools_has_no_format() -> None:
    assert detect_tool_format("<|im_start|>{{ role }}\n{{ content }}<|im_end|>") is None
    assert detect_reasoning("<|im_start|>{{ role }}\n{{ content }}<|im_end|>") is None


@pytest.mark.parametrize(
    "template",
    [
        "]<]minimax[>[<tool_call>\n]<]minimax[>[<invoke name={{ name }}>",
        "<tool_call></tool_call> <tool_calls>[{{ calls }}]</tool_calls>",
        "<|python_tag|> <function={{ name }}>{{ arguments }}</function>",
    ],
)
def test_signs_of_a_known_format_may_stand_in_templates_of_others(template: str) -> None:
    assert detect_tool_format(template) is None


@pytest.mark.parametrize("name", REASONING_FORMATS)
def test_a_template_tells_its_reasoning_by_either_marker(name: str) -> None:
    each = REASONING_FORMATS[name]
    assert detect_reasoning(f"{{{{ x }}}}{each.begin}") is each
    if name != "harmony":
        assert detect_reasoning(f"{{{{ content.split('{each.end}') }}}}") is each


@pytest.mark.parametrize("name", REASONING_FORMATS)
def test_a_prompt_tells_whether_it_opened_the_reasoning(name: str) -> None:
    each = REASONING_FORMATS[name]
    assert each.opened_by(f"assistant\n{each.begin}\n")
    assert not each.opened_by(f"assistant\n{each.begin}\n\n{each.end}\n\n")
    assert not each.opened_by("assistant\n")


def test_text_of_a_model_without_markup_passes_unread() -> None:
    assert isinstance(parser(None, TOOLS), PlainParser)
    assert isinstance(parser(FORMATS["hermes"]), PlainParser)


@pytest.mark.parametrize("name", FORMATS)
def test_ids_have_the_form_that_templates_accept(name: str) -> None:
    assert re.fullmatch(
        "[a-zA-Z0-9]{9}" if name.startswith("mistral") else "call_[a-f0-9]{24}", new_id(name)
    )
    assert new_id(name) != new_id(name)


def new_id(name: str) -> str:
    return FORMATS[name].new_id()


def test_the_ids_of_kimi_are_the_models_own_unless_it_repeats_one() -> None:
    call = "<|tool_call_begin|>functions.now:3<|tool_call_argument_begin|>{}<|tool_call_end|>"
    each = FORMATS["kimi_k2"].parser(TOOLS)
    parts = each.push(call * 2) + each.finish()
    first, second = [part.id for part in parts if isinstance(part, CallBegun)]
    assert first == "functions.now:3"
    assert re.fullmatch("call_[a-f0-9]{24}", second)


def test_arguments_are_handed_on_as_they_arrive() -> None:
    each = FORMATS["hermes"].parser(TOOLS)
    begun, arguments, ended = [], [], []
    for number, char in enumerate(f"<tool_call>{WEATHER}</tool_call>"):
        for part in each.push(char):
            match part:
                case CallBegun():
                    begun.append(number)
                case CallArguments(_, text):
                    arguments.append((number, text))
                case CallEnded():
                    ended.append(number)
    start = len('<tool_call>{"name": "get_weather", "arguments": ')
    assert begun == [start]
    assert arguments == [(start + n, char) for n, char in enumerate('{"city": "Paris"}')]
    assert ended == [arguments[-1][0]]


@pytest.mark.parametrize("name", ["qwen3_coder", "glm"])
def test_text_values_between_tags_are_handed_on_as_they_arrive(name: str) -> None:
    opening = {
        "qwen3_coder": "<function=get_weather><parameter=city>\n",
        "glm": "<tool_call>get_weather<arg_key>city</arg_key><arg_value>",
    }[name]
    each = Setup(name).parser()
    each.push(opening)
    assert each.push('a "b') == [CallArguments(0, r"a \"b")]
    assert each.push(" c <") == [CallArguments(0, " c ")]
    assert each.push("d") == [CallArguments(0, "<d")]


def test_literals_are_handed_on_as_they_arrive() -> None:
    each = Setup("llama_pythonic").parser()
    each.push("[get_weather(city=[")
    assert each.push("1, 'a") == [CallArguments(0, '1, "a')]


def test_markers_are_spelled_without_white_space() -> None:
    """Each may be one token of a vocabulary."""
    markers = {marker for each in FORMATS.values() for marker in each.markers}
    markers |= {marker for each in REASONING_FORMATS.values() for marker in each.markers}
    assert [marker for marker in markers if not re.fullmatch(r"\S+", marker)] == []
