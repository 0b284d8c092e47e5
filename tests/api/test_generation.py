"""What a good request gets: text, finish reasons, usage, logprobs, several choices; the same
streamed and whole.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from radixserve.request import Request
from radixserve.step import TokenLogprob
from radixserve.text.tokenizer import Tokenizer
from tests.api.conftest import (
    ALIAS,
    CHAT,
    COMPLETIONS,
    MODEL,
    RESPONSES,
    Server,
    body_for,
    reference,
    text_of,
)
from tests.fakes import EOS, VOCAB, logprob_of

BOTH = (CHAT, COMPLETIONS)
_MESSAGE = {"role": "user", "content": "a"}


async def stream(server: Server, path: str, body: Any) -> tuple[list[Any], list[str]]:
    """The decoded events, and the raw ones that are not JSON."""
    async with server.session.post(server.url + path, json=body | {"stream": True}) as response:
        assert response.status == 200
        assert response.headers["Content-Type"] == "text/event-stream; charset=utf-8"
        assert response.headers["Cache-Control"] == "no-store"
        assert response.headers["X-Accel-Buffering"] == "no"
        assert response.headers["x-request-id"]
        text = await response.text()
    assert text.endswith("\n\n")
    lines = [line.removeprefix("data: ") for line in text[:-2].split("\n\n")]
    return [json.loads(line) for line in lines if line.startswith("{")], [
        x for x in lines if not x.startswith("{")
    ]


@pytest.mark.parametrize("path", BOTH)
async def test_every_name_is_served_and_answers_carry_the_first(server: Server, path: str) -> None:
    status, whole = await server.post(path, body_for(path) | {"model": ALIAS})
    events, _ = await stream(server, path, body_for(path) | {"model": ALIAS})
    assert (status, whole["model"], {event["model"] for event in events}) == (200, MODEL, {MODEL})


def streamed_text(path: str, events: list[Any], choice: int = 0) -> str:
    chosen = [c for event in events for c in event["choices"] if c["index"] == choice]
    return "".join((c["delta"].get("content") or "") if path == CHAT else c["text"] for c in chosen)


@pytest.mark.parametrize("path", BOTH)
async def test_a_stream_says_what_the_whole_answer_says(server: Server, path: str) -> None:
    status, whole = await server.post(path, body_for(path))
    events, others = await stream(server, path, body_for(path))
    assert status == 200
    assert others == ["[DONE]"]
    assert streamed_text(path, events) == text_of(path, whole) == reference(path)
    assert (
        events[-1]["choices"][0]["finish_reason"]
        == whole["choices"][0]["finish_reason"]
        == "length"
    )
    assert [event["choices"][0]["finish_reason"] for event in events[:-1]] == [None] * (
        len(events) - 1
    )
    assert whole["model"] == MODEL
    assert {event["object"] for event in events} == {
        "chat.completion.chunk" if path == CHAT else "text_completion"
    }
    assert whole["object"] == ("chat.completion" if path == CHAT else "text_completion")
    assert len({event["id"] for event in events}) == 1
    assert all("usage" not in event for event in events)


async def test_the_first_chat_delta_says_who_speaks_and_no_other_does(server: Server) -> None:
    events, _ = await stream(server, CHAT, body_for(CHAT))
    deltas = [event["choices"][0]["delta"] for event in events]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert all("role" not in delta for delta in deltas[1:])


@pytest.mark.parametrize("path", BOTH)
async def test_usage_counts_the_prompt_once_and_every_choice(server: Server, path: str) -> None:
    server.engine.num_cached = 2
    _, answer = await server.post(path, body_for(path, n=3))
    num_prompt = len(server.engine.seen[0].prompt_ids)
    usage = {
        "prompt_tokens": num_prompt,
        "completion_tokens": 12,
        "total_tokens": num_prompt + 12,
        "prompt_tokens_details": {
            "cached_tokens": 2,
            "cached_tokens_details": {"device": 2, "host": 0, "disk": 0},
            "cache_write_tokens": num_prompt - 2,
        },
        "completion_tokens_details": {"reasoning_tokens": 0},
    }
    assert answer["usage"] == usage
    events, _ = await stream(
        server, path, body_for(path, n=3, stream_options={"include_usage": True})
    )
    assert events[-1]["choices"] == []
    assert events[-1]["usage"] == usage
    assert all(event["usage"] is None for event in events[:-1])


@pytest.mark.parametrize("include_usage", [False, True])
@pytest.mark.parametrize("path", BOTH)
async def test_usage_so_far_is_in_every_chunk_where_asked(
    server: Server, path: str, include_usage: bool
) -> None:
    server.engine.num_cached = 2
    options = {
        "continuous_usage_stats": True,
        "include_usage": include_usage,
        "include_obfuscation": False,
    }
    events, _ = await stream(server, path, body_for(path, n=2, stream_options=options))
    _, whole = await server.post(path, body_for(path, n=2))
    counts = [event["usage"]["completion_tokens"] for event in events]
    assert counts == sorted(counts)
    assert events[-1]["usage"] == whole["usage"]
    assert (events[-1]["choices"] == []) == include_usage
    assert {event["usage"]["prompt_tokens"] for event in events} == {
        whole["usage"]["prompt_tokens"]
    }


@pytest.mark.parametrize("content", [{"content": None}, {"content": []}, {}, {"content": ""}])
@pytest.mark.parametrize("calls", [{}, {"tool_calls": []}, {"tool_calls": None}])
async def test_an_answer_without_text_in_the_history_is_empty(
    server: Server, content: dict[str, Any], calls: dict[str, Any]
) -> None:
    said = {"role": "assistant", **content, **calls}
    messages = [_MESSAGE | {"name": "bob"}, said, _MESSAGE]
    body = {"max_tokens": 4, "messages": messages}
    status, _ = await server.post(CHAT, body)
    _, tokenized = await server.post("/tokenize", {"messages": messages})
    empty = [_MESSAGE, {"role": "assistant", "content": ""}, _MESSAGE]
    _, plain = await server.post("/tokenize", {"messages": empty})
    assert status == 200
    assert server.engine.seen[0].prompt_ids == tokenized["tokens"] == plain["tokens"]


@pytest.mark.parametrize("path", BOTH)
async def test_choices_differ_in_their_seeds_only(server: Server, path: str) -> None:
    _, answer = await server.post(path, body_for(path, n=3, seed=2**63 - 2))
    seen = server.engine.seen
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert [request.sampling.seed for request in seen] == [2**63 - 2, 2**63 - 1, 0]
    assert len({tuple(request.prompt_ids) for request in seen}) == 1
    assert len({request.id for request in seen}) == 3


async def test_a_negative_seed_is_a_seed_and_an_absent_one_is_drawn(server: Server) -> None:
    await server.post(COMPLETIONS, body_for(COMPLETIONS, seed=-1))
    await server.post(COMPLETIONS, body_for(COMPLETIONS))
    await server.post(COMPLETIONS, body_for(COMPLETIONS))
    seeds = [request.sampling.seed for request in server.engine.seen]
    assert seeds[0] == 2**63 - 1
    assert seeds[1] != seeds[2]


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ("xy", ["xyxy"]),
        (["ab", "c"], ["abab", "cccc"]),
        ([104, 105], ["hihi"]),
        ([[104], [105, 106]], ["hhhh", "ijij"]),
    ],
)
async def test_every_shape_of_prompt_is_served(
    server: Server, prompt: Any, texts: list[str]
) -> None:
    body = body_for(COMPLETIONS) | {"prompt": prompt}
    _, answer = await server.post(COMPLETIONS, body)
    events, _ = await stream(server, COMPLETIONS, body)
    assert [choice["text"] for choice in answer["choices"]] == texts
    assert [streamed_text(COMPLETIONS, events, i) for i in range(len(texts))] == texts


async def test_several_prompts_times_n_are_ordered_prompt_by_prompt(server: Server) -> None:
    server.engine.num_cached = 1
    _, answer = await server.post(COMPLETIONS, body_for(COMPLETIONS, n=2) | {"prompt": ["ab", "c"]})
    assert [(c["index"], c["text"]) for c in answer["choices"]] == [
        (0, "abab"),
        (1, "abab"),
        (2, "cccc"),
        (3, "cccc"),
    ]
    assert answer["usage"]["prompt_tokens"] == 3
    assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == 2


async def test_messages_are_rendered_developer_as_system_and_parts_joined(server: Server) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [
        {"role": "developer", "content": "d"},
        {"role": "user", "content": parts},
        {
            "role": "assistant",
            "content": "c",
            "refusal": None,
            "tool_calls": None,
            "annotations": [],
        },
        {"role": "system", "content": ""},
    ]
    await server.post(CHAT, {"model": MODEL, "max_tokens": 1, "messages": messages})
    expected = "".join(f"<turn>{role}: {text}\n" for role, text in zip(
        ("system", "user", "assistant", "system"), ("d", "ab", "c", ""), strict=True
    ))  # fmt: skip
    status, answer = await server.post("/detokenize", {"tokens": server.engine.seen[0].prompt_ids})
    assert (status, answer["prompt"]) == (200, expected)


@pytest.mark.parametrize(
    ("options", "ending"),
    [
        ({}, " begun\n"),
        ({"add_generation_prompt": True, "continue_final_message": False}, " begun\n"),
        ({"add_generation_prompt": False}, " begun\n"),
        ({"continue_final_message": True}, " begun"),
        ({"add_generation_prompt": False, "continue_final_message": True}, " begun"),
    ],
)
async def test_the_last_message_may_be_continued(
    server: Server, options: dict[str, bool], ending: str
) -> None:
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": " begun"}]
    body = {"model": MODEL, "max_tokens": 4, "messages": messages, **options}
    await server.post(CHAT, body)
    seen = server.engine.seen[-1].prompt_ids
    assert (await server.post("/detokenize", {"tokens": seen}))[1]["prompt"].endswith(ending)
    _, tokenized = await server.post("/tokenize", {"messages": messages, **options})
    assert tokenized["tokens"] == seen


async def test_continuing_and_beginning_an_answer_exclude_each_other(server: Server) -> None:
    both = {"add_generation_prompt": True, "continue_final_message": True}
    for path, body in ((CHAT, body_for(CHAT)), ("/tokenize", {"messages": [_MESSAGE]})):
        status, answer = await server.post(path, body | both)
        assert (status, answer["error"]["param"]) == (400, "continue_final_message")
    for name in both:
        status, answer = await server.post("/tokenize", {"prompt": "x", name: True})
        assert (status, answer["error"]["param"]) == (400, name)
    assert server.engine.seen == []


@pytest.mark.parametrize("tokens_per_event", [1, 3, 100])
@pytest.mark.parametrize("path", BOTH)
async def test_a_stop_string_ends_text_and_work(
    server: Server, path: str, tokens_per_event: int
) -> None:
    server.engine.answer = lambda request: list(b"one, two, three, four")
    server.engine.tokens_per_event = tokens_per_event
    body = body_for(path, stop=["o, t", "three"]) | {"max_tokens": 21}
    _, whole = await server.post(path, body)
    assert text_of(path, whole) == "one, tw"
    assert whole["choices"][0]["finish_reason"] == "stop"
    assert whole["usage"]["completion_tokens"] == len("one, two, t")
    events, others = await stream(server, path, body)
    assert streamed_text(path, events) == "one, tw"
    assert events[-1]["choices"][0]["finish_reason"] == "stop"
    assert others == ["[DONE]"]
    if tokens_per_event < 21:
        assert server.engine.aborted == [request.id for request in server.engine.seen]


@pytest.mark.parametrize("path", BOTH)
async def test_a_stop_string_that_only_the_end_completes_is_a_stop(
    server: Server, path: str
) -> None:
    server.engine.answer = lambda request: [65, 0xF0]  # the first byte of four of a character
    status, answer = await server.post(path, body_for(path, stop="\ufffd") | {"max_tokens": 2})
    assert (status, text_of(path, answer), answer["choices"][0]["finish_reason"]) == (
        200,
        "A",
        "stop",
    )


@pytest.mark.parametrize("path", BOTH)
async def test_a_stop_token_ends_the_answer_and_is_not_shown(server: Server, path: str) -> None:
    server.engine.answer = lambda request: [*b"ab", EOS, *b"cd"]
    _, whole = await server.post(path, body_for(path))
    assert (text_of(path, whole), whole["choices"][0]["finish_reason"]) == ("ab", "stop")
    assert whole["usage"]["completion_tokens"] == 3
    _, whole = await server.post(path, body_for(path, ignore_eos=True))
    assert (text_of(path, whole), whole["choices"][0]["finish_reason"]) == ("abc", "length")
    _, whole = await server.post(path, body_for(path, stop_token_ids=[97]))
    assert (text_of(path, whole), whole["usage"]["completion_tokens"]) == ("", 1)


@pytest.mark.parametrize("path", BOTH)
async def test_characters_of_several_tokens_arrive_whole(server: Server, path: str) -> None:
    server.engine.answer = lambda request: list("aé€😀".encode())
    events, _ = await stream(server, path, body_for(path) | {"max_tokens": 10})
    texts = [streamed_text(path, [event]) for event in events]
    assert [text for text in texts if text] == ["a", "é", "€", "😀"]


async def test_chat_logprobs_name_token_bytes_and_alternatives(server: Server) -> None:
    server.engine.answer = lambda request: [*"é".encode(), EOS]
    body = body_for(CHAT, logprobs=True, top_logprobs=2)
    _, whole = await server.post(CHAT, body)
    content = whole["choices"][0]["logprobs"]["content"]
    assert [entry["bytes"] for entry in content] == [[0xC3], [0xA9], list(b"<eos>")]
    assert [entry["logprob"] for entry in content] == [-0.5, -0.5, -0.5]
    assert [[top["logprob"] for top in entry["top_logprobs"]] for entry in content] == [
        [-0.5, -1.0]
    ] * 3
    assert content[0]["top_logprobs"][1]["bytes"] == [0xC4]
    events, _ = await stream(server, CHAT, body)
    chosen = [event["choices"][0]["logprobs"] for event in events]
    assert [entry for logprobs in chosen if logprobs for entry in logprobs["content"]] == content
    _, whole = await server.post(CHAT, body_for(CHAT, logprobs=True))
    assert [entry["top_logprobs"] for entry in whole["choices"][0]["logprobs"]["content"]] == [
        [],
        [],
        [],
    ]


async def test_completion_logprobs_are_parallel_lists_and_the_same_streamed(server: Server) -> None:
    body = body_for(COMPLETIONS, logprobs=2, stop="c")
    _, whole = await server.post(COMPLETIONS, body)
    logprobs = whole["choices"][0]["logprobs"]
    assert logprobs == {
        "tokens": ["a", "b", "c"],
        "token_logprobs": [-0.5, -0.5, -0.5],
        "top_logprobs": [{"a": -0.5, "b": -1.0}, {"b": -0.5, "c": -1.0}, {"c": -0.5, "d": -1.0}],
        "text_offset": [0, 1, 2],
    }
    events, _ = await stream(server, COMPLETIONS, body)
    parts = [event["choices"][0]["logprobs"] for event in events]
    assert {key: [item for part in parts for item in part[key]] for key in logprobs} == logprobs
    _, whole = await server.post(COMPLETIONS, body_for(COMPLETIONS, logprobs=0) | {"max_tokens": 1})
    assert whole["choices"][0]["logprobs"]["top_logprobs"] == [{"a": -0.5}]


@pytest.mark.parametrize("prompt", ["abc", [97, 98, 99]])
async def test_echo_repeats_the_prompt_with_its_logprobs(server: Server, prompt: Any) -> None:
    body = body_for(COMPLETIONS, echo=True) | {"prompt": prompt, "max_tokens": 2}
    _, whole = await server.post(COMPLETIONS, body)
    assert whole["choices"][0]["text"] == "abcab"
    assert server.engine.seen[0].sampling.prompt_logprobs is None
    for answer in [(await server.post(COMPLETIONS, body | {"logprobs": 1}))[1], None]:
        if answer is None:
            events, _ = await stream(server, COMPLETIONS, body | {"logprobs": 1})
            assert streamed_text(COMPLETIONS, events) == "abcab"
            parts = [event["choices"][0]["logprobs"] for event in events]
            logprobs = {key: [item for part in parts for item in part[key]] for key in parts[0]}
        else:
            assert answer["choices"][0]["text"] == "abcab"
            logprobs = answer["choices"][0]["logprobs"]
        assert logprobs["tokens"] == list("abcab")
        assert logprobs["token_logprobs"] == [None, -0.5, -0.5, -0.5, -0.5]
        assert logprobs["top_logprobs"][:2] == [None, {"b": -0.5}]
        assert logprobs["text_offset"] == [0, 1, 2, 3, 4]
    assert server.engine.seen[-1].sampling.prompt_logprobs == 1


async def test_echo_with_logprobs_of_a_single_token_prompt_begins_with_null(server: Server) -> None:
    _, whole = await server.post(
        COMPLETIONS, body_for(COMPLETIONS, text="a", echo=True, logprobs=0)
    )
    assert whole["choices"][0]["logprobs"]["token_logprobs"] == [None, -0.5, -0.5, -0.5, -0.5]


async def logprobs_both_ways(server: Server, body: Any) -> tuple[str, Any, Any]:
    """Text, logprobs and usage of a completion, which are the same whole and streamed."""
    _, whole = await server.post(COMPLETIONS, body)
    chosen, usage = whole["choices"][0], whole["usage"]
    asked = body | {"stream_options": {"include_usage": True}}
    events, _ = await stream(server, COMPLETIONS, asked)
    parts = [event["choices"][0]["logprobs"] for event in events[:-1]]
    joined = {key: [item for part in parts for item in part[key]] for key in chosen["logprobs"]}
    assert (streamed_text(COMPLETIONS, events), joined) == (chosen["text"], chosen["logprobs"])
    assert events[-2]["choices"][0]["finish_reason"] == chosen["finish_reason"]
    assert events[-1]["usage"] == usage
    return chosen["text"], chosen["logprobs"], usage


@pytest.mark.parametrize("tokens_per_event", [1, 100])
async def test_the_stop_token_has_its_logprobs(server: Server, tokens_per_event: int) -> None:
    server.engine.answer = lambda request: [*b"ab", EOS]
    server.engine.tokens_per_event = tokens_per_event
    text, logprobs, usage = await logprobs_both_ways(server, body_for(COMPLETIONS, logprobs=1))
    assert (text, usage["completion_tokens"]) == ("ab", 3)
    assert logprobs["tokens"] == ["a", "b", "<eos>"]
    assert logprobs["token_logprobs"] == [-0.5] * 3
    assert logprobs["top_logprobs"][2] == {"<eos>": -0.5}
    assert logprobs["text_offset"] == [0, 1, 2]


@pytest.mark.parametrize("tokens_per_event", [1, 3, 100])
@pytest.mark.parametrize("answer", [[*b"abcd"], [*b"ab", EOS], [EOS], [*"é€".encode(), EOS]])
@pytest.mark.parametrize("stop", [[], ["b"], ["€"]])
@pytest.mark.parametrize("path", BOTH)
async def test_every_counted_token_has_one_entry(
    server: Server, path: str, stop: list[str], answer: list[int], tokens_per_event: int
) -> None:
    server.engine.answer = lambda request: answer
    server.engine.tokens_per_event = tokens_per_event
    body = body_for(path, stop=stop, logprobs=True if path == CHAT else 0) | {"max_tokens": 6}
    _, whole = await server.post(path, body)
    entries = whole["choices"][0]["logprobs"]["content" if path == CHAT else "tokens"]
    assert len(entries) == whole["usage"]["completion_tokens"] > 0


@pytest.mark.parametrize("drawn", [98, EOS])
async def test_echo_with_one_token_as_evaluation_harnesses_ask_for_it(
    server: Server, drawn: int
) -> None:
    server.engine.answer = lambda request: [drawn]
    body = body_for(COMPLETIONS, echo=True, logprobs=1, temperature=0) | {"max_tokens": 1}
    text, logprobs, usage = await logprobs_both_ways(server, body | {"prompt": [97, EOS, 99]})
    assert text == "a<eos>c" + ("b" if drawn == 98 else "")
    assert logprobs["tokens"] == ["a", "<eos>", "c", "b" if drawn == 98 else "<eos>"]
    assert logprobs["token_logprobs"] == [None, -0.5, -0.5, -0.5]
    assert logprobs["text_offset"] == [0, 1, 6, 7]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (3, 1)


@pytest.mark.parametrize("drawn", [98, EOS])
async def test_echo_of_the_prompt_alone(server: Server, drawn: int) -> None:
    server.engine.answer = lambda request: [drawn]
    body = body_for(COMPLETIONS, echo=True, logprobs=1) | {"max_tokens": 0}
    text, logprobs, usage = await logprobs_both_ways(server, body)
    assert text == "abc"
    assert logprobs == {
        "tokens": ["a", "b", "c"],
        "token_logprobs": [None, -0.5, -0.5],
        "top_logprobs": [None, {"b": -0.5}, {"c": -0.5}],
        "text_offset": [0, 1, 2],
    }
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (3, 0)
    status, whole = await server.post(COMPLETIONS, body | {"echo": False, "logprobs": None})
    choice = whole["choices"][0]
    assert (status, choice["text"], choice["finish_reason"]) == (200, "", "length")
    assert [record.generated_tokens for record in server.metrics.records] == [0, 0, 0]


async def test_a_prompt_alone_may_fill_the_context(server: Server) -> None:
    body = body_for(COMPLETIONS, text="x" * 512, echo=True) | {"max_tokens": 0}
    status, whole = await server.post(COMPLETIONS, body)
    assert (status, len(whole["choices"][0]["text"])) == (200, 512)
    status, _ = await server.post(COMPLETIONS, body | {"min_tokens": 1})
    assert status == 400


@pytest.mark.parametrize("as_ids", [False, True], ids=["text", "ids"])
async def test_offsets_count_characters_also_where_one_is_several_tokens(
    server: Server, as_ids: bool
) -> None:
    server.engine.answer = lambda request: list("€b😀c".encode())
    prompt = "é😀a"
    body = body_for(COMPLETIONS, echo=True, logprobs=0) | {"max_tokens": 9}
    body["prompt"] = list(prompt.encode()) if as_ids else prompt
    text, logprobs, _ = await logprobs_both_ways(server, body)
    assert text == "é😀a€b😀c"
    assert logprobs["text_offset"] == [0, 0, 1, 1, 1, 1, 2, 3, 3, 3, 4, 5, 5, 5, 5, 6]
    assert logprobs["tokens"][:6] == [rf"bytes:\x{byte:02x}" for byte in "é😀".encode()]


async def test_alternatives_that_look_alike_are_all_listed(
    server: Server, monkeypatch: pytest.MonkeyPatch, tokenizer: Tokenizer
) -> None:
    """The fake's alternatives of token i are i, i + 1, ... with -0.5, -1, ..."""
    exact = tokenizer.token_bytes
    monkeypatch.setattr(tokenizer, "token_bytes", lambda i: exact(98 if i in (99, 100) else i))
    server.engine.answer = lambda request: [97, 99]
    _, logprobs, _ = await logprobs_both_ways(
        server, body_for(COMPLETIONS, logprobs=5) | {"max_tokens": 2}
    )
    assert logprobs["top_logprobs"] == [
        {"a": -0.5, "b": -1.0, "token_id:99": -1.5, "token_id:100": -2.0, "e": -2.5},
        {"b": -0.5, "token_id:100": -1.0, "e": -1.5, "f": -2.0, "g": -2.5},
    ]
    server.engine.answer = lambda request: [0xF0]
    _, logprobs, _ = await logprobs_both_ways(
        server, body_for(COMPLETIONS, logprobs=3) | {"max_tokens": 1}
    )
    assert logprobs["top_logprobs"] == [
        {r"bytes:\xf0": -0.5, r"bytes:\xf1": -1.0, r"bytes:\xf2": -1.5}
    ]


