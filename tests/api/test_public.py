"""Public prefixes: which tokens of whose prompts are public, and files that cannot be used."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from radixserve.api.app import ApiSettings
from radixserve.api.cache import public
from radixserve.api.cache.public import share, share_again
from radixserve.api.context import Api
from radixserve.body_file import FileBody
from radixserve.config import Settings
from radixserve.errors import ConfigError
from radixserve.prefix import PUBLIC
from radixserve.preparations import public_bodies
from radixserve.questions import Explain, Pin
from tests.api.conftest import (
    CHAT,
    COMPLETIONS,
    GENERATING,
    MESSAGES,
    MODEL,
    RESPONSES,
    Server,
    body_for,
)

SYSTEM = "You are helpful."
KEYS = "".join(f"[tenants.{each}]\nkeys = ['key-{each}']\nadmin = true\n" for each in ("a", "b"))


@pytest.fixture
def settings(tmp_path: Path) -> ApiSettings:
    path = tmp_path / "keys.toml"
    path.write_text(KEYS)
    return ApiSettings(api_key_file=str(path), lingering_seconds=0.1)


def bodies(*fields: dict[str, Any]) -> list[FileBody]:
    return [FileBody(number, each) for number, each in enumerate(fields, 1)]


CONVERSATION = {"messages": [{"role": "system", "content": SYSTEM}]}


def asking(path: str, question: str, **more: Any) -> dict[str, Any]:
    """A body that begins with SYSTEM."""
    body = body_for(path, question, **more)
    if path == CHAT:
        body["messages"].insert(0, CONVERSATION["messages"][0])
    elif path == MESSAGES:
        body["system"] = SYSTEM
    elif path == RESPONSES:
        body["instructions"] = SYSTEM
    else:
        body["prompt"] = f"{SYSTEM} {question}"
    return body


async def asked(server: Server, key: str, path: str, body: dict[str, Any]) -> tuple[str, int]:
    """Namespace and number of public tokens of the request that the engine gets."""
    assert (await server.post(path, body, headers={"x-api-key": f"key-{key}"}))[0] == 200
    request = server.engine.seen[-1]
    return request.namespace, request.num_public


def text_of(server: Server, api: Api) -> str:
    request = server.engine.seen[-1]
    return api.tokenizer.decode(request.prompt_ids[: request.num_public], skip_special_tokens=False)


class TestRequests:
    @pytest.mark.parametrize("path", GENERATING)
    async def test_every_tenant_shares_the_public_part_and_nothing_else(
        self, server: Server, path: str
    ) -> None:
        line = {"prompt": SYSTEM} if path == COMPLETIONS else CONVERSATION
        await share(server.api, "p", bodies(line))
        first = await asked(server, "a", path, asking(path, "What?"))
        second = await asked(server, "b", path, asking(path, "Who?"))
        assert first[1] == second[1] > len(SYSTEM) - 1
        assert len({first[0], second[0], PUBLIC}) == 3
        shared = text_of(server, server.api)
        assert SYSTEM in shared
        assert "Who" not in shared
        assert "user" not in shared
        for other in ("no", "What?"):
            body = body_for(path, other)
            assert (await asked(server, "a", path, body))[1] == 0

    @pytest.mark.parametrize("path", [CHAT, COMPLETIONS, RESPONSES])
    async def test_a_salt_keeps_all_of_it_private(self, server: Server, path: str) -> None:
        await share(server.api, "p", bodies(CONVERSATION, {"prompt": SYSTEM}))
        assert (await asked(server, "a", path, asking(path, "x")))[1] > 0
        assert (await asked(server, "a", path, asking(path, "x", cache_salt="s")))[1] == 0

    async def test_the_longest_counts(self, server: Server) -> None:
        await share(server.api, "p", bodies(*({"tokens": [97] * n} for n in (2, 5, 3))))
        for length, num_public in ((1, 0), (2, 2), (4, 3), (5, 5), (9, 5)):
            body = body_for(COMPLETIONS) | {"prompt": [97] * length}
            assert (await asked(server, "a", COMPLETIONS, body))[1] == num_public

    async def test_explain_and_pins_ask_for_the_public_part(self, server: Server) -> None:
        await share(server.api, "p", bodies({"tokens": [97, 98]}))
        headers = {"x-api-key": "key-a"}
        for body in ({"tokens": [97, 98, 99]}, {"prompt": "abc"}):
            await server.post("/cache/explain", body, headers=headers)
            await server.post("/cache/pin", {**body, "ttl": 60}, headers=headers)
        questions = server.engine.asked
        assert [type(each) for each in questions] == [Explain, Pin, Explain, Pin]
        assert {each.num_public for each in questions} == {2}  # type: ignore[attr-defined]

    async def test_without_a_file_of_keys_nothing_is_public(self, server: Server) -> None:
        namespaces = type(server.api.namespaces)(None)
        namespaces.share([[97]])
        assert namespaces.num_public(PUBLIC, [97, 98]) == 0


class TestFiles:
    @pytest.mark.parametrize(
        ("fields", "reason"),
        [
            ({}, "must have 'messages'"),
            ({"prompt": ["a", "b"]}, "several prompts"),
            ({"prompt": "a", "cache_salt": "s"}, "salt"),
            ({"prompt": "a", "tenant": "a"}, "tenant"),
            ({"tokens": []}, "tokens|prompt"),
            ({"tokens": [10**6]}, "vocabulary"),
            ({"prompt": "a" * 5000}, "context"),
            ({"messages": []}, "messages"),
            ({"prompt": ""}, "empty"),
        ],
    )
    async def test_a_line_that_cannot_be_used_is_named(
        self, server: Server, fields: dict[str, Any], reason: str
    ) -> None:
        with pytest.raises(ConfigError, match=f"line 2 of p cannot be used: .*({reason})"):
            await share(server.api, "p", bodies({"prompt": "ok"}, fields))
        assert server.api.namespaces.num_public(PUBLIC, list(b"ok, then")) == 0

    async def test_a_reload_takes_all_of_the_file_or_nothing(
        self, server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        path, namespaces = tmp_path / "public.jsonl", server.api.namespaces
        path.write_text('{"tokens": [1, 2]}\n{"tokens": [3]}')
        await share_again(server.api, str(path))
        assert [namespaces.num_public(PUBLIC, each) for each in ([1, 2, 3], [3], [2])] == [2, 1, 0]
        for broken in ('{"tokens": [4]}\n{"tokens": 5}', "nonsense", ""):
            path.write_text(broken)
            await share_again(server.api, str(path))
            assert namespaces.num_public(PUBLIC, [1, 2, 3]) == 2
        assert caplog.text.count("the public prefixes stay as they were") == 3
        path.write_text('{"tokens": [4]}')
        await share_again(server.api, str(path))
        assert [namespaces.num_public(PUBLIC, each) for each in ([1, 2, 3], [4])] == [0, 1]

    async def test_a_reload_waits_for_an_engine_that_does_not_start(
        self,
        server: Server,
        tmp_path: Path,
        caplog: pytest.LogCaptureFixture,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(public, "_AGAIN_SECONDS", 0.0)
        path, namespaces = tmp_path / "public.jsonl", server.api.namespaces
        path.write_text('{"tokens": [1, 2]}')
        server.engine.unready_reason = "failing"
        reload = asyncio.create_task(share_again(server.api, str(path)))
        async with asyncio.timeout(10):
            while "failing" not in caplog.text:
                await asyncio.sleep(0.001)
            server.engine.unready_reason = None
            await reload
        assert namespaces.num_public(PUBLIC, [1, 2, 3]) == 2
        assert caplog.text.count("failing") == 1

    async def test_a_prefix_longer_than_the_budget_is_left_out_with_a_warning(
        self, server: Server, caplog: pytest.LogCaptureFixture
    ) -> None:
        info = server.engine.info
        assert info is not None
        server.engine.info = msgspec.structs.replace(info, num_slots=64, max_request_tokens=65)
        await share(server.api, "p", bodies({"prompt": "a" * 65}, {"tokens": [98] * 64}))
        assert server.api.namespaces.num_public(PUBLIC, list(b"b" * 70)) == 64
        assert server.api.namespaces.num_public(PUBLIC, list(b"a" * 70)) == 0
        assert "the public prefix in line 1 of p is left out" in caplog.text
        assert "65 tokens" in caplog.text
        server.engine.info = info
        await share(server.api, "p", bodies({"prompt": "a" * 65}))
        assert server.api.namespaces.num_public(PUBLIC, list(b"a" * 70)) == 65

    def test_the_file_is_looked_at_before_the_start(self, tmp_path: Path) -> None:
        missing = str(tmp_path / "none")
        with pytest.raises(ConfigError, match="api_key_file"):
            public_bodies(Settings(public_prefix=missing))
        with pytest.raises(ConfigError, match="none: No such file"):
            public_bodies(Settings(public_prefix=missing, api_key_file="keys.toml"))
        assert public_bodies(Settings()) == []


async def test_a_template_may_depend_on_what_follows(server: Server) -> None:
    """Whatever is common to all continuations is public, and not more."""
    few_shots = [
        {"role": "user", "content": "2 + 2"},
        {"role": "assistant", "content": "4"},
        {"role": "user", "content": "3 + 3"},
    ]
    await share(server.api, "p", bodies({"messages": few_shots}))
    body = {"model": MODEL, "messages": few_shots, "max_tokens": 2}
    _, num_public = await asked(server, "a", CHAT, body)
    prompt = server.engine.seen[-1].prompt_ids
    assert 0 < num_public <= len(prompt)
    assert text_of(server, server.api).rstrip().endswith("3 + 3")
