"""Clients that leave while the model writes a call of a tool: its work stops, in every dialect, and
the next good request is answered.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tests.api import test_messages_tools, test_responses_tools, test_tools
from tests.api.conftest import CHAT, MESSAGES, RESPONSES, Server
from tests.api.test_disconnect import assert_forgotten, connect, leave, raw_request, until
from tests.api.test_tools import TWO_CALLS, answering
from tests.fakes import repeat_prompt

ASKING: dict[str, Any] = {
    CHAT: test_tools.asking,
    RESPONSES: test_responses_tools.asking,
    MESSAGES: test_messages_tools.asking,
}
BEGUN = {CHAT: b'"tool_calls"', RESPONSES: b'"type":"function_call"', MESSAGES: b'"tool_use"'}
MOMENTS = {
    "in the markup": TWO_CALLS.index("call>"),
    "in the name": TWO_CALLS.index("ther"),
    "in the arguments": TWO_CALLS.index('": "Rome'),
    "between calls": TWO_CALLS.index("</tool_call>") + len("</tool_call>"),
    "in the second call": TWO_CALLS.rindex("{}"),
}


@pytest.mark.parametrize("reset", [False, True], ids=["fin", "rst"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize(("path", "n"), [(CHAT, 1), (CHAT, 2), (RESPONSES, 1), (MESSAGES, 1)])
async def test_a_client_that_leaves_within_a_call_stops_its_work(
    server: Server, path: str, n: int, moment: str, stream: bool, reset: bool
) -> None:
    answering(server, TWO_CALLS)
    server.engine.hold_at = MOMENTS[moment]
    body = ASKING[path](stream=stream, n=n)
    reader, writer = await connect(server, raw_request(path, body))
    await server.engine.held.wait()
    if stream and MOMENTS[moment] > MOMENTS["in the name"]:
        await reader.readuntil(BEGUN[path])
    leave(writer, reset)
    server.engine.answer = repeat_prompt
    await assert_forgotten(server, n)


@pytest.mark.parametrize("path", ASKING)
async def test_another_client_gets_its_calls(server: Server, path: str) -> None:
    answering(server, TWO_CALLS)
    server.engine.hold_at = MOMENTS["in the arguments"]
    reader, leaving = await connect(server, raw_request(path, ASKING[path](stream=True)))
    staying = asyncio.create_task(server.post(path, ASKING[path]()))
    await reader.readuntil(BEGUN[path])
    await until(lambda: len(server.engine.live) == 2)
    leave(leaving, reset=True)
    await until(lambda: len(server.engine.live) == 1)
    server.engine.go_on.set()
    status, answer = await staying
    assert status == 200
    assert json.dumps(answer).count("Rome") == 1
