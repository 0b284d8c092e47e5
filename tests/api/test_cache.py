"""The endpoints for seeing and steering the cache, over the fake engine: who may call them, what
they ask the engine, what they answer, and what they refuse.
"""

from __future__ import annotations

from typing import Any

import pytest

from radixserve.errors import NotFound
from radixserve.questions import Drop, Dropped, ShowTree, Summarize, Summary, Tree, TreeNode
from tests.api.conftest import CHAT, COMPLETIONS, GENERATING, Server, body_for

ROUTES = (
    ("GET", "/cache"),
    ("DELETE", "/cache?prefix=abc"),
    ("GET", "/cache/tree"),
    ("POST", "/cache/warm"),
    ("POST", "/flush_cache"),
    ("POST", "/reset_prefix_cache"),
)


async def call(server: Server, method: str, path: str, **more: Any) -> tuple[int, Any]:
    async with server.session.request(method, server.url + path, **more) as response:
        return response.status, await response.json()


@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_without_keys_only_this_machine_may_steer(
    server: Server, method: str, path: str
) -> None:
    headers = {"X-Forwarded-For": "192.0.2.7"}
    status, answer = await call(server, method, path, headers=headers)
    assert (status, answer["error"]["code"]) == (403, "admin_required")
    assert not server.engine.asked


@pytest.mark.parametrize("path", ["/flush_cache", "/reset_prefix_cache"])
async def test_a_flush_has_no_body_and_is_answered_with_counts(server: Server, path: str) -> None:
    server.engine.answers[Drop] = Dropped(tokens=40, nodes=3, leased_tokens=7, tiers={"disk": 9})
    status, answer = await call(server, "POST", path)
    assert (status, answer) == (
        200,
        {"tokens": 40, "nodes": 3, "leased_tokens": 7, "tiers": {"disk": 9}, "pending": []},
    )
    assert server.engine.asked == [Drop()]


@pytest.mark.parametrize(("body", "status"), [("", 200), ("{}", 200), ('{"tenant": "a"}', 400)])
async def test_a_flush_of_a_part_is_refused(server: Server, body: str, status: int) -> None:
    server.engine.answers[Drop] = Dropped()
    assert (await call(server, "POST", "/flush_cache", data=body))[0] == status
    assert server.engine.asked == ([Drop()] if status == 200 else [])


@pytest.mark.parametrize(
    ("query", "asked"),
    [
        ("prefix=abc", Drop(prefix=[97, 98, 99])),
        ("namespace=public&prefix=a", Drop(namespaces=["public"], prefix=[97])),
        ("namespace=public", Drop(namespaces=["public"])),
        ("tenant=default", Drop()),  # whose all is, without a key file
        ("tenant=default&prefix=a", Drop(prefix=[97])),
        ("namespace=team/a", Drop(namespaces=["team/a"])),  # a salt, which names no tenant
        ("older_than=2h", Drop(older_than=7200.0)),
        ("older_than=90", Drop(older_than=90.0)),
        ("node=5", Drop(node=5)),
        ("node=5&tier=disk", Drop(node=5, tier="disk")),
    ],
)
async def test_what_is_dropped(server: Server, query: str, asked: Drop) -> None:
    for dropped in (Dropped(tokens=4, nodes=1), Dropped()):
        server.engine.answers[Drop] = dropped
        status, _ = await call(server, "DELETE", f"/cache?{query}")
        assert (status, server.engine.asked) == (200, [asked])
        server.engine.asked.clear()


@pytest.mark.parametrize(
    ("method", "path", "param"),
    [
        ("DELETE", "/cache", "prefix"),
        ("DELETE", "/cache?prefix=", "prefix"),
        ("DELETE", "/cache?tenant=acme", "tenant"),  # there is no key file
        ("DELETE", "/cache?prefix=a&older_than=1h", "older_than"),
        ("DELETE", "/cache?tenant=a&older_than=1h", "older_than"),
        ("DELETE", "/cache?node=3&namespace=public", "node"),
        ("DELETE", "/cache?older_than=soon", "older_than"),
        ("DELETE", "/cache?older_than=-1", "older_than"),
        ("DELETE", "/cache?older_than=nan", "older_than"),
        ("DELETE", "/cache?older_than=1_0m", "older_than"),
        ("DELETE", "/cache?older_than=\u0663m", "older_than"),
        ("DELETE", "/cache?older_than=1e5", "older_than"),
        ("DELETE", "/cache?older_than=1h&older_than=2h", "older_than"),
        ("DELETE", "/cache?pattern=a", "pattern"),
        ("GET", "/cache/tree?depth=65", "depth"),
        ("GET", "/cache/tree?node=x", "node"),
        ("GET", "/cache/tree?node=0", "node"),
        ("GET", "/cache/tree?nodes=2001", "nodes"),
        ("GET", "/cache/tree?tier=moon", "tier"),
        ("DELETE", "/cache?node=3&tier=moon", "tier"),
        ("DELETE", "/cache?prefix=a&tier=disk", "tier"),
        ("GET", "/cache?x=1", "x"),
        ("POST", "/flush_cache?now=1", "now"),
    ],
)
async def test_a_query_that_is_wrong_is_refused_by_name(
    server: Server, method: str, path: str, param: str
) -> None:
    status, answer = await call(server, method, path)
    assert (status, answer["error"]["param"]) == (400, param)
    assert not server.engine.asked


