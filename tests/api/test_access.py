"""Who may ask: the API key, hosts, pages of other origins, CORS, and the paths under a prefix."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from unittest.mock import Mock

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

import radixserve
from radixserve.api.access import allowed_hosts, check_admin, identify_tenant, tenant_of
from radixserve.api.app import ApiSettings
from radixserve.api.keys import Keys
from radixserve.config import Settings
from radixserve.defaults import OPENAI
from radixserve.errors import Forbidden
from tests.api.conftest import CHAT, MODEL, OPENAI_DIALECT, Server, body_for, reference, text_of

BODIES = {path: body_for(path) for path in OPENAI_DIALECT} | {
    "/tokenize": {"prompt": "hi"},
    "/detokenize": {"tokens": [65]},
}
GETS = ("/", "/v1/models", f"/v1/models/{MODEL}", "/metrics", "/version")
HEALTH = ("/health", "/health/ready", "/health/live")
PAGE = "https://page.example"
ASKED = {"Origin": PAGE, "Access-Control-Request-Method": "POST",
         "Access-Control-Request-Headers": "authorization,content-type"}  # fmt: skip


async def status(
    server: Server, method: str, path: str, headers: dict[str, str], body: object = None
) -> tuple[int, str | None]:
    """Status and, of an error, its code."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"} | headers if data else headers
    async with server.session.request(
        method, server.url + path, data=data, headers=headers
    ) as response:
        assert response.headers["Server"] == "radixserve"
        assert response.headers["x-request-id"]
        if response.status < 400 or method == "HEAD":
            return response.status, None
        error = (await response.json())["error"]
        assert set(error) == {"message", "type", "param", "code"}
        return response.status, error["code"]


async def every_endpoint(server: Server, headers: dict[str, str]) -> set[tuple[int, str | None]]:
    """What all but the health endpoints answer to a good request with `headers`."""
    posts = {await status(server, "POST", path, headers, body) for path, body in BODIES.items()}
    return posts | {await status(server, "GET", path, headers) for path in GETS}


async def test_what_this_is_stands_at_the_root(server: Server) -> None:
    async with server.session.get(server.url + "/") as response:
        text = await response.text()
    assert "\n" not in text
    about = json.loads(text)
    assert (about["server"], about["version"]) == ("radixserve", radixserve.__version__)
    assert (about["model"], about["openai_base_url"]) == (MODEL, "/v1")