async def test_impossible_tokens_have_a_finite_logprob(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    impossible = logprob_of(97)
    monkeypatch.setattr(
        "tests.fakes.logprob_of", lambda token: type(impossible)(97, float("-inf"), [(98, -1e30)])
    )
    _, whole = await server.post(COMPLETIONS, body_for(COMPLETIONS, logprobs=1) | {"max_tokens": 1})
    logprobs = whole["choices"][0]["logprobs"]
    assert logprobs["token_logprobs"] == [-9999.0]
    assert logprobs["top_logprobs"] == [{"b": -9999.0, "a": -9999.0}]


async def test_defaults_are_resolved(server: Server) -> None:
    await server.post(COMPLETIONS, {"model": MODEL, "prompt": "ab"})
    await server.post(CHAT, {"model": MODEL, "messages": [{"role": "user", "content": "abc"}]})
    await server.post(CHAT, body_for(CHAT) | {"max_tokens": None, "max_completion_tokens": 3})
    await server.post(
        COMPLETIONS, body_for(COMPLETIONS, top_k=258, temperature=1e-9, stop_token_ids=[5, EOS, 5])
    )
    completion, chat, limited, odd = (request.sampling for request in server.engine.seen)
    assert completion.max_tokens == 16
    assert chat.max_tokens == 512 - len(server.engine.seen[1].prompt_ids)
    assert limited.max_tokens == 3
    assert (completion.temperature, completion.top_p, completion.top_k) == (1.0, 1.0, 0)
    assert completion.stop_token_ids == (EOS,)
    assert (odd.top_k, odd.temperature, odd.stop_token_ids) == (0, 0.0, (5, EOS))


async def test_an_end_of_text_token_outside_the_vocabulary_is_left_out(server: Server) -> None:
    assert server.engine.info is not None
    server.engine.info = msgspec.structs.replace(server.engine.info, eos_token_ids=(-1, EOS, VOCAB))
    assert (await server.post(COMPLETIONS, body_for(COMPLETIONS, min_tokens=1)))[0] == 200
    assert server.engine.seen[0].sampling.stop_token_ids == (EOS,)


async def test_every_sampling_field_reaches_the_engine(server: Server) -> None:
    asked = {
        "temperature": 0.5,
        "top_p": 0.25,
        "top_k": 7,
        "min_p": 0.125,
        "min_tokens": 2,
        "presence_penalty": -1,
        "frequency_penalty": 1.5,
        "repetition_penalty": 1.25,
    }
    for path in BOTH:
        await server.post(path, body_for(path, **asked, logit_bias={"5": -100, "97": 2.5}, seed=3))  # type: ignore[arg-type]
        sampling = server.engine.seen[-1].sampling
        assert {name: getattr(sampling, name) for name in asked} == asked
        assert (sampling.logit_bias, sampling.seed) == ({5: -100.0, 97: 2.5}, 3)


async def test_what_can_never_fit_the_kv_budget_is_refused(server: Server) -> None:
    assert server.engine.info is not None
    server.engine.info = msgspec.structs.replace(server.engine.info, max_request_tokens=20)
    for path, text, param in (
        (CHAT, "x" * 15, "messages"),
        (COMPLETIONS, "x" * 20, "prompt"),
        (RESPONSES, "x" * 15, "input"),
    ):
        status, answer = await server.post(path, body_for(path, text=text))
        assert (status, answer["error"]["code"]) == (400, "kv_budget_exceeded")
        assert answer["error"]["param"] == param
    status, answer = await server.post(
        COMPLETIONS, body_for(COMPLETIONS, text="x" * 15) | {"max_tokens": None}
    )
    assert (status, answer["usage"]["completion_tokens"]) == (200, 5)


@pytest.mark.parametrize("path", BOTH)
async def test_each_request_is_recorded_once_with_its_counts(server: Server, path: str) -> None:
    server.engine.num_cached = 1
    await server.post(path, body_for(path))
    await stream(server, path, body_for(path, stop=text_of(path, {"choices": [_choice(path)]})))
    first, second = server.metrics.records
    assert (first.outcome, second.outcome) == ("length", "stop")
    assert first.endpoint == ("chat" if path == CHAT else "completions")
    assert (first.prompt_tokens, first.cached_tokens, first.generated_tokens) == (
        len(server.engine.seen[0].prompt_ids), 1, 4,
    )  # fmt: skip
    assert first.queue_seconds == 0.001
    assert first.ttft_seconds is not None
    assert first.e2e_seconds is not None
    assert len(first.inter_token_seconds) == 3
    async with server.session.get(server.url + "/metrics") as response:
        page = await response.text()
        assert response.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert f'radixserve_requests_total{{endpoint="{first.endpoint}",outcome="length"}} 1.0' in page


def _choice(path: str) -> Any:
    """A choice whose text is the second character of the reference answer."""
    text = reference(path)[1]
    return {"message": {"content": text}, "text": text}


async def test_the_best_of_several_answers_are_sent(server: Server) -> None:
    def answer(request: Request) -> list[int]:
        """The seed decides which letter is answered; the fake gives all the same logprob."""
        return [ord("a") + request.sampling.seed % 26] * request.sampling.max_tokens

    server.engine.answer = answer
    quality = {"a": -3.0, "b": -1.0, "c": -2.0, "d": -4.0}
    server.engine.logprob = lambda token: TokenLogprob(token, quality[chr(token)], [])
    body = body_for(COMPLETIONS, seed=0, n=2, best_of=4)
    status, whole = await server.post(COMPLETIONS, body | {"prompt": ["x", "y"]})
    assert status == 200
    assert [choice["text"] for choice in whole["choices"]] == ["bbbb", "cccc", "bbbb", "cccc"]
    assert [choice["index"] for choice in whole["choices"]] == [0, 1, 2, 3]
    assert all(choice["logprobs"] is None for choice in whole["choices"])
    assert whole["usage"]["completion_tokens"] == 2 * 4 * 4
    for wrong in ({"best_of": 1}, {"best_of": 17}, {"stream": True}):
        status, refusal = await server.post(COMPLETIONS, body | wrong)
        assert (status, refusal["error"]["param"]) == (400, "best_of")
