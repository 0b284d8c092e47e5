"""Adapters over HTTP: named as the model of a request in every dialect, listed, loaded and
unloaded.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from radixserve.adapters import AdapterInfo, AdapterSource, fault_of, namespace_with, sources_of
from radixserve.api.namespaces import Namespaces
from radixserve.api.settings import ApiSettings
from radixserve.errors import BadRequest, ConfigError
from radixserve.questions import AdapterLoaded, AdapterUnloaded, LoadAdapter, UnloadAdapter
from tests.api.conftest import GENERATING, MODEL, Server, body_for

LOAD, UNLOAD = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"
INFO = AdapterInfo(
    name="poet", path="/adapters/poet", digest="d1", kv_digest="k1", rank=8, num_bytes=1000
)
SAME_KV = AdapterInfo(
    name="claude-poet", path="/adapters/b", digest="d2", kv_digest="", rank=8, num_bytes=90
)


@pytest.fixture
def settings(settings: ApiSettings, tmp_path: Path) -> ApiSettings:
    return replace(settings, lora_dir=str(tmp_path))


@pytest.mark.parametrize("path", GENERATING)
async def test_a_request_names_an_adapter_as_its_model(server: Server, path: str) -> None:
    server.engine.adapters.take_engine([INFO, SAME_KV])
    for info, namespace in ((INFO, "public+lora-k1"), (SAME_KV, "public")):
        status, answer = await server.post(path, body_for(path) | {"model": info.name})
        assert (status, answer["model"]) == (200, info.name)
        seen = server.engine.seen[-1]
        assert (seen.adapter, seen.namespace) == (info.digest, namespace)
    status, answer = await server.post(path, body_for(path))
    assert answer["model"] == MODEL
    assert (server.engine.seen[-1].adapter, server.engine.seen[-1].namespace) == ("", "public")
    server.engine.adapters.take_engine([])
    status, answer = await server.post(path, body_for(path) | {"model": "poet"})
    assert status == 404


async def test_adapters_are_listed(server: Server) -> None:
    server.engine.adapters.take_engine([INFO, SAME_KV])
    _, listed = await server.get("/v1/models")
    assert [each["id"] for each in listed["data"]] == [MODEL, "model", "poet", "claude-poet"]
    _, one = await server.get("/v1/models/poet")
    assert one == listed["data"][2]
    assert (one["root"], one["parent"]) == ("/adapters/poet", MODEL)
    assert "parent" not in listed["data"][0]
    _, summary = await server.get("/cache")
    assert summary["adapters"][0] == {"name": "poet", "bytes": 1000, "own_kv": True}


async def test_adapters_are_loaded_and_unloaded(server: Server, tmp_path: Path) -> None:
    engine, body = server.engine, {"lora_name": "poet", "lora_path": "some/poet"}
    engine.answers[LoadAdapter] = AdapterLoaded(INFO)
    status, answer = await server.post(LOAD, body)
    assert (status, answer["lora_name"], answer["bytes"]) == (200, "poet", 1000)
    source = AdapterSource("poet", f"{tmp_path}/some/poet")
    assert engine.asked == [LoadAdapter(source=source)]
    assert engine.adapters.sources == (AdapterSource("poet", "/adapters/poet", "d1"),)
    assert engine.adapters.num_bytes == 1000
    status, answer = await server.post(LOAD, body)
    assert (status, answer["error"]["param"]) == (400, "lora_name")
    engine.answers[UnloadAdapter] = AdapterUnloaded(3)
    status, answer = await server.post(UNLOAD, {"lora_name": "poet"})
    assert (status, answer["running_requests"]) == (200, 3)
    assert engine.asked[1:] == [UnloadAdapter(digest="d1")]
    assert (await server.post(UNLOAD, {"lora_name": "poet"}))[0] == 404
    engine.answers[LoadAdapter] = BadRequest("no rank", code="invalid_value")
    status, answer = await server.post(LOAD, body)
    assert (status, answer["error"]["message"]) == (400, "no rank")
    assert list(engine.adapters) == []


BESIDE = ["/etc", "..", "../x", ".", "", "a/../..", "link", "a\0b", "x" * 9000]


@pytest.mark.parametrize("path", BESIDE)
async def test_no_folder_beside_the_allowed_one_is_named(
    server: Server, tmp_path: Path, path: str
) -> None:
    (tmp_path / "link").symlink_to("/etc")
    status, answer = await server.post(LOAD, {"lora_name": "poet", "lora_path": path})
    assert (status, answer["error"]["param"]) == (400, "lora_path")
    assert server.engine.asked == []


@pytest.mark.parametrize("name", ["", "a*", "x" * 300, "a\nb", MODEL])
async def test_names_that_no_adapter_can_have(server: Server, name: str) -> None:
    status, answer = await server.post(LOAD, {"lora_name": name, "lora_path": "poet"})
    assert (status, answer["error"]["param"]) == (400, "lora_name")


async def test_without_the_setting_none_is_loaded(server: Server) -> None:
    object.__setattr__(server.api, "settings", replace(server.api.settings, lora_dir=None))
    status, answer = await server.post(LOAD, {"lora_name": "poet", "lora_path": "poet"})
    assert (status, answer["error"]["code"]) == (400, "unsupported_parameter")


def test_the_namespace_of_a_tenant_ends_with_the_adapter() -> None:
    namespaces = Namespaces(b"secret")
    own = namespaces.of("a", "public")
    assert namespaces.of("a", namespace_with("public", "k1")) == namespace_with(own, "k1")
    assert namespace_with(own, "") == own


def test_the_setting_names_adapters() -> None:
    assert sources_of(("a=/x/y", "b=/z=1")) == [
        AdapterSource("a", "/x/y"),
        AdapterSource("b", "/z=1"),
    ]
    for wrong in (("a",), ("=x",), ("a=",), ("a=x", "a=y"), ("a*=x",)):
        with pytest.raises(ConfigError):
            sources_of(wrong)
    assert fault_of("poet") is None