async def test_the_tree_is_shown_with_the_text_of_its_nodes(server: Server) -> None:
    lies = {"host": 3, "device": 1}
    node = TreeNode(id=4, parent=1, depth=0, tokens=3, first_tokens=[97, 98, 99], tiers=lies)
    server.engine.answers[ShowTree] = Tree(nodes=[node], num_nodes=9, num_tokens=70)
    status, answer = await call(server, "GET", "/cache/tree?tier=host&node=4&depth=2&nodes=10")
    assert status == 200
    assert (answer["num_nodes"], answer["num_tokens"]) == (9, 70)
    shown = answer["nodes"][0]
    assert shown["text"] == "abc"
    assert (shown["id"], shown["parent"], shown["leased"], shown["pinned"]) == (4, 1, False, False)
    [asked] = server.engine.asked
    assert isinstance(asked, ShowTree)
    assert (asked.tier, asked.node, asked.depth, asked.most) == ("host", 4, 2, 10)
    assert shown["tiers"] == lies


async def test_a_node_that_is_gone_is_not_found(server: Server) -> None:
    server.engine.answers[ShowTree] = NotFound("There is no such node any more.", code="not_found")
    status, _ = await call(server, "GET", "/cache/tree?node=4")
    assert status == 404


async def test_the_summary(server: Server) -> None:
    server.engine.answers[Summarize] = Summary(
        enabled=True, tiers=[], nodes=3, num_namespaces=1, namespaces=[]
    )
    status, answer = await call(server, "GET", "/cache")
    assert (status, answer["nodes"]) == (200, 3)


@pytest.mark.parametrize(
    ("method", "path"), [each for each in ROUTES if each != ("POST", "/cache/warm")]
)
async def test_a_server_that_drains_shows_and_drops(server: Server, method: str, path: str) -> None:
    server.engine.unready_reason = "draining"
    server.engine.answers |= {
        Drop: Dropped(),
        ShowTree: Tree(nodes=[], num_nodes=0, num_tokens=0),
        Summarize: Summary(enabled=True, tiers=[], nodes=0, num_namespaces=0, namespaces=[]),
    }
    assert (await call(server, method, path))[0] == 200


async def test_while_the_engine_restarts_what_is_shown_is_503(server: Server) -> None:
    server.engine.unready_reason = "restarting"
    status, answer = await call(server, "GET", "/cache")
    assert (status, answer["error"]["code"]) == (503, "server_not_ready")


@pytest.mark.parametrize("path", GENERATING)
async def test_warming_computes_a_prompt_and_answers_nothing(server: Server, path: str) -> None:
    body = body_for(path, n=2) if path in (CHAT, COMPLETIONS) else body_for(path)
    status, answer = await server.post("/cache/warm", body)
    assert status == 200
    (asked,) = server.engine.seen
    assert asked.sampling.max_tokens == 1
    assert answer == {
        "warmed": [
            {
                "prompt_tokens": len(asked.prompt_ids),
                "cached_tokens": 0,
                "computed_tokens": len(asked.prompt_ids),
            }
        ]
    }


async def test_several_bodies_are_warmed_in_turn(server: Server) -> None:
    bodies = [{"tokens": [97, 98, 99]}, {"prompt": "abcd", "stream": True}]
    status, answer = await server.post("/cache/warm", {"bodies": bodies})
    assert status == 200
    assert [each["prompt_tokens"] for each in answer["warmed"]] == [3, 4]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"bodies": []}, "bodies"),
        ({"bodies": [{"tokens": [1]}] * 65}, "bodies"),
        ({"bodies": [{"prompt": "a"}, {"prompt": "a", "n": 0}]}, "bodies[1].n"),
        ({"tokens": "abc"}, "tokens"),
        ({"tokens": [1], "prompt": "a"}, "tokens"),
        ({"prompt": "a", "cache_prompt": False}, "prompt_cache_options"),
        ({}, "messages"),
    ],
)
async def test_a_wrong_body_is_refused_before_anything_is_computed(
    server: Server, body: dict[str, Any], param: str
) -> None:
    status, answer = await server.post("/cache/warm", body)
    assert (status, answer["error"]["param"]) == (400, param)
    assert not server.engine.seen


async def test_what_was_warmed_is_counted_as_no_request_of_a_client(server: Server) -> None:
    await server.post("/cache/warm", {"prompt": "abcd"})
    (record,) = server.metrics.records
    assert (record.endpoint, record.outcome) == ("warm", "length")
    assert record.e2e_seconds is not None
    assert record.e2e_seconds < 60
