"""What a chat template writes of earlier calls is read as these calls, and is what the grammars of
calls let a model write: so the next prompt begins with the tokens of a constrained answer.

The templates are made up, one for each format, with the markup of that family of models.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from radixserve.grammar import compile_grammar
from radixserve.parsing.formats import FORMATS, detect_tool_format
from radixserve.parsing.layouts import CONSTRAINTS
from radixserve.parsing.parts import CallArguments, CallBegun, Part, Text
from radixserve.parsing.tool import Tool
from radixserve.text.conversation import Conversation
from tests.fakes import byte_tokenizer
from tests.grammar.accept import byte_vocabulary
from tests.parsing.transcripts import joined

# The words in capitals stand for pieces that several templates have.
PIECES = {
    "OBJECT": '{"name": "NAME", "arguments": JSON}',
    "EACH": "{% for call in message.tool_calls %}{% set f = call.function %}",
    "ONE": "{% set f = message.tool_calls[0].function %}",
    "KEYS": "{% for key, value in f.arguments.items() %}",
    "OVER": "{% endfor %}",
    "LINE": "{% if not loop.last %}\n{% endif %}",
    "COMMA": "{% if not loop.last %}, {% endif %}",
    "SEMICOLON": "{% if not loop.last %}; {% endif %}",
    "NAME": "{{ f.name }}",
    "JSON": "{{ f.arguments | tojson }}",
    "KEY": "{{ key }}",
    "PLAIN": "{{ value if value is string else value | tojson }}",
    "MIXED": "{{ value if value is string or value is boolean else value | tojson }}",
    "PYTHON": "{{ value if value is boolean else value | tojson }}",
}
CALLS = {
    "generic": "",
    "hermes": "EACH<tool_call>\nOBJECT\n</tool_call>LINEOVER",
    "qwen3_coder": (
        "EACH<tool_call>\n<function=NAME>\nKEYS<parameter=KEY>\nMIXED\n</parameter>\nOVER"
        "</function>\n</tool_call>LINEOVER"
    ),
    "seed_oss": (
        "EACH<seed:tool_call>\n<function=NAME>\nKEYS<parameter=KEY>PLAIN</parameter>\nOVER"
        "</function>\n</seed:tool_call>LINEOVER"
    ),
    "glm": (
        "EACH<tool_call>NAME\nKEYS<arg_key>KEY</arg_key>\n<arg_value>PLAIN</arg_value>\nOVER"
        "</tool_call>LINEOVER"
    ),
    "glm47": (
        "EACH<tool_call>NAMEKEYS<arg_key>KEY</arg_key><arg_value>PLAIN</arg_value>OVER"
        "</tool_call>OVER"
    ),
    "llama3_json": '{# <|python_tag|> #}EACH{"name": "NAME", "parameters": JSON}SEMICOLONOVER',
    "llama_pythonic": "{# <|python_start|> #}[EACHNAME(KEYSKEY=PYTHONCOMMAOVER)COMMAOVER]",
    "mistral": "[TOOL_CALLS][EACHOBJECTCOMMAOVER]",
    "mistral_args": "EACH[TOOL_CALLS]NAME[ARGS]JSONOVER",
    "deepseek": (
        "<｜tool▁calls▁begin｜>EACH<｜tool▁call▁begin｜>function<｜tool▁sep｜>NAME\n```json\nJSON\n"
        "```<｜tool▁call▁end｜>LINEOVER<｜tool▁calls▁end｜>"
    ),
    "deepseek_v31": (
        "<｜tool▁calls▁begin｜>EACH<｜tool▁call▁begin｜>NAME<｜tool▁sep｜>JSON<｜tool▁call▁end｜>OVER"
        "<｜tool▁calls▁end｜>"
    ),
    "kimi_k2": (
        "<|tool_calls_section_begin|>EACH<|tool_call_begin|>functions.NAME:{{ loop.index0 }}"
        "<|tool_call_argument_begin|>JSON<|tool_call_end|>OVER<|tool_calls_section_end|>"
    ),
    "minimax_m2": (
        '<minimax:tool_call>\nEACH<invoke name="NAME">\n'
        'KEYS<parameter name="KEY">PLAIN</parameter>\nOVER</invoke>\nOVER</minimax:tool_call>'
    ),
    "cohere": (
        '<|START_ACTION|>[\nEACH    {"tool_call_id": "{{ loop.index0 }}", "tool_name": "NAME", '
        '"parameters": JSON}{% if not loop.last %},{% endif %}\nOVER]<|END_ACTION|>'
    ),
    "lfm2": ("<|tool_call_start|>[EACHNAME(KEYSKEY=PYTHONCOMMAOVER)COMMAOVER]<|tool_call_end|>"),
    "harmony": "ONE to=functions.NAME<|channel|>commentary json<|message|>JSON",
}
TOLD = "{% if tools %}<turn>tools: {{ tools | tojson }}\n{% endif %}"


def template(name: str) -> str:
    calls = CALLS[name]
    for word, piece in PIECES.items():
        calls = calls.replace(word, piece)
    text = (
        f"{TOLD if calls else ''}"
        "{% for message in messages %}<turn>{{ message.role }}:{% if message.tool_calls %}"
        f"{calls}{{% else %}}{{{{ message.content }}}}{{% endif %}}\n{{% endfor %}}"
        "{% if add_generation_prompt %}<turn>assistant:{% endif %}"
    )
    return text.replace("\n", "{{ '\\n' }}")  # a line break behind a tag is left out


PLACE = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "days": {"type": "integer"},
        "exact": {"type": "boolean"},
        "at": {"type": "object", "properties": {"x": {"type": "array"}}},
    },
    "required": ["city"],
}
ZONE = {"type": "object", "properties": {"zone": {"type": "string"}}}
TOOLS = [Tool("place", PLACE), Tool("now", ZONE)]
CITY = 'São "Paulo"\n{<a>} \\'
TWO_CALLS: list[tuple[str, dict[str, Any]]] = [
    ("place", {"city": CITY, "days": -2, "exact": True, "at": {"x": [1.5, None, "]"]}}),
    ("now", {"zone": "UTC"}),
]


def written(name: str, calls: list[tuple[str, dict[str, Any]]]) -> str:
    """What the template of this format writes of an answer with these calls."""
    tokenizer = byte_tokenizer(chat_template=template(name)).tokenizer
    assert tokenizer.facts.has_tools == (name != "generic")
    functions = [
        {"id": f"call_{i}", "type": "function", "function": {"name": each, "arguments": arguments}}
        for i, (each, arguments) in enumerate(calls)
    ]
    tools = [
        {"type": "function", "function": {"name": tool.name, "parameters": tool.parameters}}
        for tool in TOOLS
    ]
    user = {"role": "user", "content": "x"}
    answer = {"role": "assistant", "content": "", "tool_calls": functions}
    result = {"role": "tool", "tool_call_id": "call_0", "name": calls[0][0], "content": "42"}

    def text(messages: list[dict[str, Any]]) -> str:
        ids = tokenizer.encode_chat(Conversation(messages, tools)).ids
        return tokenizer.decode(ids, skip_special_tokens=False)

    before, after = text([user]), text([user, answer, result])
    assert after.startswith(before)
    return after[len(before) :].split("\n<turn>")[0]


def calls_in(parts: list[Part]) -> list[tuple[str, Any]]:
    names = [part.name for part in parts if isinstance(part, CallBegun)]
    arguments = [json.loads(part.text) for part in parts if isinstance(part, CallArguments)]
    return [*zip(names, arguments, strict=True)]


@pytest.mark.parametrize("number", [1, 2], ids=["one", "two"])
@pytest.mark.parametrize("name", CALLS)
def test_calls_of_the_history_are_read_as_the_same_calls(name: str, number: int) -> None:
    calls = TWO_CALLS[: 1 if name == "harmony" else number]
    parser = FORMATS[name].parser(TOOLS)
    parts = joined(parser.push(written(name, calls)) + parser.finish())
    assert calls_in(parts) == calls
    assert [part for part in parts if isinstance(part, Text)] == []


@pytest.mark.parametrize("required", [True, False], ids=["required", "auto"])
@pytest.mark.parametrize("name", CALLS)
def test_calls_are_constrained_to_what_the_template_writes(name: str, required: bool) -> None:
    wanted = CONSTRAINTS[name].grammar(TOOLS, required=required, parallel=True, control={})
    if wanted is None:
        assert (name, required) == ("harmony", False)
        return
    calls = TWO_CALLS[: 1 if name == "harmony" else 2]
    matcher = compile_grammar(wanted, byte_vocabulary()).matcher()
    assert matcher.consume(list(written(name, calls).encode()))
    assert matcher.is_accepting


def test_every_format_has_a_template_that_tells_it() -> None:
    assert set(CALLS) == set(FORMATS)
    for name in CALLS:
        assert detect_tool_format(template(name)) == (None if name == "generic" else name)
