"""`suffix` of POST /v1/completions, with a tokenizer that has tokens to fill in the middle."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from tokenizers import AddedToken, processors
from tokenizers import Tokenizer as Backend
from transformers import PreTrainedTokenizerFast

from tests.api.conftest import CHAT, COMPLETIONS, Server, body_for
from tests.api.test_generation import stream, streamed_text
from tests.fakes import LocalTokenizer, byte_tokenizer

NAMES = ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|fim_pad|>"]
PREFIX, SUFFIX, MIDDLE, PAD = range(258, 262)


@pytest.fixture(scope="module")
def tokenizer() -> LocalTokenizer:
    """Token i is byte i; a text begins with <turn>."""
    backend = Backend.from_str(byte_tokenizer().tokenizer.to_json())
    backend.add_special_tokens([AddedToken(name) for name in NAMES])
    backend.post_processor = processors.TemplateProcessing(
        single="<turn> $A", special_tokens=[("<turn>", 257)]
    )
    return LocalTokenizer(PreTrainedTokenizerFast(tokenizer_object=backend))


@pytest.fixture(autouse=True)
def words(server: Server) -> None:
    """The model knows the tokenizer's tokens."""
    assert server.engine.info is not None
    server.engine.info = msgspec.structs.replace(server.engine.info, vocab_size=262)


def asking(**more: Any) -> dict[str, Any]:
    return {"prompt": "ab", "suffix": "yz", "max_tokens": 4, **more}


async def prompts_of(server: Server, **more: Any) -> list[list[int]]:
    server.engine.seen.clear()
    status, answer = await server.post(COMPLETIONS, asking(**more))
    assert status == 200, answer
    return [request.prompt_ids for request in server.engine.seen]


async def test_the_answer_stands_between_prompt_and_suffix(server: Server) -> None:
    (ids,) = await prompts_of(server)
    assert ids == [257, PREFIX, *b"ab", SUFFIX, *b"yz", MIDDLE]
    stops = server.engine.seen[0].sampling.stop_token_ids
    assert {PREFIX, SUFFIX, MIDDLE, PAD} <= set(stops)
    (ids,) = await prompts_of(server, add_special_tokens=False)
    assert ids == [PREFIX, *b"ab", SUFFIX, *b"yz", MIDDLE]
    (ids,) = await prompts_of(server, prompt="")
    assert ids == [257, PREFIX, SUFFIX, *b"yz", MIDDLE]
    for suffix in ("", None):
        assert await prompts_of(server, suffix=suffix) == [[257, *b"ab"]]
        assert PAD not in server.engine.seen[0].sampling.stop_token_ids


async def test_names_of_tokens_in_a_side_are_text(server: Server) -> None:
    (ids,) = await prompts_of(server, prompt="<|fim_middle|>", suffix="<turn>")
    assert ids == [257, PREFIX, *b"<|fim_middle|>", SUFFIX, *b"<turn>", MIDDLE]


async def test_every_prompt_of_a_list_gets_the_suffix(server: Server) -> None:
    ids = await prompts_of(server, prompt=["a", "b"], n=2)
    assert ids == [
        [257, PREFIX, *side, SUFFIX, *b"yz", MIDDLE] for side in (b"a",) * 2 + (b"b",) * 2
    ]


async def test_the_rest_of_the_body_counts_as_usual(server: Server) -> None:
    server.engine.answer = lambda request: [*b"filled in", 256]
    more = {"max_tokens": 20, "logprobs": 1, "stop": "in"}
    status, whole = await server.post(COMPLETIONS, asking(**more, prompt_logprobs=0))
    assert status == 200
    (choice,) = whole["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("filled ", "stop")
    assert len(choice["prompt_logprobs"]) == whole["usage"]["prompt_tokens"] == 8
    events, _ = await stream(server, COMPLETIONS, asking(**more))
    assert streamed_text(COMPLETIONS, events) == "filled "


@pytest.mark.parametrize(
    ("more", "param", "code"),
    [
        ({"suffix": 1}, "suffix", "invalid_type"),
        ({"echo": True}, "echo", "invalid_value"),
        ({"truncate_prompt_tokens": 3}, "truncate_prompt_tokens", "invalid_value"),
        ({"prompt": [97]}, "prompt", "invalid_type"),
        ({"prompt": [[97]]}, "prompt", "invalid_type"),
        ({"prompt": ["a", 97]}, "prompt", "invalid_type"),
        ({"prompt": []}, "prompt", "empty_array"),
        ({"prompt": ["a"] * 17}, "prompt", "array_above_max_length"),
        ({"suffix": "x" * 508}, "prompt", "context_length_exceeded"),
        ({"suffix": "x" * 40_000}, "suffix", "context_length_exceeded"),
        ({"prompt": ["a", "x" * 40_000]}, "prompt[1]", "context_length_exceeded"),
    ],
)
async def test_what_does_not_go_with_a_suffix_is_refused_by_name(
    server: Server, more: dict[str, Any], param: str, code: str
) -> None:
    status, answer = await server.post(COMPLETIONS, asking(**more))
    assert (status, answer["error"]["param"], answer["error"]["code"]) == (400, param, code)
    assert len(await prompts_of(server)) == 1


async def test_chat_has_no_suffix(server: Server) -> None:
    status, answer = await server.post(CHAT, body_for(CHAT) | {"suffix": "x"})
    assert (status, answer["error"]["param"]) == (400, "suffix")
