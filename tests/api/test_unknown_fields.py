"""Fields that this version does not know: refused, or left out where the operator says so."""

from __future__ import annotations

import logging

import pytest

from radixserve.api.app import ApiSettings
from radixserve.api.body import decode_known
from radixserve.api.openai.wire import ChatBody
from radixserve.errors import BadRequest
from tests.api.conftest import RESPONSES, Server, body_for

GOOD = b'{"messages": [{"role": "user", "content": "a"}]'


def test_unknown_fields_are_left_out_at_every_level_and_the_log_names_them(
    caplog: pytest.LogCaptureFixture,
) -> None:
    raw = b'{"mood": 1, "messages": [{"role": "user", "content": "a", "tone": {"x": [1]}}]}'
    with caplog.at_level(logging.WARNING):
        body = decode_known(raw, ChatBody)
    assert body == decode_known(GOOD + b"}", ChatBody)
    assert "'mood'" in caplog.text
    assert "messages[0].tone" in caplog.text


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (GOOD + b', "mood": 1, "temperature": "hot"}', "invalid_type"),
        (GOOD + b', "mood": 1', "invalid_json"),
        (b'{"mood": 1}', "missing_required_parameter"),
        (GOOD + b"".join(b', "f%d": 1' % i for i in range(100)) + b"}", "unknown_parameter"),
        (GOOD + b', "a.b": 1}', "unknown_parameter"),
        (GOOD + b', "": 1}', "unknown_parameter"),
        (GOOD + b', ".[]": 1}', "unknown_parameter"),
        (GOOD + b', "' + b"x" * 3000 + b'": 1}', "unknown_parameter"),
        (b'{"messages": [{"role": "user", "content": "a", "": 1}]}', "unknown_parameter"),
    ],
)
def test_what_is_wrong_otherwise_is_refused_as_always(raw: bytes, code: str) -> None:
    with pytest.raises(BadRequest) as refusal:
        decode_known(raw, ChatBody)
    assert refusal.value.code == code


class TestResponses:
    @pytest.fixture
    def settings(self) -> ApiSettings:
        return ApiSettings(ignore_unknown_fields=True)

    async def test_unknown_members_of_items_and_hosted_tools_are_left_out(
        self, server: Server, caplog: pytest.LogCaptureFixture
    ) -> None:
        function = {"type": "function", "name": "f", "mood": 1}
        body = body_for(RESPONSES) | {
            "input": [{"role": "user", "content": "abc", "tone": 1}],
            "tools": [{"type": "web_search"}, function],
        }
        status, answer = await server.post(RESPONSES, body)
        assert status == 200, answer
        assert [tool["type"] for tool in answer["tools"]] == ["function"]
        assert "'web_search'" in caplog.text
        assert "input[0].tone" in caplog.text
        assert "tools[0].mood" in caplog.text
        plain = body_for(RESPONSES) | {"tools": [{"type": "function", "name": "f"}]}
        await server.post(RESPONSES, plain)
        first, second = server.engine.seen
        assert first.prompt_ids == second.prompt_ids
