"""`--tool-parser` names a format that the chat template does not tell: calls are read in it over
every dialect, constrained in it, and the template still gets the tools.
"""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest

from radixserve.api.app import ApiSettings
from radixserve.api.context import Api
from radixserve.config import Settings
from radixserve.defaults import OPENAI
from radixserve.metrics import Metrics
from tests.api import test_messages_tools, test_responses_tools, test_tools
from tests.api.conftest import CHAT, MESSAGES, RESPONSES, Server
from tests.api.test_forced_calls import accepts, grammar_of
from tests.api.test_tools import WEATHER, answering
from tests.fakes import EOS, TEMPLATE, FakeEngine, LocalTokenizer, byte_tokenizer

CALLS = {
    "hermes": '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>',
    "qwen3_coder": "<tool_call>\n<function=weather>\n<parameter=city>\nRome\n</parameter>\n"
    "</function>\n</tool_call>",
    "seed_oss": "<seed:tool_call>\n<function=weather>\n<parameter=city>Rome</parameter>\n"
    "</function>\n</seed:tool_call>",
    "llama3_json": '{"name": "weather", "parameters": {"city": "Rome"}}',
    "llama_pythonic": '[weather(city="Rome")]',
    "mistral": '[TOOL_CALLS][{"name": "weather", "arguments": {"city": "Rome"}}]',
    "mistral_args": '[TOOL_CALLS]weather[ARGS]{"city": "Rome"}',
    "deepseek": "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n"
    '```json\n{"city": "Rome"}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
    "deepseek_v31": "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>"
    '{"city": "Rome"}<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
    "glm": "<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Rome</arg_value>\n</tool_call>",
    "glm47": "<tool_call>weather<arg_key>city</arg_key><arg_value>Rome</arg_value></tool_call>",
    "kimi_k2": "<|tool_calls_section_begin|><|tool_call_begin|>functions.weather:0"
    '<|tool_call_argument_begin|>{"city": "Rome"}<|tool_call_end|><|tool_calls_section_end|>',
    "minimax_m2": '<minimax:tool_call>\n<invoke name="weather">\n'
    '<parameter name="city">Rome</parameter>\n</invoke>\n</minimax:tool_call>',
    "cohere": '<|START_ACTION|>[\n    {"tool_call_id": "0", "tool_name": "weather", "parameters": '
    '{"city": "Rome"}}\n]<|END_ACTION|>',
    "lfm2": '<|tool_call_start|>[weather(city="Rome")]<|tool_call_end|>',
    "generic": '<tool_call>{"name": "weather", "arguments": {"city": "Rome"}}</tool_call>',
}
ASKING: dict[str, Any] = {
    CHAT: test_tools.asking,
    RESPONSES: test_responses_tools.asking,
    MESSAGES: test_messages_tools.asking,
}


@pytest.fixture(scope="module")
def tokenizer() -> LocalTokenizer:
    """Its template has a place for tools, and tells no format."""
    return byte_tokenizer(
        chat_template="{% for t in tools %}{{ t | tojson }}{% endfor %}" + TEMPLATE
    )


@pytest.fixture(params=CALLS)
def settings(request: pytest.FixtureRequest) -> ApiSettings:
    """Those of a server that was started with the flag."""
    return ApiSettings.of(Settings(tool_parser=request.param), OPENAI)


@pytest.mark.parametrize("path", ASKING)
async def test_calls_are_read_in_the_format_that_the_setting_names(
    server: Server, settings: ApiSettings, path: str
) -> None:
    answering(server, CALLS[settings.tool_parser])
    status, answer = await server.post(path, ASKING[path]())
    assert (status, calls_of(path, answer)) == (200, [("weather", {"city": "Rome"})])
    prompt = bytes(token for token in server.engine.seen[-1].prompt_ids if token < EOS).decode()
    assert prompt.startswith('{"type": "function", "function": {"name": "weather"')


async def test_calls_that_have_to_come_are_constrained_in_that_format(
    server: Server, settings: ApiSettings, tokenizer: LocalTokenizer
) -> None:
    grammar = await grammar_of(server, tools=[WEATHER], tool_choice="required")
    assert grammar is not None
    assert [name for name in CALLS if accepts(tokenizer, grammar, CALLS[name])] == [
        settings.tool_parser
    ]


def calls_of(path: str, answer: Any) -> list[tuple[str, Any]]:
    if path == MESSAGES:
        return [(part["name"], part["input"]) for part in answer["content"] if "input" in part]
    if path == RESPONSES:
        calls = [item for item in answer["output"] if item["type"] == "function_call"]
    else:
        message = answer["choices"][0]["message"]
        calls = [call["function"] for call in message.get("tool_calls", [])]
    return [(call["name"], json.loads(call["arguments"])) for call in calls]


@pytest.mark.parametrize(
    ("name", "is_warned"),
    [("auto", False), ("hermes", False), ("generic", False), ("mistral", True)],
)
def test_a_format_that_the_model_is_not_told_of_is_warned_of(
    name: str, is_warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    settings = ApiSettings.of(Settings(tool_parser=name), OPENAI)  # type: ignore[arg-type]
    Api.of(FakeEngine(), byte_tokenizer(), Metrics("m"), settings, ("m",)).threads.close()
    assert ("tool_parser" in caplog.text) == is_warned
