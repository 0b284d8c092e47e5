"""Every request has an id in its answer and in its log lines; every error is logged and counted."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from radixserve.logs import REQUEST_ID
from tests.api.conftest import CHAT, COMPLETIONS, OPENAI_DIALECT, Server, body_for

BOTH = (CHAT, COMPLETIONS)
ID = {"x-request-id": "my-id"}


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Iterator[list[tuple[str, str]]]:
    """(request id, message) of every line logged."""
    seen: list[tuple[str, str]] = []

    def note(record: logging.LogRecord) -> bool:
        seen.append((REQUEST_ID.get(), record.getMessage()))
        return True

    caplog.set_level(logging.INFO, "radixserve")
    caplog.handler.addFilter(note)
    yield seen
    caplog.handler.removeFilter(note)


def counted(server: Server) -> dict[str, float]:
    """Errors by code, those without any left out."""
    page = server.metrics.render(server.engine.stats, server.engine.info).decode()
    return {
        sample.labels["code"]: sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
        if sample.name == "radixserve_request_errors_total" and sample.value
    }


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", OPENAI_DIALECT)
async def test_a_request_has_one_line_with_its_id(
    server: Server, path: str, stream: bool, lines: list[tuple[str, str]]
) -> None:
    body = body_for(path, stream=stream)
    async with server.session.post(server.url + path, json=body, headers=ID) as response:
        assert response.headers["x-request-id"] == "my-id"
        await response.read()
    ((identity, message),) = lines
    assert identity == "my-id"
    assert " length prompt=" in message
    assert counted(server) == {}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", OPENAI_DIALECT)
async def test_a_refusal_is_logged_with_status_code_field_and_id_and_counted(
    server: Server, path: str, stream: bool, lines: list[tuple[str, str]]
) -> None:
    body = body_for(path, text="private", stream=stream, temperature=9)
    status, _ = await server.post(path, body, headers=ID)
    code = "decimal_above_max_value"
    assert status == 400
    assert lines == [("my-id", f"POST {path}: status=400 code={code} field='temperature'")]
    assert counted(server) == {code: 1}


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("GET", "/nowhere", "", 404, "not_found"),
        ("PUT", "/health", "", 405, "method_not_allowed"),
        ("POST", "/tokenize", "{", 400, "invalid_json"),
        ("POST", "/detokenize", "{}", 400, "missing_required_parameter"),
        ("GET", "/v1/models/other", "", 404, "model_not_found"),
        ("GET", "/a%0Ab%1B", "", 404, "not_found"),
    ],
)
async def test_errors_of_every_endpoint_are_logged_and_counted(
    server: Server, method: str, path: str, body: str, status: int, code: str,
    lines: list[tuple[str, str]],
) -> None:  # fmt: skip
    from yarl import URL

    url = URL(server.url + path, encoded=True)
    async with server.session.request(method, url, data=body, headers=ID) as response:
        assert response.status == status
    ((identity, message),) = lines
    assert (identity, message.partition(" field=")[0]) == (
        "my-id",
        f"{method} {path}: status={status} code={code}",
    )
    assert counted(server) == {code: 1}


@pytest.mark.parametrize("path", BOTH)
async def test_a_failure_told_in_a_stream_is_logged_and_counted(
    server: Server, path: str, lines: list[tuple[str, str]]
) -> None:
    server.engine.fail_at = 2
    body = body_for(path, stream=True)
    async with server.session.post(server.url + path, json=body, headers=ID) as response:
        *_, last = (await response.text()).strip().split("\n\n")
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "generation_failed"
    assert [identity for identity, _ in lines] == ["my-id", "my-id"]
    assert lines[0][1] == f"POST {path}: status=500 code=generation_failed field=None"
    assert " error prompt=" in lines[1][1]
    assert counted(server) == {"generation_failed": 1}


async def test_a_code_that_is_not_listed_counts_as_other(server: Server) -> None:
    server.metrics.error_told("made_up")
    server.metrics.error_told(None)
    assert counted(server) == {"other": 2}
