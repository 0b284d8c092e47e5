"""Bad bodies: each gets its refusal on every endpoint it applies to, and the next good request its
usual answer.
"""

from __future__ import annotations

import gzip
import json
from typing import Any

import msgspec
import pytest

from radixserve.api.openai.responses.wire import ResponsesBody
from radixserve.api.openai.wire import AS_IF_ABSENT, ChatBody, CompletionBody
from radixserve.text.templates import ChatTemplate
from tests.api.conftest import (
    CHAT,
    COMPLETIONS,
    MODEL,
    OPENAI_DIALECT,
    RESPONSES,
    Server,
    body_for,
    limit_of,
    reference,
    text_of,
)
from tests.fakes import LocalTokenizer

BOTH = (CHAT, COMPLETIONS)
INPUT_TOKENS = f"{RESPONSES}/input_tokens"
ALL = (*OPENAI_DIALECT, INPUT_TOKENS, "/tokenize", "/detokenize")
BODY_TYPES: dict[str, type[msgspec.Struct]] = {
    CHAT: ChatBody,
    COMPLETIONS: CompletionBody,
    RESPONSES: ResponsesBody,
}

NOT_JSON = {
    "empty": b"",
    "braces": b"{{{",
    "list": b"[]",
    "null": b"null",
    "string": b'"x"',
    "invalid UTF-8": b'{"model": "\xff"}',
    "UTF-16": '{"model": "x"}'.encode("utf-16"),
    "byte order mark": b'\xef\xbb\xbf{"model": "x"}',
    "surrogate": b'{"model": "\\ud800"}',
    "surrogate in a key": b'{"\\udfff": 1}',
    "NaN": b'{"model": NaN}',
    "Infinity": b'{"model": -Infinity}',
}


# field, value, code, and the name the answer gives if it is not the field's
def _missing(param: str) -> tuple[str, str]:
    return "missing_required_parameter", param


def _invalid(param: str) -> tuple[str, str]:
    return "invalid_type", param


USER = {"role": "user", "content": "a"}

