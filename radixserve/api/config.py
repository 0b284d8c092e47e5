"""Settings that may change while the server runs: GET and PUT /config."""

from __future__ import annotations

from typing import Any, Final

from aiohttp import web

from radixserve.api.access import check_admin, tenant_of
from radixserve.api.body import decode_body, read_raw
from radixserve.api.cache.query import parameters
from radixserve.api.context import Api, api_of
from radixserve.api.json_response import json_response
from radixserve.api.refusals import unsupported
from radixserve.errors import BadRequest

MAX_WHY: Final = 200  # characters


async def config(request: web.Request) -> web.Response:
    """GET /config."""
    check_admin(request)
    parameters(request, ())
    return json_response(_shown(api_of(request)))


async def change(request: web.Request) -> web.Response:
    """PUT /config: all settings that are given change, or none."""
    check_admin(request)
    parameters(request, ())
    api = api_of(request)
    changes = decode_body(await read_raw(request), dict[str, Any])
    why = _why(changes.pop("why", ""))
    if api.shared_budget is not None and "kv_budget" in changes:
        raise unsupported("kv_budget", "'kv_budget', which several models share by demand,")
    did = await api.engine.configure(changes, tenant_of(request).name, why)
    for name in changes:
        api.metrics.setting_changed(name)
    did_what = {"evicted_tokens": did.evicted_tokens, "excess_bytes": did.excess_bytes}
    return json_response(_shown(api) | did_what)


def _shown(api: Api) -> dict[str, Any]:
    """The settings of a model, and how several models share their K/V budget."""
    told: dict[str, Any] = {"settings": api.engine.live_settings.shown()}
    shared = api.shared_budget
    if shared is not None:
        told["shared_kv_budget"] = {
            "total": shared.total,
            "parts": shared.parts,
            "moves": list(shared.moves),
        }
    return told


def _why(why: object) -> str:
    """The reason for the log, on one line."""
    if not isinstance(why, str):
        raise BadRequest("'why' must be a string.", param="why", code="invalid_type")
    if len(why) > MAX_WHY:
        text = f"'why' may have at most {MAX_WHY} characters."
        raise BadRequest(text, param="why", code="string_above_max_length")
    return "".join(each if each.isprintable() else " " for each in why)
