"""Reads a body of whichever endpoint that generates, without generating; an administrator may name
the tenant whose it is.
"""

from __future__ import annotations

from typing import Any

import msgspec
from aiohttp import web

from radixserve.api.access import assign_tenant, check_admin, tenant_of
from radixserve.api.anthropic.endpoints import MESSAGES
from radixserve.api.body import decode_for
from radixserve.api.context import Api, api_of
from radixserve.api.handlers import Endpoint
from radixserve.api.openai.endpoints import CHAT, COMPLETIONS
from radixserve.api.openai.responses.endpoint import RESPONSES
from radixserve.api.refusals import shown
from radixserve.errors import BadRequest
from radixserve.front.generation import Generation
from radixserve.tenants import Tenant


async def generation_of(request: web.Request, fields: dict[str, Any]) -> Generation:
    """The generation of a body, for `tenant_named`, whose field is taken out of `fields`. Raises
    the refusal.
    """
    api, is_anthropic = api_of(request), "anthropic-version" in request.headers
    tenant = tenant_named(request, fields.pop("tenant", None))
    generation = await prepared(api, fields, is_anthropic=is_anthropic)
    assign_tenant(generation, tenant, api.namespaces)
    return generation


def tenant_named(request: web.Request, name: object) -> Tenant:
    """The tenant of this name, which only an administrator may give; without one the tenant who
    asks. Raises BadRequest if there is none of this name.
    """
    if name is None:
        return tenant_of(request)
    check_admin(request)
    return known_tenant(api_of(request), name)


def known_tenant(api: Api, name: object) -> Tenant:
    """The tenant of this name. Raises BadRequest if there is none."""
    if not isinstance(name, str):
        raise BadRequest("'tenant' must be a string.", param="tenant", code="invalid_type")
    tenant = api.keys.tenant(name)
    if tenant is None:
        where = "in the key file" if api.keys.has_file else "because there is no key file"
        text = f"There is no tenant {shown(name)!r} {where}."
        raise BadRequest(text, param="tenant", code="invalid_value")
    return tenant


async def prepared(api: Api, fields: dict[str, Any], *, is_anthropic: bool = False) -> Generation:
    """The generation of a body, by the checks of its endpoint; `assign_tenant` makes it somebody's.
    Messages are read as those of chat, or as Anthropic's if chat does not take them; the other way
    round with `is_anthropic`. Raises the refusal.
    """
    refusal: BadRequest | None = None
    for endpoint in _endpoints(fields, is_anthropic=is_anthropic):
        try:
            body = decode_for(api, msgspec.json.encode(fields), endpoint.body_type)
            generation: Generation = await endpoint.prepare(api, body)
        except BadRequest as error:
            refusal = refusal or error
            continue
        return generation
    assert refusal is not None, "there is an endpoint"
    raise refusal


def _endpoints(fields: dict[str, Any], *, is_anthropic: bool) -> tuple[Endpoint[Any], ...]:
    """The endpoints whose body this may be, the likelier first."""
    if "messages" in fields:
        likely_anthropic = is_anthropic or "system" in fields
        return (MESSAGES, CHAT) if likely_anthropic else (CHAT, MESSAGES)
    if "input" in fields:
        return (RESPONSES,)
    if "prompt" in fields:
        return (COMPLETIONS,)
    text = "The body must have 'messages', 'input', 'prompt' or 'tokens'."
    raise BadRequest(text, param="messages", code="missing_required_parameter")
