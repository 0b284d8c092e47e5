"""POST /cache/pin, GET /cache/pins and DELETE /cache/pin/{id}: keep prefixes cached for a while.

The body names what is pinned: one that an endpoint would take, `{"tokens": [...]}`, or
`{"node": N}` of the tree; and how long: `ttl` seconds from the last hit on, or `until` a time. Of a
conversation the messages are pinned, without the generation prompt behind them: other requests have
their own messages there, so none would renew a pin that ends with it.
"""

from __future__ import annotations

import logging
import math
import secrets
import time
from typing import Any, Final

import msgspec
from aiohttp import web

from radixserve.api.access import check_admin, tenant_of
from radixserve.api.body import decode_body, read_raw
from radixserve.api.cache.bodies import generation_of
from radixserve.api.cache.endpoints import MAX_ID
from radixserve.api.cache.explain import TokensBody, of_generation, of_tokens
from radixserve.api.cache.query import parameters
from radixserve.api.context import Api, api_of
from radixserve.api.json_response import json_response
from radixserve.api.openai.beginnings import num_tokens_in
from radixserve.api.refusals import check_range
from radixserve.errors import BadRequest
from radixserve.prefix import pack
from radixserve.questions import Explain, ListPins, Pin, PinState, Unpin

log = logging.getLogger(__name__)

MAX_SECONDS: Final = 30 * 86400.0


async def pin(request: web.Request) -> web.Response:
    """POST /cache/pin."""
    check_admin(request)
    fields = decode_body(await read_raw(request), dict[str, Any])
    seconds, renews = _lasting(fields.pop("ttl", None), fields.pop("until", None))
    name = f"pin_{secrets.token_hex(8)}"
    if "node" in fields:
        asked = Pin(id=name, seconds=seconds, renews=renews, node=_node(fields))
    else:
        prompt = await _prompt(request, fields)
        asked = Pin(
            id=name,
            seconds=seconds,
            renews=renews,
            namespace=prompt.namespace,
            packed=pack(prompt.tokens),
            num_public=prompt.num_public,
        )
    told = await api_of(request).engine.ask(asked)
    log.info(
        "%s asked to pin %d tokens for %.0f s: %s, %s holds %d tokens",
        *(tenant_of(request).name, told.wanted, seconds, told.status, told.id or "no pin"),
        told.tokens,
    )
    return json_response(
        {
            "id": told.id or None,
            "status": told.status,
            "tokens": told.tokens,
            "wanted": told.wanted,
            "why": told.why,
            "expires": round(time.time() + told.seconds_left, 3) if told.id else None,
        }
    )


def _lasting(ttl: object, until: object) -> tuple[float, bool]:
    """The seconds that a pin lasts, and whether hits renew it."""
    if ttl is not None and until is not None:
        text = "'ttl' and 'until' exclude each other."
        raise BadRequest(text, param="until", code="invalid_value")
    if ttl is not None:
        return _checked("ttl", _number("ttl", ttl)), True
    if until is None:
        text = "Say for how long, with 'ttl' (seconds since the last hit) or 'until' (a time)."
        raise BadRequest(text, param="ttl", code="missing_required_parameter")
    return _checked("until", _number("until", until) - time.time()), False


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        text = f"'{name}' must be a number of seconds."
        raise BadRequest(text, param=name, code="invalid_type")
    return float(value) if abs(value) <= 1e15 else math.inf  # which is refused as too long


def _checked(name: str, seconds: float) -> float:
    if 0 < seconds <= MAX_SECONDS:
        return seconds
    text = {
        "ttl": f"'ttl' must be above 0 and at most {MAX_SECONDS:.0f} seconds (30 days).",
        "until": "'until' must be a Unix time in the next 30 days.",
    }[name]
    raise BadRequest(text, param=name, code="invalid_value")


def _node(fields: dict[str, Any]) -> int:
    node = fields["node"]
    if len(fields) > 1:
        raise BadRequest("'node' must stand alone.", param="node", code="unsupported_parameter")
    if isinstance(node, bool) or not isinstance(node, int):
        raise BadRequest("'node' must be an integer.", param="node", code="invalid_type")
    check_range("node", node, 1, MAX_ID, "integer")
    return node


async def _prompt(request: web.Request, fields: dict[str, Any]) -> Explain:
    """The one prompt of a body, as a question about it names it."""
    if "tokens" in fields:
        return of_tokens(request, decode_body(msgspec.json.encode(fields), TokensBody))
    ends_as_asked = fields.get("add_generation_prompt") is not None
    generation = await generation_of(request, fields)
    if len(generation.streams) > generation.num_choices:
        text = "A pin holds one prompt: pin several one by one."
        raise BadRequest(text, param="prompt", code="invalid_value")
    prompt, conversation = of_generation(generation), generation.conversation
    if conversation is None or conversation.ending != "answer" or ends_as_asked:
        return prompt
    api = api_of(request)
    messages = api.volatile.removed(conversation.messages)
    closed = msgspec.structs.replace(conversation, messages=messages, ending="closed")
    num_tokens = await num_tokens_in(api, closed, prompt.tokens) or len(prompt.tokens)
    return msgspec.structs.replace(prompt, tokens=prompt.tokens[:num_tokens])


async def pins(request: web.Request) -> web.Response:
    """GET /cache/pins."""
    check_admin(request)
    parameters(request, ())
    api = api_of(request)
    found = await api.engine.ask(ListPins())
    shown = await api.threads.run(lambda: [_shown(api, each) for each in found.pins])
    return json_response({"pins": shown})


def _shown(api: Api, pin: PinState) -> dict[str, object]:
    return {
        "id": pin.id,
        "namespace": pin.namespace,
        "tokens": pin.tokens,
        "wanted": pin.wanted,
        "expires": round(time.time() + pin.seconds_left, 3),
        "ttl": pin.ttl,
        "hits": pin.hits,
        "tenant": pin.tenant,
        "text": api.tokenizer.decode(pin.first_tokens, skip_special_tokens=False),
    }


async def unpin(request: web.Request) -> web.Response:
    """DELETE /cache/pin/{id}."""
    check_admin(request)
    parameters(request, ())
    name = request.match_info["id"]
    told = await api_of(request).engine.ask(Unpin(id=name))
    log.info("%s ended a pin of %d tokens: %s", tenant_of(request).name, told.tokens, name)
    return json_response({"id": name, "tokens": told.tokens})
