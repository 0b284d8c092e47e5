"""Reads a body of whichever endpoint that generates, without generating."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from radixserve.api.access import assign_tenant
from radixserve.api.anthropic.endpoints import MESSAGES
from radixserve.api.body import decode_body, decode_for
from radixserve.api.context import API
from radixserve.api.handlers import Endpoint
from radixserve.api.openai.endpoints import CHAT, COMPLETIONS
from radixserve.api.openai.responses.endpoint import RESPONSES
from radixserve.errors import BadRequest
from radixserve.front.generation import Generation


async def generation_of(request: web.Request, raw: bytes) -> Generation:
    """The generation of a body, by the checks of its endpoint, for the tenant who asks. Messages
    are read as those of chat, or as Anthropic's if chat does not take them. Raises the refusal.
    """
    api, endpoints = request.app[API], _endpoints(request, decode_body(raw, dict[str, Any]))
    refusal: BadRequest | None = None
    for endpoint in endpoints:
        try:
            body = decode_for(request, raw, endpoint.body_type)
            generation: Generation = await endpoint.prepare(api, body)
        except BadRequest as error:
            refusal = refusal or error
            continue
        assign_tenant(request, generation, api.namespaces)
        return generation
    assert refusal is not None, "there is an endpoint"
    raise refusal


def _endpoints(request: web.Request, fields: dict[str, Any]) -> tuple[Endpoint[Any], ...]:
    """The endpoints whose body this may be, the likelier first."""
    if "messages" in fields:
        is_anthropic = "system" in fields or "anthropic-version" in request.headers
        return (MESSAGES, CHAT) if is_anthropic else (CHAT, MESSAGES)
    if "input" in fields:
        return (RESPONSES,)
    if "prompt" in fields:
        return (COMPLETIONS,)
    text = "The body must have 'messages', 'input', 'prompt' or 'tokens'."
    raise BadRequest(text, param="messages", code="missing_required_parameter")
