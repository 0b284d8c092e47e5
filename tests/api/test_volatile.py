"""Lines that change with every request do not reach the prompt, in any dialect."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from radixserve.api.settings import ApiSettings
from radixserve.api.volatile import VolatilePrefixes, compiled
from radixserve.config import Settings
from radixserve.defaults import OPENAI
from radixserve.errors import ConfigError
from tests.api.conftest import CHAT, MESSAGES, RESPONSES, Server, body_for

LINE = "x-anthropic-billing-header: cc_version=2.1; cch=abc12;"


def removed(*messages: tuple[str, str], patterns: tuple[str, ...] = ("x-.*-header:", "At ")) -> Any:
    lines: list[None] = []
    volatile = VolatilePrefixes(compiled(patterns), lambda: lines.append(None))
    given = [{"role": role, "content": content} for role, content in messages]
    found = volatile.removed(given)
    return [(each["role"], each["content"]) for each in found], len(lines)


USER = ("user", "q")


@pytest.mark.parametrize(
    ("text", "rest", "num_lines"),
    [
        ("x-a-header: 1\nYou are", "You are", 1),
        ("x-a-header: 1\nAt noon\nYou are", "You are", 2),
        ("x-a-header: 1\n\nx-a-header: 2", "\nx-a-header: 2", 1),
        ("You are\nx-a-header: 1", "You are\nx-a-header: 1", 0),
        (" x-a-header: 1", " x-a-header: 1", 0),
        ("x-a\nheader", "x-a\nheader", 0),
        ("", "", 0),
    ],
)
def test_only_whole_lines_at_the_front_are_left_out(text: str, rest: str, num_lines: int) -> None:
    assert removed(("system", text), USER) == ([("system", rest), USER], num_lines)


def test_a_message_that_has_nothing_else_is_left_out_but_not_the_last_one() -> None:
    assert removed(("system", "x-a-header: 1"), USER) == ([USER], 1)
    assert removed(("system", "x-a-header: 1\n"), USER) == ([USER], 1)
    assert removed(("system", "x-a-header: 1")) == ([("system", "")], 1)


def test_many_lines_are_removed_in_time_of_their_length() -> None:
    """Copying what is left after each line would take minutes here."""
    num_lines = 1_000_000
    assert removed(("system", "At 1\n" * num_lines + "You are"), USER) == (
        [("system", "You are"), USER],
        num_lines,
    )


def test_what_others_than_the_system_say_stays() -> None:
    said = ("user", "x-a-header: 1")
    assert removed(said) == ([said], 0)
    assert removed(USER, ("system", said[1])) == ([USER, ("system", said[1])], 0)
    assert removed(("system", said[1]), USER, patterns=()) == ([("system", said[1]), USER], 0)


def test_the_default_names_the_line_of_a_common_agent_and_a_bad_expression_is_refused() -> None:
    (pattern,) = ApiSettings.of(Settings(), OPENAI).volatile_prefix
    assert pattern.match(LINE)


@pytest.mark.parametrize(
    "expression",
    ["(", "a{9999}", "((a{1000}){1000}){1000}", "(?=a)b", r"(a)\1", "\ud800"],
)
def test_what_is_not_an_expression_of_re2_is_refused(expression: str) -> None:
    with pytest.raises(ConfigError, match=r"volatile_prefix: .*RE2"):
        ApiSettings.of(Settings(volatile_prefix=("At ", expression)), OPENAI)


@pytest.mark.parametrize("expression", ["(a+)+$", "(a|aa)+$", "(.*a){20}$", "(a*)*b", "(é|a+)*c"])
def test_no_expression_takes_long(expression: str) -> None:
    """Python's own regular expressions would take years."""
    text = "a" * 4000 + "!"
    assert removed(("system", text), USER, patterns=(expression,)) == ([("system", text), USER], 0)


class TestServed:
    @pytest.fixture
    def settings(self) -> ApiSettings:
        return ApiSettings.of(Settings(), OPENAI)

    @pytest.mark.parametrize("path", [CHAT, MESSAGES, RESPONSES])
    async def test_prompts_are_the_same_with_and_without_the_line(
        self, server: Server, path: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO)
        for text in (f"{LINE}\nbe brief", "be brief", f"{LINE} 2\nbe brief"):
            assert (await server.post(path, with_system(path, text)))[0] == 200
        first, *others = [request.prompt_ids for request in server.engine.seen]
        assert others == [first] * 2
        async with server.session.get(server.url + "/metrics") as response:
            page = await response.text()
        assert "radixserve_volatile_prefix_removed_total 2.0" in page
        assert caplog.text.count("volatile_prefix") == 1
        assert "cch" not in caplog.text


def with_system(path: str, text: str) -> dict[str, Any]:
    """A body whose system prompt is `text`."""
    body = body_for(path)
    if path == CHAT:
        body["messages"].insert(0, {"role": "system", "content": text})
    elif path == MESSAGES:
        first, _, rest = text.partition("\n")
        blocks = [first, rest] if rest else [first]
        body["system"] = [{"type": "text", "text": block} for block in blocks]
    else:
        body["instructions"] = text
    return body
