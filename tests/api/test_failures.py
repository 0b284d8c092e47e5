"""Failures that are not the body's fault: paths and methods, overload, the engine, and what the
client is told when.
"""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import pytest

from radixserve.api.app import ApiSettings
from radixserve.api.context import TokenizerThreads
from radixserve.engine.faults import OUT_OF_MEMORY
from radixserve.errors import Unavailable
from tests.api.conftest import (
    ALIAS,
    CHAT,
    COMPLETIONS,
    GENERATING,
    MODEL,
    OPENAI_DIALECT,
    RESPONSES,
    Server,
    body_for,
    reference,
    text_of,
    with_choices,
)

BOTH = (CHAT, COMPLETIONS)


async def assert_still_serves(server: Server) -> None:
    assert server.engine.live == {}
    for path in OPENAI_DIALECT:
        status, answer = await server.post(path, body_for(path))
        assert (status, text_of(path, answer)) == (200, reference(path))


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "OPTIONS", "PATCH"])
@pytest.mark.parametrize(
    "path", ["/v1", "/v2/chat/completions", "/health/", "/" + "x" * 500, "/v1/completions/"]
)
async def test_an_unknown_path_is_not_found(server: Server, method: str, path: str) -> None:
    async with server.session.request(method, server.url + path) as response:
        answer = await response.json()
        assert response.status == 404
        assert answer["error"] == {
            "message": answer["error"]["message"],
            "type": "invalid_request_error",
            "param": None,
            "code": "not_found",
        }
        assert "x" * 65 not in answer["error"]["message"]
        assert response.headers["x-request-id"]


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", CHAT, "POST"),
        ("GET", RESPONSES, "POST"),
        ("GET", "/detokenize", "POST"),
        ("PUT", COMPLETIONS, "POST"),
        ("DELETE", "/tokenize", "POST"),
        ("POST", "/", "GET, HEAD"),
        ("HEAD", CHAT, "POST"),
        ("HEAD", "/ui/events", "GET"),
        ("POST", "/v1/models", "GET, HEAD"),
        ("POST", "/health/ready", "GET, HEAD"),
        ("POST", "/metrics", "GET, HEAD"),
    ],
)
async def test_a_wrong_method_is_told_the_right_ones(
    server: Server, method: str, path: str, allow: str
) -> None:
    async with server.session.request(method, server.url + path) as response:
        assert (response.status, response.headers["Allow"]) == (405, allow)
        if method == "HEAD":
            return
        answer = await response.json()
        assert answer["error"]["code"] == "method_not_allowed"


async def test_an_unknown_expectation_is_refused_as_an_envelope(server: Server) -> None:
    for path in (CHAT, "/nowhere"):
        headers = {"Expect": "a-miracle"}
        async with server.session.post(server.url + path, json={}, headers=headers) as response:
            assert response.status == 417
            assert (await response.json())["error"]["type"] == "invalid_request_error"


async def test_models_are_listed_and_found_by_name(server: Server) -> None:
    status, models = await server.get("/v1/models")
    assert status == 200
    assert [(model["id"], model["root"]) for model in models["data"]] == [
        (MODEL, MODEL),
        (ALIAS, MODEL),
    ]
    for model in models["data"]:
        assert await server.get(f"/v1/models/{model['id']}") == (200, model)
    status, answer = await server.get("/v1/models/other")
    assert (status, answer["error"]["code"]) == (404, "model_not_found")
    assert answer["error"]["message"] == (
        f"The model 'other' does not exist here; served is '{MODEL}'."
    )


async def test_version_says_whether_hits_are_exact(server: Server) -> None:
    status, answer = await server.get("/version")
    assert (status, answer["model"]) == (200, MODEL)
    assert (answer["engine"]["exact"], answer["engine"]["inexact_reason"]) == (True, None)
    assert answer["engine"]["fallback_reason"] is None


async def test_tokenize_gives_what_generation_computes_and_detokenize_reverses_it(
    server: Server,
) -> None:
    messages = [{"role": "user", "content": "hé"}]
    _, tokenized = await server.post("/tokenize", {"messages": messages})
    await server.post(CHAT, {"model": MODEL, "max_tokens": 1, "messages": messages})
    assert tokenized["tokens"] == server.engine.seen[0].prompt_ids
    assert tokenized["count"] == len(tokenized["tokens"])
    assert await server.post("/detokenize", {"tokens": tokenized["tokens"]}) == (
        200,
        {"prompt": "<turn>user: hé\n"},
    )
    _, tokenized = await server.post("/tokenize", {"prompt": "hi", "model": MODEL})
    assert tokenized == {"tokens": [104, 105], "count": 2, "max_model_len": 512}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", OPENAI_DIALECT)