# field, value, code, and the name the answer gives if it is not the field
FIELDS: list[tuple[Any, ...]] = [
    ("max_tokens", True, "invalid_type"),
    ("max_tokens", 10.0, "invalid_type"),
    ("max_tokens", "10", "invalid_type"),
    ("max_tokens", -1, "integer_below_min_value"),
    ("max_tokens", 2**63, "integer_above_max_value"),
    ("max_tokens", 10**100, "integer_above_max_value"),
    ("n", 0, "integer_below_min_value"),
    ("n", -1, "integer_below_min_value"),
    ("n", 17, "integer_above_max_value"),
    ("n", 10**9, "integer_above_max_value"),
    ("n", True, "invalid_type"),
    ("temperature", -1, "decimal_below_min_value"),
    ("temperature", 2.01, "decimal_above_max_value"),
    ("temperature", "1", "invalid_type"),
    ("temperature", False, "invalid_type"),
    ("top_p", 0, "decimal_below_min_value"),
    ("top_p", -0.1, "decimal_below_min_value"),
    ("top_p", 1.1, "decimal_above_max_value"),
    ("top_k", -2, "integer_below_min_value"),
    ("top_k", 1.5, "invalid_type"),
    ("min_p", -0.1, "decimal_below_min_value"),
    ("min_p", 1.1, "decimal_above_max_value"),
    ("presence_penalty", 3, "decimal_above_max_value"),
    ("presence_penalty", -3, "decimal_below_min_value"),
    ("frequency_penalty", 3, "decimal_above_max_value"),
    ("repetition_penalty", 0, "decimal_below_min_value"),
    ("repetition_penalty", 2.5, "decimal_above_max_value"),
    ("seed", "7", "invalid_type"),
    ("seed", 2**63, "integer_above_max_value"),
    ("seed", -(2**63) - 1, "integer_below_min_value"),
    ("min_tokens", -1, "integer_below_min_value"),
    ("min_tokens", 5, "integer_above_max_value"),
    ("ignore_eos", 1, "invalid_type"),
    ("stop", list("abcde"), "array_above_max_length"),
    ("stop", "", "invalid_value"),
    ("stop", ["a", ""], "invalid_value"),
    ("stop", "x" * 20_000, "string_above_max_length"),
    ("stop", [1], "invalid_type", "stop[0]"),
    ("stop_token_ids", [258], "invalid_value", "stop_token_ids[0]"),
    ("stop_token_ids", [1, -1], "invalid_value", "stop_token_ids[1]"),
    ("stop_token_ids", [True], "invalid_type", "stop_token_ids[0]"),
    ("stop_token_ids", [0] * 129, "array_above_max_length"),
    ("logit_bias", {"abc": 1}, "invalid_value"),
    ("logit_bias", {"258": 1}, "invalid_value"),
    ("logit_bias", {"5": 1e9}, "decimal_above_max_value"),
    ("logit_bias", {"-1": 1}, "invalid_value"),
    ("logit_bias", {"1_0": 1}, "invalid_value"),
    ("logit_bias", {"٣": 1}, "invalid_value"),
    ("logit_bias", {"5": None}, "invalid_type", "logit_bias[...]"),
    ("logit_bias", {str(i): 1 for i in range(301)}, "array_above_max_length"),
    ("logit_bias", [1], "invalid_type"),
    ("stream", "yes", "invalid_type"),
    ("stream", 1, "invalid_type"),
    ("stream_options", {"include_usage": True}, "invalid_value"),
    ("model", 3, "invalid_type"),
    ("service_tier", 1, "invalid_type"),
    ("store", "yes", "invalid_type"),
    ("parallel_tool_calls", 1, "invalid_type"),
    ("prompt_cache_key", 1, "invalid_type"),
    ("prompt_cache_retention", [], "invalid_type"),
    ("safety_identifier", {}, "invalid_type"),
    ("metadata", {"a": 1}, "invalid_type", "metadata[...]"),
    ("user", 1, "invalid_type"),
    ("verbosity", 1, "invalid_type"),
    ("reasoning_effort", 1, "invalid_type"),
    ("include_reasoning", "no", "invalid_type"),
    ("prediction", "x", "invalid_type"),
    ("prediction", {"type": "content"}, "missing_required_parameter", "prediction.content"),
    ("prediction", {"type": "x", "content": ""}, "invalid_value", "prediction.type"),
    ("no_such_field", 1, "unknown_parameter"),
    ("x" * 500, 1, "unknown_parameter", ...),
    *(
        (name, value, "unsupported_parameter")
        for name, value in {
            "logits_processors": ["os.system"],
            "chat_template": "{{ 1 }}",
            "modalities": ["text", "audio"],
            "audio": {"voice": "x"},
            "suffix": "end",
            "prompt_embeds": "AAAA",
            "use_beam_search": True,
            "web_search_options": {},
        }.items()
    ),
    ("response_format", {"type": "yaml"}, "invalid_value", "response_format.type"),
    ("response_format", {"type": "json_schema"}, *_missing("response_format.json_schema")),
    (
        "response_format",
        {"type": "json_schema", "json_schema": {"name": "a"}},
        *_missing("response_format.json_schema.schema"),
    ),
    ("response_format", {"type": "grammar"}, "unsupported_parameter", "response_format.type"),
    (
        "structured_outputs",
        {"structural_tag": {}},
        "unsupported_parameter",
        "structured_outputs.structural_tag",
    ),
    (
        "structured_outputs",
        {"regex": "a", "choice": ["a"]},
        "invalid_value",
        "structured_outputs.choice",
    ),
    ("guided_json", [], "invalid_type"),
    ("cache_salt", "", "invalid_value"),
    ("cache_salt", "x" * 2000, "invalid_value"),
    ("cache_salt", 1, "invalid_type"),
    ("extra_key", "", "invalid_value"),
    ("prompt_cache_options", {"mode": "never"}, "invalid_value", "prompt_cache_options.mode"),
    (
        "prompt_cache_options",
        {"prewarm": True},
        "unsupported_parameter",
        "prompt_cache_options.prewarm",
    ),
    ("prompt_logprobs", 21, "integer_above_max_value"),
    ("prompt_logprobs", -1, "integer_below_min_value"),
    ("truncate_prompt_tokens", 0, "invalid_value"),
    ("truncate_prompt_tokens", -2, "integer_below_min_value"),
    ("truncation_side", "middle", "invalid_value"),
    ("skip_special_tokens", 1, "invalid_type"),
    ("add_special_tokens", 1, "invalid_type"),
    ("return_token_ids", "yes", "invalid_type"),
]

