"""POST /cache/warm: compute prompts without answering them, so that later requests find them.

The body is one that an endpoint would take, `{"tokens": [...]}`, or `{"bodies": [...]}` with some
of these. They are computed one after the other, behind the requests that wait. `api.cache.warmup`
does the same for a file and for what pins hold.
"""

from __future__ import annotations

import time
from typing import Any, Final

import msgspec
from aiohttp import web

from radixserve.api.access import assign_tenant, check_admin
from radixserve.api.body import decode_body, read_raw
from radixserve.api.cache.bodies import prepared, tenant_named
from radixserve.api.context import Api, api_of
from radixserve.api.json_response import json_response
from radixserve.api.refusals import too_many, unsupported
from radixserve.errors import BadRequest
from radixserve.front.generation import Generation
from radixserve.metrics_table import WARMING
from radixserve.tenants import MAX_PRIORITY, Tenant

MAX_BODIES: Final = 64


class Bodies(msgspec.Struct, forbid_unknown_fields=True):
    """Several bodies."""

    bodies: list[dict[str, Any]]


class Warmed(msgspec.Struct, frozen=True, kw_only=True):
    """What warming one body took."""

    prompt_tokens: int
    cached_tokens: int
    computed_tokens: int


async def warm(request: web.Request) -> web.Response:
    """POST /cache/warm."""
    check_admin(request)
    api, raw = api_of(request), await read_raw(request)
    fields = decode_body(raw, dict[str, Any])
    bodies = decode_body(raw, Bodies).bodies if "bodies" in fields else [fields]
    if not bodies:
        raise BadRequest("'bodies' is empty.", param="bodies", code="invalid_value")
    if len(bodies) > MAX_BODIES:
        raise too_many("bodies", MAX_BODIES)
    place = "bodies[{}]" if "bodies" in fields else None
    # all checks before any work
    generations = [
        await _asked(request, each, place and place.format(index))
        for index, each in enumerate(bodies)
    ]
    return json_response({"warmed": [await computed(api, each) for each in generations]})


async def _asked(request: web.Request, fields: dict[str, Any], place: str | None) -> Generation:
    """The generation of a body. A refusal names its place, where it is one of several."""
    is_anthropic = "anthropic-version" in request.headers
    try:
        tenant = tenant_named(request, fields.pop("tenant", None))
        return await prompt_only(api_of(request), fields, tenant, is_anthropic=is_anthropic)
    except BadRequest as error:
        if place is None:
            raise
        param = f"{place}.{error.param}" if error.param else place
        raise BadRequest(f"{place}: {error}", param=param, code=error.code) from None


async def prompt_only(
    api: Api, fields: dict[str, Any], tenant: Tenant, *, is_anthropic: bool = False
) -> Generation:
    """The generation of a body with one token, which the engine draws and nobody gets. Raises the
    refusal.
    """
    if "tokens" in fields:
        fields = {"prompt": only_tokens(fields)}
    generation = await prepared(api, fields, is_anthropic=is_anthropic)
    generation.endpoint, generation.streamed = WARMING, False
    generation.streams = generation.streams[:: generation.num_choices]
    generation.num_choices = 1
    assign_tenant(generation, tenant, api.namespaces)
    for index, stream in enumerate(generation.streams):
        if not (stream.request.keeps_cache and stream.request.reads_cache):
            raise unsupported("prompt_cache_options", "a body that leaves the cache alone")
        sampling = msgspec.structs.replace(
            stream.request.sampling, max_tokens=1, min_tokens=0, grammar=None, prompt_logprobs=None
        )
        stream.index, stream.prompt_only = index, True
        stream.request = msgspec.structs.replace(
            stream.request, sampling=sampling, priority=MAX_PRIORITY
        )
    return generation


def only_tokens(fields: dict[str, Any]) -> list[Any]:
    """The token ids of a body that has nothing else."""
    if len(fields) > 1:
        text = "'tokens' must stand alone."
        raise BadRequest(text, param="tokens", code="unsupported_parameter")
    tokens = fields["tokens"]
    if not isinstance(tokens, list):
        raise BadRequest("'tokens' must be a list.", param="tokens", code="invalid_type")
    return tokens


async def computed(api: Api, generation: Generation) -> Warmed:
    """Compute the prompts of `prompt_only`, behind all requests that wait. Raises as
    `Generation.run`.
    """
    generation.arrived = time.monotonic()
    api.ui.live.begin(generation)
    try:
        await generation.collect(api.engine)
    except BaseException as error:
        generation.fail(error)
        raise
    finally:
        record = generation.close()
        api.ui.live.end(generation, record.outcome)
        api.metrics.record(record)
    counts = generation.counts()
    return Warmed(
        prompt_tokens=counts.prompt,
        cached_tokens=counts.cached,
        computed_tokens=counts.prompt - counts.cached,
    )