class TestKey:
    @pytest.fixture
    def settings(self) -> ApiSettings:
        return ApiSettings(api_key="sk-secret", lingering_seconds=0.1)

    @pytest.mark.parametrize(
        "given",
        ["", "Bearer", "Bearer ", "Bearer sk-secre", "Bearer sk-secret2", "Basic sk-secret",
         "sk-secret", "Bearer SK-SECRET", "Bearer sk-secr\u00e9t"],
    )  # fmt: skip
    async def test_every_endpoint_but_health_refuses_a_wrong_key(
        self, server: Server, given: str
    ) -> None:
        headers = {"Authorization": given} if given else {}
        assert await every_endpoint(server, headers) == {(401, "invalid_api_key")}
        assert await status(server, "GET", "/nowhere", headers) == (401, "invalid_api_key")
        assert {await status(server, "GET", path, headers) for path in HEALTH} == {(200, None)}
        assert server.engine.seen == []

    @pytest.mark.parametrize("scheme", ["Bearer", "bearer"])
    async def test_the_right_key_is_taken(self, server: Server, scheme: str) -> None:
        headers = {"Authorization": f"{scheme} sk-secret"}
        assert await every_endpoint(server, headers) == {(200, None)}

    async def test_a_refusal_says_how_to_come_in_and_shows_no_key(
        self, server: Server, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level("DEBUG")
        headers = {"Authorization": "Bearer wrong-key"}
        async with server.session.get(server.url + "/v1/models", headers=headers) as response:
            assert response.headers["WWW-Authenticate"] == "Bearer"
            text = await response.text()
        assert "wrong-key" not in text + caplog.text
        assert "sk-secret" not in text + caplog.text

    def test_no_representation_shows_the_key(self) -> None:
        assert "sk-secret" not in repr(ApiSettings(api_key="sk-secret"))


def request_from(peer: object, headers: dict[str, str], key: str | None = None) -> web.Request:
    """A request whose tenant has been found out; `key` is the server's."""
    transport = Mock()
    transport.get_extra_info.return_value = peer
    request = make_mocked_request("POST", "/flush_cache", headers=headers, transport=transport)
    identify_tenant(request, Keys(key))
    return request


class TestAdmin:
    @pytest.mark.parametrize("peer", [("127.0.0.1", 1), ("::1", 1, 0, 0), ("::ffff:127.0.0.1", 1),
                                      ""])  # fmt: skip
    def test_without_keys_this_machine_is_allowed(self, peer: object) -> None:
        check_admin(request_from(peer, {}))

    @pytest.mark.parametrize(
        ("peer", "headers"),
        [
            (("10.0.0.7", 1), {}),
            (("::ffff:10.0.0.7", 1), {}),
            (("127.0.0.1", 1), {"X-Forwarded-For": "127.0.0.1"}),
            (("127.0.0.1", 1), {"Forwarded": "for=10.0.0.7"}),
            (("", {"Via": "1.1 proxy"})),
            (None, {}),
        ],
    )
    def test_without_keys_another_machine_is_not(
        self, peer: object, headers: dict[str, str]
    ) -> None:
        with pytest.raises(Forbidden) as refusal:
            check_admin(request_from(peer, headers))
        assert refusal.value.code == "admin_required"

    def test_the_only_key_is_that_of_an_administrator(self) -> None:
        request = request_from(("10.0.0.7", 1), {"x-api-key": "k"}, "k")
        check_admin(request)
        assert tenant_of(request).name == "default"


class TestHost:
    @pytest.fixture
    def settings(self) -> ApiSettings:
        hosts = allowed_hosts(Settings())
        return ApiSettings(allowed_hosts=hosts, lingering_seconds=0.1)

    @pytest.mark.parametrize(
        "host",
        ["evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example",
         "evillocalhost", "evil.example.", "[evil]", ""],
    )  # fmt: skip
    async def test_a_foreign_name_is_refused_on_loopback(self, server: Server, host: str) -> None:
        headers = {"Host": host}
        assert await every_endpoint(server, headers) == {(403, "host_not_allowed")}
        assert {await status(server, "GET", path, headers) for path in HEALTH} == {(200, None)}
        assert server.engine.seen == []

    @pytest.mark.parametrize(
        "host",
        ["localhost", "LocalHost:99", "localhost.", "127.0.0.1:8000", "[::1]:8000", "10.1.2.3",
         "a.localhost", "host.docker.internal:8000", "box.local"],
    )  # fmt: skip
    async def test_local_names_and_addresses_are_served(self, server: Server, host: str) -> None:
        assert await every_endpoint(server, {"Host": host}) == {(200, None)}

    @pytest.mark.parametrize(
        ("target", "expected"),
        [
            ("GET http://evil.example/version", 403),
            ("GET http://EVIL.example:80/version", 403),
            ("GET http://localhost.evil.example/version", 403),
            ("CONNECT evil.example:80", 403),
            ("GET http://LocalHost:99/version", 200),
            ("GET http://127.0.0.1/version", 200),
            ("GET http://[::1]:99/version", 200),
            ("GET http://evil.example/health", 200),
            ("CONNECT localhost:80", 404),
            ("OPTIONS *", 204),
        ],
    )
    async def test_a_name_in_the_target_is_checked_as_that_in_the_header(
        self, server: Server, target: str, expected: int
    ) -> None:
        assert await raw_status(server, target, "localhost") == expected
        if "health" not in target:
            assert await raw_status(server, target, "evil.example") == 403


async def raw_status(server: Server, target: str, host: str) -> int:
    """The status of a request whose target no client library would send."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        writer.write(f"{target} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        return int((await reader.readline()).split()[1])
    finally:
        writer.close()


@pytest.mark.parametrize(
    ("settings", "any_host"),
    [
        (Settings(), False),
        (Settings(host="localhost"), False),
        (Settings(host="::1"), False),
        (Settings(host="127.1.2.3"), False),
        (Settings(host="0.0.0.0"), True),
        (Settings(host="192.168.0.7"), True),
        (Settings(api_key="k"), True),
        (Settings(uds="/tmp/x"), True),
    ],
)
def test_hosts_are_limited_where_a_page_could_use_the_server(
    settings: Settings, any_host: bool
) -> None:
    assert (allowed_hosts(settings) == ()) == any_host


class TestChosenHosts:
    @pytest.fixture
    def settings(self) -> ApiSettings:
        return ApiSettings(allowed_hosts=("Api.example", "*.wide.example"), lingering_seconds=0.1)

    async def test_the_chosen_names_are_served_and_no_other(self, server: Server) -> None:
        for host in ("api.example", "API.example:443", "a.b.wide.example", "10.0.0.1"):
            assert await every_endpoint(server, {"Host": host}) == {(200, None)}
        for host in ("localhost", "wide.example", "x.api.example"):
            assert await every_endpoint(server, {"Host": host}) == {(403, "host_not_allowed")}


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
@pytest.mark.parametrize("path", BODIES)
async def test_a_page_cannot_post_what_browsers_do_not_ask_about(
    server: Server, path: str, kind: str
) -> None:
    headers = {"Content-Type": kind, "Origin": PAGE}
    assert await status(server, "POST", path, headers, BODIES[path]) == (
        415,
        "unsupported_content_type",
    )
    assert server.engine.seen == []
    del headers["Origin"]
    assert await status(server, "POST", path, headers, BODIES[path]) == (200, None)
    headers = {"Content-Type": "application/json; charset=utf-8", "Origin": PAGE}
    assert await status(server, "POST", path, headers, BODIES[path]) == (200, None)


def cors(headers: Mapping[str, str]) -> set[str]:
    return {name.lower() for name in headers if name.lower().startswith("access-control")}


@pytest.mark.parametrize("path", [*BODIES, *GETS])
async def test_without_the_setting_a_question_is_answered_and_allows_nothing(
    server: Server, path: str
) -> None:
    async with server.session.options(server.url + path, headers=ASKED) as response:
        assert (response.status, await response.read()) == (204, b"")
        assert cors(response.headers) == set()
        methods = "OPTIONS, POST" if path in BODIES else "GET, HEAD, OPTIONS"
        assert response.headers["Allow"] == methods


class TestCors:
    @pytest.fixture(params=[(PAGE + "/", "http://localhost:5173"), ("*",)])
    def settings(self, request: pytest.FixtureRequest) -> ApiSettings:
        return ApiSettings(allow_origin=request.param, api_key="k", lingering_seconds=0.1)

    @pytest.mark.parametrize("path", BODIES)
    async def test_a_question_needs_no_key_and_is_answered(self, server: Server, path: str) -> None:
        async with server.session.options(server.url + path, headers=ASKED) as response:
            assert response.status == 204
            assert response.headers["Access-Control-Allow-Origin"] in (PAGE, "*")
            assert "POST" in response.headers["Access-Control-Allow-Methods"]
            allowed = response.headers["Access-Control-Allow-Headers"]
            assert allowed == "authorization,content-type"

    @pytest.mark.parametrize("stream", [False, True])
    @pytest.mark.parametrize("path", OPENAI_DIALECT)
    async def test_answers_and_errors_may_be_read_by_the_page(
        self, server: Server, path: str, stream: bool
    ) -> None:
        for key, expected in (("k", 200), ("wrong", 401)):
            headers = {"Origin": PAGE, "Authorization": f"Bearer {key}"}
            async with server.session.post(
                server.url + path, json=body_for(path, stream=stream), headers=headers
            ) as response:
                assert response.status == expected
                origin = response.headers["Access-Control-Allow-Origin"]
                assert origin == PAGE or (origin == "*" and "Vary" not in response.headers)
                assert "x-request-id" in response.headers["Access-Control-Expose-Headers"]

    async def test_another_origin_is_told_nothing_unless_any_is_allowed(
        self, server: Server, settings: ApiSettings
    ) -> None:
        headers = ASKED | {"Origin": "https://other.example"}
        async with server.session.options(server.url + CHAT, headers=headers) as response:
            assert (cors(response.headers) == set()) == (settings.allow_origin != ("*",))

    async def test_an_unknown_path_is_not_found(self, server: Server) -> None:
        async with server.session.options(server.url + "/nowhere", headers=ASKED) as response:
            assert response.status == 404


class TestRootPath:
    @pytest.fixture
    def settings(self) -> ApiSettings:
        return ApiSettings(root_path="/llm/one", api_key="k")

    @pytest.mark.parametrize("path", OPENAI_DIALECT)
    async def test_the_endpoints_are_with_and_without_it(self, server: Server, path: str) -> None:
        headers = {"Authorization": "Bearer k"}
        for prefix in ("", "/llm/one"):
            code, answer = await server.post(prefix + path, body_for(path), headers=headers)
            assert (code, text_of(path, answer)) == (200, reference(path))
            assert (await status(server, "GET", f"{prefix}/health", {}))[0] == 200
            assert (await status(server, "GET", f"{prefix}/v1/models", {}))[0] == 401
            async with server.session.get(f"{server.url}{prefix}/", headers=headers) as response:
                assert (await response.json())["openai_base_url"] == "/llm/one/v1"

    @pytest.mark.parametrize("text", ["/llm/one", "llm/one/", "/llm/one//"])
    def test_slashes_around_it_do_not_matter(self, text: str) -> None:
        assert ApiSettings.of(Settings(root_path=text), OPENAI).root_path == "/llm/one"
        assert ApiSettings.of(Settings(root_path="/"), OPENAI).root_path == ""
