"""Tenants with keys in a file: who is let in, who may do what, and reading the file again."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from radixserve.api.app import ApiSettings
from radixserve.api.keys import Keys
from radixserve.api.namespaces import SECRET_FILE, Namespaces, tenant_secret
from radixserve.api.tenant_limits import Bucket
from radixserve.errors import ConfigError
from radixserve.key_file import hashed
from radixserve.questions import Drop, Dropped, Explain, Explanation
from tests.api.conftest import CHAT, COMPLETIONS, GENERATING, MESSAGES, Server, body_for
from tests.api.test_access import GETS, HEALTH, every_endpoint, status

FILE = """
[tenants.ours]
keys = ["key-ours", "key-ours-2"]
[tenants.theirs]
keys = ["key-theirs"]
[tenants.boss]
keys = ["key-boss"]
admin = true
"""


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "keys.toml"
    path.write_text(FILE)
    return path


@pytest.fixture
def settings(key_file: Path) -> ApiSettings:
    return ApiSettings(api_key_file=str(key_file), api_key="key-owner", lingering_seconds=0.1)


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.mark.parametrize("key", ["key-ours", "key-ours-2", "key-theirs", "key-boss", "key-owner"])
async def test_every_key_is_taken_in_both_headers(server: Server, key: str) -> None:
    for headers in (bearer(key), {"x-api-key": key}):
        for path in GENERATING:
            assert (await server.post(path, body_for(path), headers=headers))[0] == 200


async def test_no_key_and_a_wrong_one_are_refused_in_the_dialect(server: Server) -> None:
    for headers in ({}, bearer("key-our"), {"x-api-key": "sha256:"}):
        assert await every_endpoint(server, headers) == {(401, "invalid_api_key")}
        code, answer = await server.post(MESSAGES, body_for(MESSAGES), headers=headers)
        assert (code, answer["error"]["type"]) == (401, "authentication_error")


async def test_metrics_are_for_administrators_by_default(server: Server) -> None:
    for key, expected in (("key-ours", 403), ("key-boss", 200), ("key-owner", 200)):
        assert (await status(server, "GET", "/metrics", bearer(key)))[0] == expected
        for path in GETS:
            if path != "/metrics":
                assert await status(server, "GET", path, bearer(key)) == (200, None)
        for path in HEALTH:
            assert await status(server, "GET", path, {}) == (200, None)


class TestOpenAndClosed:
    @pytest.fixture
    def settings(self, key_file: Path) -> ApiSettings:
        return ApiSettings(api_key_file=str(key_file), health_access="admin", metrics_access="open")

    async def test_settings_open_metrics_and_close_health(self, server: Server) -> None:
        assert await status(server, "GET", "/metrics", {}) == (200, None)
        for path in HEALTH:
            assert await status(server, "GET", path, {}) == (401, "invalid_api_key")
            assert await status(server, "GET", path, bearer("key-ours")) == (403, "admin_required")
            assert await status(server, "GET", path, bearer("key-boss")) == (200, None)


class TestReload:
    def test_keys_come_and_go(self, key_file: Path) -> None:
        keys = Keys(None, str(key_file))
        key_file.write_text(FILE.replace("key-theirs", "key-new"))
        assert asyncio.run(keys.reload())
        assert keys.owner_of("key-theirs") is None
        tenant = keys.owner_of("key-new")
        assert tenant is not None
        assert tenant.name == "theirs"

    @pytest.mark.parametrize("broken", ["", "[tenants.a]\nkeys = 1", "\0"])
    def test_a_broken_file_changes_nothing_and_is_told(
        self, key_file: Path, broken: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        keys = Keys("key-owner", str(key_file))
        before = keys.tenants
        key_file.write_text(broken)
        assert not asyncio.run(keys.reload())
        assert "stay as they were" in caplog.text
        key_file.unlink()
        assert not asyncio.run(keys.reload())
        assert keys.tenants == before
        assert keys.owner_of("key-ours") is not None
        assert keys.owner_of("key-owner") is not None

    def test_the_hash_of_nothing_lets_nobody_in(self, key_file: Path) -> None:
        key_file.write_text(f'[tenants.ours]\nkeys = ["{hashed("")}"]\n')
        assert Keys(None, str(key_file)).owner_of("") is None

    def test_plain_keys_are_warned_of_and_not_shown(
        self, key_file: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        Keys(None, str(key_file))
        assert "ours, theirs, boss" in caplog.text
        assert "key-" not in caplog.text


async def test_a_running_answer_survives_that_its_key_is_withdrawn(
    server: Server, key_file: Path
) -> None:
    server.engine.hold_at = 2
    body = body_for(CHAT, stream=True)
    async with server.session.post(
        server.url + CHAT, json=body, headers=bearer("key-ours")
    ) as response:
        await server.engine.held.wait()
        await asyncio.to_thread(key_file.write_text, "[tenants.boss]\nkeys = ['key-boss']")
        assert await server.keys.reload()
        server.engine.go_on.set()
        assert "[DONE]" in await response.text()
    assert (await server.post(CHAT, body_for(CHAT), headers=bearer("key-ours")))[0] == 401


class TestNamespaces:
    """In pairs: the same tenant shares, another does not, whatever it sends."""

    @pytest.mark.parametrize("path", GENERATING)
    async def test_each_tenant_has_its_own_at_every_endpoint(
        self, server: Server, path: str
    ) -> None:
        for key in ("key-ours", "key-ours-2", "key-theirs", "key-owner"):
            assert (await server.post(path, body_for(path), headers=bearer(key)))[0] == 200
        ours, also_ours, theirs, default = server.engine.seen
        assert ours.namespace == also_ours.namespace
        assert len({ours.namespace, theirs.namespace, default.namespace, "public"}) == 4
        assert [each.tenant for each in server.engine.seen] == ["ours", "ours", "theirs", "default"]

    @pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
    async def test_a_salt_separates_within_a_tenant_and_forges_nothing(
        self, server: Server, path: str
    ) -> None:
        async def namespace(key: str, **fields: str) -> str:
            await server.post(path, body_for(path) | fields, headers=bearer(key))
            return server.engine.seen[-1].namespace

        ours = await namespace("key-ours")
        salted = await namespace("key-ours", cache_salt="s")
        assert salted == await namespace("key-ours", cache_salt="s")
        guesses = ("s", "public", "ours", ours, salted, ours.partition("/")[2], "ours\0public")
        forged = [await namespace("key-theirs", cache_salt=each) for each in guesses]
        forged += [await namespace("key-theirs", extra_key=each) for each in guesses]
        assert salted != ours
        assert {ours, salted}.isdisjoint(forged)
        assert all(each.startswith("theirs/") for each in forged)

    def test_without_a_file_namespaces_are_as_before(self) -> None:
        assert Namespaces(None).of("default", "public") == "public"

    def test_the_secret_is_kept_in_the_disk_folder_for_its_owner_only(self, tmp_path: Path) -> None:
        first = tenant_secret(None, str(tmp_path))
        path = tmp_path / SECRET_FILE
        assert path.stat().st_mode & 0o777 == 0o600
        path.chmod(0o644)
        assert tenant_secret(None, str(tmp_path)) == first
        assert path.stat().st_mode & 0o777 == 0o600
        assert tenant_secret("given", str(tmp_path)) == b"given"
        assert [each.name for each in tmp_path.iterdir()] == [SECRET_FILE]
        assert tenant_secret(None, None) != tenant_secret(None, None)
        path.write_text("broken")
        with pytest.raises(ConfigError, match=SECRET_FILE):
            tenant_secret(None, str(tmp_path))


LIMITED = """
[tenants.few]
keys = ["key-few"]
requests_per_minute = 2
[tenants.small]
keys = ["key-small"]
tokens_per_minute = 10
[tenants.narrow]
keys = ["key-narrow"]
concurrent_requests = 1
[tenants.urgent]
keys = ["key-urgent"]
max_priority = 5
"""
POSTS = {path: body_for(path) for path in GENERATING} | {
    "/tokenize": {"prompt": "hi"},
    "/v1/messages/count_tokens": {"messages": [{"role": "user", "content": "hi"}]},
    "/v1/responses/input_tokens": {"input": "hi"},
}


class TestLimits:
    @pytest.fixture
    def settings(self, key_file: Path) -> ApiSettings:
        key_file.write_text(FILE + LIMITED)
        return ApiSettings(api_key_file=str(key_file), lingering_seconds=0.1)

    async def refused(self, server: Server, path: str, key: str) -> str:
        """That the request is refused by a limit; returns the message."""
        async with server.session.post(
            server.url + path, json=POSTS[path], headers=bearer(key)
        ) as response:
            answer = await response.json()
            assert response.status == 429, answer
            assert 1 <= int(response.headers["Retry-After"]) <= 120
        error = answer["error"]
        assert error["type"] == "rate_limit_error"
        if "/v1/messages" not in path:
            assert error["code"] == "rate_limit_exceeded"
        return str(error["message"])

    @pytest.mark.parametrize("path", POSTS)
    async def test_requests_per_minute_at_every_endpoint(self, server: Server, path: str) -> None:
        for _ in range(2):
            assert (await server.post(path, POSTS[path], headers=bearer("key-few")))[0] == 200
        assert "2 requests per minute" in await self.refused(server, path, "key-few")
        assert (await server.post(path, POSTS[path], headers=bearer("key-ours")))[0] == 200
        assert await status(server, "GET", "/v1/models", bearer("key-few")) == (200, None)

    @pytest.mark.parametrize("path", POSTS)
    async def test_tokens_per_minute_at_every_endpoint(self, server: Server, path: str) -> None:
        body = body_for(COMPLETIONS, "x" * 20)
        assert (await server.post(COMPLETIONS, body, headers=bearer("key-small")))[0] == 200
        assert "10 tokens per minute" in await self.refused(server, path, "key-small")

    @pytest.mark.parametrize("path", POSTS)
    async def test_requests_at_a_time_at_every_endpoint(self, server: Server, path: str) -> None:
        server.engine.hold_at = 1
        headers = bearer("key-narrow")
        held = asyncio.create_task(server.post(CHAT, body_for(CHAT), headers=headers))
        await server.engine.held.wait()
        assert "1 requests" in await self.refused(server, path, "key-narrow")
        server.engine.go_on.set()
        assert (await held)[0] == 200
        server.engine.hold_at = None
        assert (await server.post(path, POSTS[path], headers=headers))[0] == 200

    async def test_what_the_engine_refuses_costs_no_tokens(self, server: Server) -> None:
        server.engine.refuse_after = 0
        for _ in range(3):
            code, _ = await server.post(CHAT, body_for(CHAT), headers=bearer("key-small"))
            assert code == 503

    @pytest.mark.parametrize(
        ("key", "priority", "expected"),
        [("key-ours", 0, 200), ("key-ours", 100, 200), ("key-ours", -1, 400),
         ("key-ours", 101, 400), ("key-urgent", -5, 200), ("key-urgent", -6, 400)],
    )  # fmt: skip
    async def test_priority_is_bounded_by_the_tenant(
        self, server: Server, key: str, priority: int, expected: int
    ) -> None:
        body = body_for(CHAT, priority=priority)
        code, answer = await server.post(CHAT, body, headers=bearer(key))
        assert code == expected
        if code == 200:
            assert server.engine.seen[-1].priority == priority
        else:
            assert answer["error"]["param"] == "priority"


def test_a_bucket_fills_at_its_rate_and_holds_a_minutes_worth() -> None:
    now = [0.0]
    bucket = Bucket(lambda: now[0])
    assert bucket.seconds_until(1, 60) == 0
    bucket.take(90, 60)
    assert bucket.seconds_until(1, 60) == pytest.approx(31)
    now[0] = 31
    assert bucket.seconds_until(1, 60) == 0
    now[0] = 10_000
    bucket.take(60, 60)
    assert bucket.seconds_until(1, 60) == pytest.approx(1)
    assert bucket.seconds_until(1000, 60) == pytest.approx(60)


@pytest.mark.parametrize("path", ["/cache/explain", "/cache/warm", "/cache/pin"])
@pytest.mark.parametrize("prompt", [{"tokens": [97, 98]}, {"prompt": "ab"}])
async def test_an_administrator_may_name_the_tenant_of_a_prompt(
    server: Server, path: str, prompt: dict[str, object]
) -> None:
    body = prompt | {"tenant": "ours"} | ({"ttl": 60} if path == "/cache/pin" else {})
    assert (await server.post(path, body, headers=bearer("key-boss")))[0] == 200
    (asked,) = server.engine.seen if path == "/cache/warm" else server.engine.asked
    assert getattr(asked, "namespace", "").startswith("ours/")
    code, answer = await server.post(path, body, headers=bearer("key-theirs"))
    assert (code, answer["error"]["code"]) == (403, "admin_required")
    for wrong, reason in (("x", "invalid_value"), (5, "invalid_type")):
        code, answer = await server.post(path, body | {"tenant": wrong}, headers=bearer("key-boss"))
        assert (code, answer["error"]["param"]) == (400, "tenant")
        assert answer["error"]["code"] == reason


@pytest.mark.parametrize("query", ["tenant=nobody", "namespace=nobody/12"])
async def test_a_drop_of_a_tenant_that_never_was_is_refused(server: Server, query: str) -> None:
    """One that is not in the file any more may still have something."""
    for dropped, code in ((Dropped(), 400), (Dropped(tokens=3, nodes=1), 200)):
        server.engine.answers[Drop] = dropped
        url, headers = f"{server.url}/cache?{query}", bearer("key-boss")
        async with server.session.delete(url, headers=headers) as response:
            assert response.status == code
            answer = await response.json()
        assert code == 200 or "no tenant 'nobody' in the key file" in answer["error"]["message"]


async def test_explain_does_not_tell_a_tenant_what_others_have(server: Server) -> None:
    """The prompt leaves the tenant's own in an early message, and may be another's."""
    messages = [{"role": "user", "content": "hello"}, {"role": "user", "content": "hi"}]
    body = body_for(CHAT) | {"messages": messages}

    async def told(key: str) -> list[dict[str, Any]]:
        answers = []
        for lost, gone_for in (({"never_seen": 5}, 7), ({"other_namespace": 5}, 9)):
            server.engine.answers[Explain] = Explanation(
                matched={"device": 9},
                lost=lost,
                differs_at=9,
                theirs=[97],
                theirs_from=9,
                gone_seconds=1.0,
                gone_for=gone_for,
            )
            answers.append((await server.post("/cache/explain", body, headers=bearer(key)))[1])
        return answers

    changed, elsewhere = await told("key-ours")
    assert changed == elsewhere
    assert changed["cause"] == "never_seen"
    changed, elsewhere = await told("key-boss")
    assert changed != elsewhere
