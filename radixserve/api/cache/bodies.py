"""Reads a body of whichever endpoint that generates, without generating."""

from __future__ import annotations

from typing import Any

import msgspec
from aiohttp import web

from radixserve.api.access import assign_tenant, tenant_of
from radixserve.api.anthropic.endpoints import MESSAGES
from radixserve.api.body import decode_body, decode_for
from radixserve.api.context import API, Api
from radixserve.api.handlers import Endpoint
from radixserve.api.openai.endpoints import CHAT, COMPLETIONS
from radixserve.api.openai.responses.endpoint import RESPONSES
from radixserve.errors import BadRequest
from radixserve.front.generation import Generation


async def generation_of(request: web.Request, raw: bytes) -> Generation:
    """The generation of a body, for the tenant who asks. Raises the refusal."""
    api, is_anthropic = request.app[API], "anthropic-version" in request.headers
    fields = decode_body(raw, dict[str, Any])
    generation = await prepared(api, fields, is_anthropic=is_anthropic)
    assign_tenant(generation, tenant_of(request), api.namespaces)
    return generation


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
