"""Seeing and dropping what is cached: GET and DELETE /cache, GET /cache/tree, POST /flush_cache."""

from __future__ import annotations

from typing import Any

from aiohttp import web
from msgspec.structs import asdict

from radixserve.api.access import check_admin
from radixserve.api.body import decode_body, read_raw
from radixserve.api.cache.bodies import known_tenant
from radixserve.api.cache.query import number, parameters, seconds
from radixserve.api.context import Api, api_of
from radixserve.api.json_response import json_response
from radixserve.api.models import MODELS
from radixserve.api.openai.prompts import text_prompt
from radixserve.api.refusals import shown
from radixserve.errors import BadRequest
from radixserve.prefix import owner_of
from radixserve.questions import Drop, Dropped, ShowTree, Summarize, TreeNode
from radixserve.step import EngineInfo
from radixserve.tiers import DEVICE, NAMES

MAX_LEVELS = 64
MAX_NODES = 2000
MAX_ID = (1 << 62) - 1
FIRST_TOKENS = 12  # of a node, whose text is shown


async def flush(request: web.Request) -> web.Response:
    """POST /flush_cache and /reset_prefix_cache: nothing that is cached now is found again."""
    check_admin(request)
    parameters(request, ())
    await _refuse_fields(request)
    return json_response(asdict(await api_of(request).engine.ask(Drop())))


async def _refuse_fields(request: web.Request) -> None:
    """Raises BadRequest for a body that asks for something; it may choose the model."""
    if not (raw := await read_raw(request)).strip():
        return
    fields = decode_body(raw, dict[str, Any])
    known = {"model"} if request.app[MODELS].are_several else set()
    for name in fields.keys() - known:
        text = f"Unknown field '{shown(name)}': all is dropped. DELETE /cache drops a part."
        raise BadRequest(text, param=shown(name), code="unknown_parameter")


async def drop(request: web.Request) -> web.Response:
    """DELETE /cache: drop a prefix, a namespace, or what was not used for long."""
    check_admin(request)
    api = api_of(request)
    given = parameters(request, ("prefix", "tenant", "namespace", "older_than", "node", "tier"))
    if "tier" in given and "node" not in given:
        raise BadRequest("'tier' needs 'node'.", param="tier", code="invalid_value")
    tier = _tier(given)
    if not given or given.get("prefix") == "":
        text = (
            "Say what to drop, with 'prefix', 'tenant', 'namespace', 'older_than' or 'node'; "
            "POST /flush_cache drops everything."
        )
        raise BadRequest(text, param="prefix", code="missing_required_parameter")
    given.pop("tier", None)
    alone = given.keys() & {"older_than", "node"}
    if len(given) > 1 and (len(alone) > 1 or (alone and given.keys() - alone != {"namespace"})):
        text = "'older_than' can only be combined with 'namespace', and 'node' with nothing."
        raise BadRequest(text, param=min(alone), code="invalid_value")
    if given.keys() == {"node", "namespace"}:
        raise BadRequest("'node' must stand alone.", param="node", code="invalid_value")
    old = seconds(given["older_than"], "older_than") if "older_than" in given else 0.0
    question = Drop(
        namespaces=[given["namespace"]] if "namespace" in given else None,
        tenant=_tenant(api, given),
        prefix=await _prefix(api, given.get("prefix")),
        older_than=old,
        node=number(given, "node", 0, 1, MAX_ID) if "node" in given else None,
        tier=tier,
    )
    told = await api.engine.ask(question)
    if told == Dropped() and api.namespaces.are_of_tenants:
        _check_owner(api, given)
    return json_response(asdict(told))


def _tenant(api: Api, given: dict[str, str]) -> str | None:
    """The tenant whose K/V is dropped; None for that of all. Without tenants all is that of
    "default".
    """
    name = given.get("tenant")
    if name is not None and not api.namespaces.are_of_tenants:
        known_tenant(api, name)
        return None
    return name


def _check_owner(api: Api, given: dict[str, str]) -> None:
    """Raises BadRequest if nothing was dropped because there is no such tenant. One that is not in
    the key file any more may still have something.
    """
    name = given.get("tenant") or owner_of(given.get("namespace", ""))
    if name:
        known_tenant(api, name)


async def _prefix(api: Api, text: str | None) -> list[int]:
    """The tokens of a text without those that a tokenizer adds."""
    if text is None:
        return []
    return (await text_prompt(api, text, _info(api), add_special_tokens=False))[0]


def _info(api: Api) -> EngineInfo:
    """The engine's facts, while the server drains, too."""
    return api.engine.info or api.info()


async def summary(request: web.Request) -> web.Response:
    """GET /cache: how full the tiers are, and of what."""
    check_admin(request)
    parameters(request, ())
    api = api_of(request)
    found = await api.engine.ask(Summarize())
    adapters = [
        {"name": each.name, "bytes": each.num_bytes, "own_kv": bool(each.kv_digest)}
        for each in api.engine.adapters
    ]
    return json_response(asdict(found) | {"adapters": adapters})


async def tree(request: web.Request) -> web.Response:
    """GET /cache/tree: a part of the tree of one tier."""
    check_admin(request)
    api = api_of(request)
    given = parameters(request, ("tier", "node", "depth", "nodes"))
    node = number(given, "node", 0, 1, MAX_ID) if "node" in given else None
    depth = number(given, "depth", 4, 0, MAX_LEVELS)
    most = number(given, "nodes", 500, 1, MAX_NODES)
    question = ShowTree(
        tier=_tier(given), node=node, depth=depth, most=most, num_first_tokens=FIRST_TOKENS
    )
    found = await api.engine.ask(question)
    nodes = await api.threads.run(lambda: [_shown(api, each) for each in found.nodes])
    return json_response(
        {"nodes": nodes, "num_nodes": found.num_nodes, "num_tokens": found.num_tokens}
    )


def _tier(given: dict[str, str]) -> str:
    """The tier whose tree is asked for. Raises BadRequest for a name that no tier has."""
    tier = given.get("tier", DEVICE)
    if tier not in (DEVICE, *NAMES):
        text = f"'tier' must be one of {', '.join((DEVICE, *NAMES))}."
        raise BadRequest(text, param="tier", code="invalid_value")
    return tier


def _shown(api: Api, node: TreeNode) -> dict[str, object]:
    """A node for people, with the text in place of its first tokens."""
    told = asdict(node)
    del told["first_tokens"]
    text = api.tokenizer.decode(node.first_tokens, skip_special_tokens=False)
    return told | {"text": text}
