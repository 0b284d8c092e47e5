"""Custom tools of Responses whose input has a grammar, in every format of calls."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from radixserve.api.app import ApiSettings
from radixserve.parsing.formats import FORMATS
from radixserve.request import Grammar
from tests.api.conftest import RESPONSES, Server, body_for
from tests.api.test_forced_calls import accepts
from tests.api.test_responses import ask
from tests.api.test_responses_tools import WEATHER, answering, prompt_of
from tests.fakes import LocalTokenizer
from tests.grammar.test_quoted_lark import CHANGES, PATCH

LARK = {"type": "grammar", "syntax": "lark", "definition": CHANGES}
WORDS = {"type": "grammar", "syntax": "lark", "definition": "start: /[a-z]+/"}
BROKEN = PATCH.replace("<<<", "<<")


def tool(form: dict[str, Any]) -> dict[str, Any]:
    return {"type": "custom", "name": "change", "description": "Changes files", "format": form}


def asking(form: dict[str, Any] = LARK, **more: Any) -> dict[str, Any]:
    body = body_for(RESPONSES, tools=[tool(form), WEATHER], **more)
    return body | {"max_output_tokens": 400}


def call_of(name: str, text: str) -> str:
    """How a model with this format calls the tool with a text."""
    written = json.dumps(text, ensure_ascii=False)
    function = f"change>\n<parameter=input>\n{text}\n</parameter>\n</function>"
    return {
        "hermes": f'<tool_call>\n{{"name": "change", "arguments": {{"input": {written}}}}}\n'
        "</tool_call>",
        "generic": f'<tool_call>{{"name": "change", "arguments": {{"input": {written}}}}}'
        "</tool_call>",
        "qwen3_coder": f"<tool_call>\n<function={function}\n</tool_call>",
        "seed_oss": f"<seed:tool_call>\n<function={function}\n</seed:tool_call>".replace(
            "input>\n", "input>"
        ).replace("\n</par", "</par"),
        "llama3_json": f'{{"name": "change", "parameters": {{"input": {written}}}}}',
        "llama_pythonic": f"[change(input={written})]",
        "mistral": f'[TOOL_CALLS][{{"name": "change", "arguments": {{"input": {written}}}}}]',
        "mistral_args": f'[TOOL_CALLS]change[ARGS]{{"input": {written}}}',
        "deepseek": "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>change\n"
        f'```json\n{{"input": {written}}}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
        "deepseek_v31": "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>change<｜tool▁sep｜>"
        f'{{"input": {written}}}<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
        "glm": f"<tool_call>change\n<arg_key>input</arg_key>\n<arg_value>{text}</arg_value>\n"
        "</tool_call>",
        "glm47": f"<tool_call>change<arg_key>input</arg_key><arg_value>{text}</arg_value>"
        "</tool_call>",
        "kimi_k2": "<|tool_calls_section_begin|><|tool_call_begin|>functions.change:12"
        f'<|tool_call_argument_begin|>{{"input": {written}}}<|tool_call_end|>'
        "<|tool_calls_section_end|>",
        "minimax_m2": '<minimax:tool_call>\n<invoke name="change">\n'
        f'<parameter name="input">{text}</parameter>\n</invoke>\n</minimax:tool_call>',
        "cohere": '<|START_ACTION|>[\n    {"tool_call_id": "0", "tool_name": "change", '
        f'"parameters": {{"input": {written}}}}}\n]<|END_ACTION|>',
        "lfm2": f"<|tool_call_start|>[change(input={written})]<|tool_call_end|>",
        "harmony": " to=functions.change<|channel|>commentary json<|message|>"
        f'{{"input": {written}}}',
    }[name]


@pytest.fixture(autouse=True)
def room(server: Server) -> None:
    """The context that a description of tools needs."""
    assert server.engine.info is not None
    more = {"context_length": 8192, "max_request_tokens": 8192}
    server.engine.info = msgspec.structs.replace(server.engine.info, **more)


async def grammar_of(server: Server, text: str, **more: Any) -> tuple[Grammar | None, Any]:
    """The grammar of a request, and the answer if the model writes `text`."""
    answering(server, text)
    answer = await ask(server, asking(**more))
    return server.engine.seen[-1].sampling.grammar, answer


class TestEveryFormat:
    @pytest.fixture(params=FORMATS)
    def settings(self, request: pytest.FixtureRequest) -> ApiSettings:
        return ApiSettings(tool_parser=request.param)

    async def test_the_input_matches_the_grammar_and_is_read_as_it_is(
        self, server: Server, settings: ApiSettings, tokenizer: LocalTokenizer
    ) -> None:
        name = settings.tool_parser
        for choice in ("required", "auto"):
            call = call_of(name, PATCH)
            grammar, answer = await grammar_of(server, call, tool_choice=choice)
            (item,) = answer.output
            assert (item.type, item.name, item.input) == ("custom_tool_call", "change", PATCH)
            assert accepts(tokenizer, grammar, call)
            if grammar is not None:
                assert not accepts(tokenizer, grammar, call_of(name, BROKEN))
            else:
                assert (name, choice) == ("harmony", "auto")


async def test_the_model_is_told_the_grammar(server: Server) -> None:
    await grammar_of(server, "ok")
    assert '>>> end\\" LF?' in prompt_of(server).replace("\\\\", "\\")


async def test_a_regular_expression_counts_as_before(
    server: Server, tokenizer: LocalTokenizer
) -> None:
    form = {"type": "grammar", "syntax": "regex", "definition": "[a-z]+"}
    grammar, _ = await grammar_of(server, "ok", form=form, tool_choice="required")
    assert accepts(tokenizer, grammar, call_of("generic", "abc"))
    assert not accepts(tokenizer, grammar, call_of("generic", "ABC"))


async def test_other_tools_are_called_beside_it(server: Server, tokenizer: LocalTokenizer) -> None:
    grammar, _ = await grammar_of(server, "ok", form=WORDS)
    weather = '<tool_call>{"name": "weather", "arguments": {"city": "Rome"}}</tool_call>'
    words = call_of("generic", "abc")
    for text in ("hello", weather, f"{words}\n{weather}\n{words}"):
        assert accepts(tokenizer, grammar, text)
    assert not accepts(tokenizer, grammar, f"{weather}\n{call_of('generic', '123')}")


@pytest.mark.parametrize(
    ("form", "code", "param", "words"),
    [
        (LARK | {"syntax": "ebnf"}, "unsupported_parameter", "tools[0].format", "'lark'"),
        (LARK | {"definition": None}, "unsupported_parameter", "tools[0].format", "'definition'"),
        (LARK | {"type": "xml"}, "unsupported_parameter", "tools[0].format", "'lark'"),
        (LARK | {"definition": 1}, "invalid_type", "tools[0].format.definition", ""),
        (LARK | {"definition": ""}, "invalid_value", "tools", "start"),
        (LARK | {"definition": "start: x"}, "invalid_value", "tools", "'change': The grammar"),
        (LARK | {"definition": "start: <|x|>"}, "unsupported_parameter", "tools", "<|x|>"),
        (LARK | {"definition": "start: /[a/"}, "invalid_value", "tools", "not valid"),
        (LARK | {"definition": "start: /\\bx/"}, "unsupported_parameter", "tools", "\\b"),
    ],
)
async def test_a_grammar_that_cannot_be_honoured_is_refused_by_name(
    server: Server, form: dict[str, Any], code: str, param: str, words: str
) -> None:
    for choice in ("auto", "required"):
        status, answer = await server.post(RESPONSES, asking(form, tool_choice=choice))
        assert (status, answer["error"]["code"], answer["error"]["param"]) == (400, code, param)
        assert words in answer["error"]["message"]
    grammar, _ = await grammar_of(server, "ok")
    assert grammar is not None