async def test_a_full_queue_says_when_to_come_back(server: Server, path: str, stream: bool) -> None:
    server.engine.refuse_after = 0
    async with server.session.post(
        server.url + path, json=body_for(path, stream=stream)
    ) as response:
        answer = await response.json()
        assert (response.status, response.headers["Retry-After"]) == (503, "7")
    assert answer["error"]["code"] == "server_is_overloaded"
    assert server.engine.seen == []
    server.engine.refuse_after = None
    await assert_still_serves(server)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", BOTH)
async def test_a_queue_without_room_for_all_choices_takes_none(
    server: Server, path: str, stream: bool
) -> None:
    server.engine.refuse_after = 1
    async with server.session.post(
        server.url + path, json=body_for(path, n=3, stream=stream)
    ) as response:
        answer = await response.json()
        assert (response.status, response.headers["Retry-After"]) == (503, "7")
    assert answer["error"]["code"] == "server_is_overloaded"
    assert server.engine.aborted == [server.engine.seen[0].id]  # the choice that had been accepted
    assert [record.outcome for record in server.metrics.records] == ["error"]
    server.engine.refuse_after = None
    await assert_still_serves(server)


@pytest.mark.parametrize("path", OPENAI_DIALECT)
async def test_a_refusal_of_the_only_choice_is_a_rejection(server: Server, path: str) -> None:
    server.engine.refuse_after = 0
    status, _ = await server.post(path, body_for(path))
    assert status == 503
    assert [record.outcome for record in server.metrics.records] == ["rejected"]


async def test_an_unready_engine_refuses_with_the_reason_and_health_says_it(server: Server) -> None:
    server.engine.unready_reason = "draining"
    for path in OPENAI_DIALECT:
        async with server.session.post(server.url + path, json=body_for(path)) as response:
            assert (response.status, response.headers["Retry-After"]) == (503, "1")
            assert "draining" in (await response.json())["error"]["message"]
    for path in ("/health", "/health/ready"):
        status, answer = await server.get(path)
        assert (status, answer["error"]["code"]) == (503, "server_not_ready")
        assert "draining" in answer["error"]["message"]
    assert await server.get("/health/live") == (200, {"status": "live"})
    async with server.session.get(server.url + "/metrics") as response:
        assert "radixserve_engine_up 0.0" in await response.text()
    server.engine.unready_reason = None
    assert await server.get("/health") == (200, {"status": "ready"})
    await assert_still_serves(server)


async def test_while_the_engine_restarts_requests_are_taken_and_health_says_that_it_does(
    server: Server,
) -> None:
    server.engine.unready_reason = "restarting"
    for path in OPENAI_DIALECT:
        assert (await server.post(path, body_for(path)))[0] == 200
    assert (await server.post("/tokenize", {"prompt": "a"}))[0] == 200
    status, answer = await server.get("/health")
    assert (status, answer["error"]["code"]) == (503, "server_not_ready")
    assert "restarting" in answer["error"]["message"]


async def test_before_the_model_is_loaded_only_what_needs_it_is_refused(server: Server) -> None:
    info, server.engine.info = server.engine.info, None
    for path, body in (
        (CHAT, body_for(CHAT)),
        ("/tokenize", {"prompt": "a"}),
        ("/detokenize", {"tokens": [1]}),
    ):
        status, answer = await server.post(path, body)
        assert (status, answer["error"]["code"]) == (503, "server_not_ready")
    assert (await server.get("/v1/models"))[0] == 200
    assert (await server.get("/version"))[1]["engine"] is None
    async with server.session.get(server.url + "/metrics") as response:
        assert response.status == 200
    server.engine.info = info


@pytest.mark.parametrize(
    ("failure", "status", "code"),
    [("error", 500, "generation_failed"), ("abort", 503, "generation_aborted")],
)
@with_choices
async def test_a_failure_has_a_status_until_the_first_token(
    server: Server, path: str, n: int, failure: Any, status: int, code: str
) -> None:
    server.engine.failure = failure
    for fail_at, stream in ((0, False), (2, False), (0, True)):
        server.engine.fail_at = fail_at
        got, answer = await server.post(path, body_for(path, n=n, stream=stream))
        assert (got, answer["error"]["code"]) == (status, code)
        assert "the fake failed" in answer["error"]["message"]
    assert [record.outcome for record in server.metrics.records] == ["error"] * 3
    server.engine.fail_at = None
    await assert_still_serves(server)