# Served by chat only.
COMPLETION_FIELDS_OF_CHAT = {
    "tools": [{"type": "function", "function": {"name": "f"}}],
    "tool_choice": "required",
    "functions": [{"name": "f"}],
    "function_call": {"name": "f"},
    "chat_template_kwargs": {"enable_thinking": False},
    "documents": [{"text": "a"}],
}

CHAT_FIELDS: list[tuple[Any, ...]] = [
    ("best_of", 2, "unsupported_parameter"),
    ("messages", [], "empty_array"),
    ("messages", "hello", "invalid_type"),
    ("messages", [123], "invalid_type", "messages[0]"),
    ("messages", [{}], "missing_required_parameter", "messages[0].role"),
    ("messages", [{"role": 123, "content": "x"}], "invalid_type", "messages[0].role"),
    ("messages", [{"role": "alien", "content": "x"}], "invalid_value", "messages[0].role"),
    ("messages", [{"role": "user"}], "missing_required_parameter", "messages[0].content"),
    (
        "messages",
        [{"role": "user", "content": None}],
        "missing_required_parameter",
        "messages[0].content",
    ),
    ("messages", [{"role": "user", "content": 5}], "invalid_type", "messages[0].content"),
    ("messages", [{"role": "user", "content": []}], "empty_array", "messages[0].content"),
    ("messages", [{"role": "user", "content": ["x"]}], "invalid_type", "messages[0].content[0]"),
    (
        "messages",
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}],
        "unsupported_parameter",
        "messages[0].content[0].type",
    ),
    (
        "messages",
        [{"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "text"}]}],
        "missing_required_parameter",
        "messages[0].content[1].text",
    ),
    (
        "messages",
        [{"role": "user", "content": "x", "what": 1}],
        "unknown_parameter",
        "messages[0].what",
    ),
    (
        "messages",
        [{"role": "user", "content": "x", "name": 1}],
        "invalid_type",
        "messages[0].name",
    ),
    (
        "messages",
        [{"role": "assistant", "content": None, "tool_calls": [{"id": "c"}]}],
        "missing_required_parameter",
        "messages[0].tool_calls[0].function",
    ),
    ("messages", [{"role": "user", "content": "x" * 10_000}], "context_length_exceeded"),
    ("messages", [{"role": "user", "content": "x" * 510}], "context_length_exceeded"),
    ("max_tokens", 0, "integer_below_min_value"),
    ("logprobs", 2, "invalid_type"),
    ("top_logprobs", 2, "invalid_value"),
    ("top_logprobs", 21, "integer_above_max_value"),
    ("top_logprobs", -1, "integer_below_min_value"),
    ("max_completion_tokens", 5, "invalid_value"),
    ("max_completion_tokens", 0, "integer_below_min_value"),
    ("echo", True, "unsupported_parameter"),
    ("prompt", "x", "unknown_parameter"),
]

COMPLETION_FIELDS: list[tuple[Any, ...]] = [
    *((name, value, "unsupported_parameter") for name, value in COMPLETION_FIELDS_OF_CHAT.items()),
    ("best_of", 0, "integer_below_min_value"),
    ("best_of", 17, "integer_above_max_value"),
    ("prompt", None, "invalid_type"),
    ("prompt", 5, "invalid_type"),
    ("prompt", "", "invalid_value"),
    ("prompt", ["a", ""], "invalid_value", "prompt[1]"),
    ("prompt", [], "empty_array"),
    ("prompt", [[]], "empty_array", "prompt[0]"),
    ("prompt", ["a"] * 17, "array_above_max_length"),
    ("prompt", ["a"] * 10_000, "array_above_max_length"),
    ("prompt", ["a", 1], "invalid_type"),
    ("prompt", [[1], "a"], "invalid_type"),
    ("prompt", [[[1]]], "invalid_type", "prompt[0][0]"),
    ("prompt", [1, -1], "invalid_value", "prompt[1]"),
    ("prompt", [258], "invalid_value", "prompt[0]"),
    ("prompt", [[1], [2, 10**30]], "invalid_value", "prompt[1][1]"),
    ("prompt", [1.0], "invalid_type", "prompt[0]"),
    ("prompt", [True], "invalid_type", "prompt[0]"),
    ("prompt", [[1, False]], "invalid_type", "prompt[0][1]"),
    ("prompt", "x" * 10_000, "context_length_exceeded"),
    ("prompt", "x" * 512, "context_length_exceeded"),
    ("prompt", [5] * 513, "context_length_exceeded"),
    ("logprobs", True, "invalid_type"),
    ("logprobs", 6, "integer_above_max_value"),
    ("logprobs", -1, "integer_below_min_value"),
    ("echo", 1, "invalid_type"),
    ("messages", [], "unknown_parameter"),
    ("max_completion_tokens", 5, "unknown_parameter"),
]


def fields_of(path: str) -> tuple[str, ...]:
    return BODY_TYPES[path].__struct_fields__


def case_id(case: tuple[Any, ...]) -> str:
    return f"{case[0]}={json.dumps(case[1])}"[:60]


def good_body(path: str) -> dict[str, Any]:
    """A small good body for an endpoint of the OpenAI dialect, those that only count included."""
    others: dict[str, dict[str, Any]] = {
        INPUT_TOKENS: {"input": "abc"},
        "/tokenize": {"prompt": "abc"},
        "/detokenize": {"tokens": [97]},
    }
    return others.get(path) or body_for(path)


async def assert_still_serves(server: Server) -> None:
    """The reference answers, and nothing left over from before."""
    assert server.engine.live == {}
    for path in OPENAI_DIALECT:
        status, answer = await server.post(path, body_for(path))
        assert (status, text_of(path, answer)) == (200, reference(path))


async def assert_refused(server: Server, path: str, body: Any, code: str, param: Any) -> None:
    status, answer = await server.post(path, body)
    assert status == 400
    assert set(answer) == {"error"}
    error = answer["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["code"]) == ("invalid_request_error", code)
    if param is not ...:
        assert error["param"] == param
    assert error["message"]
    assert len(error["message"]) <= 1000
    assert server.engine.seen == []
    await assert_still_serves(server)


@pytest.mark.parametrize("path", ALL)
@pytest.mark.parametrize("raw", NOT_JSON.values(), ids=NOT_JSON.keys())
async def test_what_is_not_a_json_object_is_refused(server: Server, path: str, raw: bytes) -> None:
    await assert_refused(server, path, raw, "invalid_json", None)


@pytest.mark.parametrize("path", OPENAI_DIALECT)
async def test_anything_after_the_body_is_refused(server: Server, path: str) -> None:
    await assert_refused(
        server, path, json.dumps(body_for(path)).encode() + b" {}", "invalid_json", None
    )


@pytest.mark.parametrize("path", OPENAI_DIALECT)
async def test_nesting_too_deep_for_the_decoder_is_refused(server: Server, path: str) -> None:
    nested = b', "chat_template_kwargs": {"x": ' + b"[" * 20000 + b"]" * 20000 + b"}}"
    raw = json.dumps(body_for(path)).encode()[:-1] + nested
    await assert_refused(server, path, raw, "invalid_json", None)


@pytest.mark.parametrize("number", ["1e999", "-1e999", "9" * 400, "9" * 5000])
@pytest.mark.parametrize("path", OPENAI_DIALECT)
async def test_numbers_beyond_all_bounds_are_refused_by_name(
    server: Server, path: str, number: str
) -> None:
    raw = json.dumps(body_for(path)).encode()[:-1] + f', "temperature": {number}}}'.encode()
    await assert_refused(server, path, raw, "invalid_value", "temperature")


def shared_cases() -> list[Any]:
    """Each of `FIELDS` for every endpoint that has the field, under the endpoint's name for it."""
    cases = []
    for path in OPENAI_DIALECT:
        others = {"tools", "tool_choice", "stream_options"} if path == RESPONSES else set()
        for name, *rest in FIELDS:
            case = (limit_of(path) if name == "max_tokens" else name, *rest)
            is_known = case[0] in fields_of(path) or rest[1] == "unknown_parameter"
            if is_known and name not in others:
                cases.append(pytest.param(path, case, id=f"{path}-{case_id(case)}"))
    return cases


@pytest.mark.parametrize(
    "stream", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["whole", "streamed"]
)
@pytest.mark.parametrize(("path", "case"), shared_cases())
async def test_a_bad_field_is_refused_by_name(
    server: Server, path: str, case: tuple[Any, ...], stream: bool
) -> None:
    name, value, code, *param = case
    body = (
        body_for(path)
        | ({"stream": True} if stream and name != "stream_options" else {})
        | {name: value}
    )
    await assert_refused(server, path, body, code, param[0] if param else name)
    assert server.metrics.records[0].outcome == "rejected"


@pytest.mark.parametrize("case", CHAT_FIELDS, ids=case_id)
async def test_a_bad_chat_field_is_refused_by_name(server: Server, case: tuple[Any, ...]) -> None:
    name, value, code, *param = case
    await assert_refused(
        server, CHAT, body_for(CHAT) | {name: value}, code, param[0] if param else name
    )


MESSAGE_CASES = [
    case for case in CHAT_FIELDS if case[0] == "messages" and "x" * 510 not in json.dumps(case[1])
]
"""Those that are wrong whether or not an answer is asked for."""


@pytest.mark.parametrize("case", MESSAGE_CASES, ids=case_id)
async def test_bad_messages_are_refused_by_name_where_they_are_only_counted(
    server: Server, case: tuple[Any, ...]
) -> None:
    name, value, code, *param = case
    await assert_refused(server, "/tokenize", {name: value}, code, param[0] if param else name)


@pytest.mark.parametrize("case", COMPLETION_FIELDS, ids=case_id)
async def test_a_bad_completion_field_is_refused_by_name(
    server: Server, case: tuple[Any, ...]
) -> None:
    name, value, code, *param = case
    await assert_refused(
        server,
        COMPLETIONS,
        body_for(COMPLETIONS) | {name: value},
        code,
        param[0] if param else name,
    )


@pytest.mark.parametrize(
    ("path", "field"),
    [
        (CHAT, "messages"),
        (COMPLETIONS, "prompt"),
        (RESPONSES, "input"),
        (INPUT_TOKENS, "input"),
        ("/detokenize", "tokens"),
    ],
)
async def test_a_missing_field_is_named(server: Server, path: str, field: str) -> None:
    body = good_body(path)
    del body[field]
    await assert_refused(server, path, body, "missing_required_parameter", field)


@pytest.mark.parametrize(
    ("options", "code", "param"),
    [
        ({"what": 1}, "unknown_parameter", "stream_options.what"),
        ({"include_usage": "yes"}, "invalid_type", "stream_options.include_usage"),
        (
            {"continuous_usage_stats": 1},
            "invalid_type",
            "stream_options.continuous_usage_stats",
        ),
        (
            {"include_obfuscation": True},
            "unsupported_parameter",
            "stream_options.include_obfuscation",
        ),
    ],
)
@pytest.mark.parametrize("path", BOTH)
async def test_stream_options_are_checked(
    server: Server, path: str, options: Any, code: str, param: str
) -> None:
    await assert_refused(
        server, path, body_for(path, stream=True, stream_options=options), code, param
    )


@pytest.mark.parametrize(
    ("path", "body", "code", "param"),
    [
        ("/tokenize", {}, "invalid_value", "prompt"),
        (
            "/tokenize",
            {"prompt": "a", "messages": [{"role": "user", "content": "x"}]},
            "invalid_value",
            "prompt",
        ),
        ("/tokenize", {"prompt": 5}, "invalid_type", "prompt"),
        ("/tokenize", {"prompt": [97]}, "invalid_type", "prompt"),
        ("/tokenize", {"prompt": "a", "what": 1}, "unknown_parameter", "what"),
        ("/tokenize", {"prompt": "a", "model": 3}, "invalid_type", "model"),
        ("/tokenize", {"prompt": "a", "add_special_tokens": 1}, *_invalid("add_special_tokens")),
        ("/tokenize", {"messages": [USER], "tools": [{}]}, *_missing("tools[0].type")),
        (
            "/tokenize",
            {"messages": [USER], "add_generation_prompt": "a"},
            *_invalid("add_generation_prompt"),
        ),
        ("/tokenize", {"prompt": "x" * 10_000}, "context_length_exceeded", "prompt"),
        (
            "/tokenize",
            {"messages": [{"role": "alien", "content": "x"}]},
            "invalid_value",
            "messages[0].role",
        ),
        ("/tokenize", {"prompt": "a", "tools": []}, "unsupported_parameter", "tools"),
        ("/detokenize", {"tokens": "a"}, "invalid_type", "tokens"),
        ("/detokenize", {"tokens": None}, "invalid_type", "tokens"),
        ("/detokenize", {"tokens": [[97]]}, "invalid_type", "tokens[0]"),
        ("/detokenize", {"tokens": [97, 10**30]}, "invalid_value", "tokens[1]"),
        ("/detokenize", {"tokens": [97], "what": 1}, "unknown_parameter", "what"),
        ("/detokenize", {"tokens": [97], "model": 3}, "invalid_type", "model"),
        ("/detokenize", {"tokens": [258]}, "invalid_value", "tokens[0]"),
        ("/detokenize", {"tokens": [-1]}, "invalid_value", "tokens[0]"),
        ("/detokenize", {"tokens": [1.0]}, "invalid_type", "tokens[0]"),
        ("/detokenize", {"tokens": [True]}, "invalid_type", "tokens[0]"),
        ("/detokenize", {"tokens": [9] * 20_000}, "array_above_max_length", "tokens"),
    ],
)
async def test_tokenize_and_detokenize_check_their_bodies(
    server: Server, path: str, body: Any, code: str, param: str
) -> None:
    await assert_refused(server, path, body, code, param)


@pytest.mark.parametrize("path", ALL)
async def test_an_unknown_model_is_not_found(server: Server, path: str) -> None:
    status, answer = await server.post(path, good_body(path) | {"model": "y" * 300})
    assert status == 404
    assert (answer["error"]["param"], answer["error"]["code"]) == ("model", "model_not_found")
    assert "y" * 65 not in answer["error"]["message"]
    await assert_still_serves(server)


@pytest.mark.parametrize("path", ALL)
async def test_a_body_beyond_the_limit_is_refused_plain_or_inflated(
    server: Server, path: str
) -> None:
    big = b'{"model": "' + b"x" * 70_000 + b'"}'
    for raw, headers in [
        (big, {}),
        (gzip.compress(b"x" * 10_000_000), {"Content-Encoding": "gzip"}),
    ]:
        async with server.session.post(server.url + path, data=raw, headers=headers) as response:
            answer = await response.json()
            assert (response.status, answer["error"]["code"]) == (413, "request_too_large")
            assert response.headers["Connection"] == "close", "the rest of the body is unread"
    await assert_still_serves(server)


@pytest.mark.parametrize("path", [CHAT, "/tokenize"])
async def test_messages_that_render_to_no_token_are_refused(
    server: Server, path: str, monkeypatch: pytest.MonkeyPatch, tokenizer: LocalTokenizer
) -> None:
    template = ChatTemplate(tokenizer.tokenizer._loaded, "{{ messages[0].content }}")
    monkeypatch.setattr(tokenizer.tokenizer, "template", template)
    messages = {"model": MODEL, "messages": [{"role": "user", "content": ""}]}
    status, answer = await server.post(path, messages)
    assert (status, answer["error"]["param"], answer["error"]["code"]) == (
        400,
        "messages",
        "invalid_value",
    )
    assert server.engine.seen == []


@pytest.mark.parametrize("path", OPENAI_DIALECT)
async def test_a_token_that_only_the_tokenizer_knows_is_refused(server: Server, path: str) -> None:
    info = server.engine.info
    assert info is not None
    server.engine.info = msgspec.structs.replace(info, vocab_size=ord("a"))
    status, answer = await server.post(path, body_for(path, text="a"))
    assert (status, answer["error"]["code"]) == (400, "invalid_value")
    prompt = {CHAT: "messages", COMPLETIONS: "prompt", RESPONSES: "input"}
    assert answer["error"]["param"] == prompt[path]
    server.engine.info = info
    await assert_still_serves(server)


async def test_more_messages_than_the_context_holds_tokens_are_not_even_rendered(
    server: Server,
) -> None:
    status, answer = await server.post(
        CHAT, body_for(CHAT) | {"messages": [{"role": "user", "content": ""}] * 513}
    )
    assert (status, answer["error"]["param"], answer["error"]["code"]) == (
        400,
        "messages",
        "context_length_exceeded",
    )
    await assert_still_serves(server)


@pytest.mark.parametrize("path", ALL)
async def test_a_broken_encoding_is_refused(
    server: Server, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    status, answer = await server.post(
        path, b"not gzip at all", headers={"Content-Encoding": "gzip"}
    )
    assert (status, answer["error"]["code"]) == (400, "invalid_body")
    await assert_still_serves(server)
    assert not [each for each in caplog.records if each.exc_info], "logged as our failure"


@pytest.mark.parametrize("path", OPENAI_DIALECT)
async def test_null_and_values_without_effect_are_accepted(server: Server, path: str) -> None:
    names = set(fields_of(path))
    nulls = dict.fromkeys(names - set(body_for(path)))
    status, answer = await server.post(path, nulls | body_for(path))
    assert (status, text_of(path, answer)) == (200, reference(path))
    harmless = {name: accepted[0] for name, accepted in AS_IF_ABSENT.items()}
    harmless |= {
        "user": "u",
        "metadata": {"a": "b"},
        "safety_identifier": "s",
        "n": 1,
        "top_k": -1,
        "stop": [],
    }
    harmless = {name: value for name, value in harmless.items() if name in names}
    status, answer = await server.post(path, harmless | body_for(path))
    assert (status, text_of(path, answer)) == (200, reference(path))


# what clients send that changes no token of an answer
WITHOUT_EFFECT: dict[str, Any] = {
    "model": None,
    "include_reasoning": False,
    "metadata": {"a": "b"},
    "modalities": ["text"],
    "parallel_tool_calls": False,
    "prediction": {"type": "content", "content": [{"type": "text", "text": "abc"}]},
    "prompt_cache_key": "k",
    "prompt_cache_retention": "24h",
    "reasoning_effort": "minimal",
    "safety_identifier": "s",
    "separate_reasoning": True,
    "service_tier": "flex",
    "store": True,
    "tool_choice": "auto",
    "tools": [],
    "user": "u",
    "verbosity": "low",
}


@pytest.mark.parametrize(
    "stream", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["whole", "streamed"]
)
@pytest.mark.parametrize(
    ("path", "name"),
    [(p, each) for p in OPENAI_DIALECT for each in WITHOUT_EFFECT if each in fields_of(p)],
)
async def test_a_field_that_changes_no_token_is_taken(
    server: Server, path: str, name: str, stream: bool
) -> None:
    body = body_for(path, seed=1, stream=stream)
    async with server.session.post(server.url + path, json=body) as response:
        assert response.status == 200
    async with server.session.post(
        server.url + path, json=body | {name: WITHOUT_EFFECT[name]}
    ) as response:
        assert response.status == 200, await response.text()
    plain, with_field = server.engine.seen
    assert (plain.prompt_ids, plain.sampling) == (with_field.prompt_ids, with_field.sampling)


@pytest.mark.parametrize("path", OPENAI_DIALECT)
async def test_a_model_left_out_is_the_one_served(server: Server, path: str) -> None:
    body = body_for(path)
    del body["model"]
    status, answer = await server.post(path, body)
    assert (status, answer["model"], text_of(path, answer)) == (200, MODEL, reference(path))


async def test_json_is_read_whatever_content_type_it_claims(server: Server) -> None:
    raw = json.dumps(body_for(COMPLETIONS)).encode()
    for content_type in (
        "text/plain",
        "application/x-www-form-urlencoded",
        "application/json; charset=nonsense",
    ):
        status, answer = await server.post(COMPLETIONS, raw, headers={"Content-Type": content_type})
        assert (status, text_of(COMPLETIONS, answer)) == (200, "abca")


async def test_of_a_key_written_twice_the_last_counts(server: Server) -> None:
    raw = json.dumps(body_for(COMPLETIONS)).encode()[:-1] + b', "max_tokens": 2}'
    status, answer = await server.post(COMPLETIONS, raw)
    assert (status, text_of(COMPLETIONS, answer)) == (200, "ab")