@pytest.mark.parametrize(
    ("failure", "code"), [("error", "generation_failed"), ("abort", "generation_aborted")]
)
@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("path", BOTH)
async def test_a_failure_after_the_first_token_ends_the_stream_without_done(
    server: Server, path: str, n: int, failure: Any, code: str
) -> None:
    server.engine.fail_at, server.engine.failure = 2, failure
    async with server.session.post(
        server.url + path, json=body_for(path, n=n, stream=True)
    ) as response:
        assert response.status == 200
        events = (await response.text()).strip().split("\n\n")
    error = json.loads(events[-1].removeprefix("data: "))["error"]
    assert error["code"] == code
    assert not any("[DONE]" in event for event in events)
    assert [record.outcome for record in server.metrics.records] == ["error"]
    server.engine.fail_at = None
    await assert_still_serves(server)


@pytest.mark.parametrize("path", GENERATING)
async def test_what_turns_out_to_be_impossible_is_a_bad_request(server: Server, path: str) -> None:
    server.engine.failure = "refused"
    for fail_at, stream in ((0, False), (2, False), (0, True)):
        server.engine.fail_at = fail_at
        status, answer = await server.post(path, body_for(path, stream=stream))
        assert (status, answer["error"]["type"]) == (400, "invalid_request_error")
        assert "the fake failed" in answer["error"]["message"]
    server.engine.fail_at = 2
    async with server.session.post(server.url + path, json=body_for(path, stream=True)) as response:
        assert response.status == 200
        assert "the fake failed" in (await response.text()).strip().split("\n\n")[-1]
    server.engine.fail_at = None
    await assert_still_serves(server)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", OPENAI_DIALECT)
async def test_without_memory_the_client_is_told_to_come_again(
    server: Server, path: str, stream: bool
) -> None:
    server.engine.fail_at = 0 if stream else 2
    server.engine.failure, server.engine.error = OUT_OF_MEMORY.finish, OUT_OF_MEMORY.error
    async with server.session.post(
        server.url + path, json=body_for(path, stream=stream)
    ) as response:
        assert (response.status, response.headers["Retry-After"]) == (503, "1")
        error = (await response.json())["error"]
    assert error == {
        "message": "Not completed: the server ran out of memory. Try again.",
        "type": "server_error",
        "param": None,
        "code": "generation_aborted",
    }
    server.engine.fail_at = 2
    async with server.session.post(server.url + path, json=body_for(path, stream=True)) as response:
        *_, last = (await response.text()).strip().split("\n\n")
    event = json.loads(last.rpartition("data: ")[2])
    if path == RESPONSES:
        failed = {"code": "server_error", "message": error["message"]}
        assert (response.status, event["response"]["error"]) == (200, failed)
    else:
        assert (response.status, event) == (200, {"error": error})
    server.engine.fail_at = None
    await assert_still_serves(server)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", OPENAI_DIALECT)
async def test_what_nobody_expected_is_a_500_that_tells_nothing(
    server: Server, path: str, stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    def explode(request: object) -> list[int]:
        raise RuntimeError("secret path /etc/passwd")

    server.engine.answer = explode
    status, answer = await server.post(path, body_for(path, stream=stream))
    assert (status, answer["error"]["code"]) == (500, "internal_error")
    assert "secret" not in json.dumps(answer)
    assert "secret path" in caplog.text
    assert [record.outcome for record in server.metrics.records] == ["error"]
    server.engine.live.clear()


async def test_a_sane_request_id_comes_back_and_another_is_replaced(server: Server) -> None:
    async with server.session.get(
        server.url + "/health", headers={"x-request-id": "my-id.1"}
    ) as response:
        assert response.headers["x-request-id"] == "my-id.1"
    async with server.session.get(
        server.url + "/health", headers={"x-request-id": "a b<script>"}
    ) as response:
        assert response.headers["x-request-id"].startswith("req-")


async def test_two_requests_with_the_same_request_id_both_work(server: Server) -> None:
    headers = {"x-request-id": "same"}
    answers = await asyncio.gather(
        *(server.post(path, body_for(path), headers=headers) for path in OPENAI_DIALECT * 4)
    )
    assert [status for status, _ in answers] == [200] * 12
    assert len({request.id for request in server.engine.seen}) == 12


async def test_too_many_waiting_prompts_are_refused() -> None:
    threads = TokenizerThreads(ApiSettings(max_tokenizing=1))
    release = threading.Event()
    first = asyncio.create_task(threads.run(lambda: release.wait(10)))
    await asyncio.sleep(0)
    with pytest.raises(Unavailable):
        await threads.run(lambda: None)
    release.set()
    assert await first is True
    assert await threads.run(lambda: 5) == 5
    threads.close()
