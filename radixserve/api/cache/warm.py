"""POST /cache/warm: compute prompts without answering them, so that later requests find them.

The body is one that an endpoint would take, `{"tokens": [...]}`, or `{"bodies": [...]}` with some
of these. They are computed one after the other, behind the requests that wait.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
from aiohttp import web

from radixserve.api.access import check_admin
from radixserve.api.body import decode_body, read_raw
from radixserve.api.cache.bodies import generation_of
from radixserve.api.context import API
from radixserve.api.json_response import json_response
from radixserve.api.refusals import missing, too_many, unsupported
from radixserve.errors import BadRequest
from radixserve.front.generation import Generation
from radixserve.tenants import MAX_PRIORITY

MAX_BODIES: Final = 64


class Bodies(msgspec.Struct, forbid_unknown_fields=True):
    """Several bodies."""

    bodies: list[dict[str, Any]]


async def warm(request: web.Request) -> web.Response:
    """POST /cache/warm."""
    check_admin(request)
    raw = await read_raw(request)
    fields = decode_body(raw, dict[str, Any])
    bodies = decode_body(raw, Bodies).bodies if "bodies" in fields else [fields]
    if not bodies:
        raise missing("bodies")
    if len(bodies) > MAX_BODIES:
        raise too_many("bodies", MAX_BODIES)
    generations = [await _prepared(request, each) for each in bodies]  # all checks before any work
    warmed = [await _computed(request, each) for each in generations]
    return json_response({"warmed": warmed})


async def _prepared(request: web.Request, fields: dict[str, Any]) -> Generation:
    """The generation of a body with one token, which the engine draws and nobody gets."""
    if "tokens" in fields:
        if len(fields) > 1:
            raise BadRequest(
                "'tokens' must stand alone.", param="tokens", code="unsupported_parameter"
            )
        fields = {"prompt": fields["tokens"]}
        if not isinstance(fields["prompt"], list):
            raise BadRequest("'tokens' must be a list.", param="tokens", code="invalid_type")
    generation = await generation_of(request, msgspec.json.encode(fields))
    generation.streams = generation.streams[:: generation.num_choices]
    generation.num_choices, generation.streamed = 1, False
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


async def _computed(request: web.Request, generation: Generation) -> dict[str, int]:
    api = request.app[API]
    try:
        await generation.collect(api.engine)
    except BaseException as error:
        generation.fail(error)
        raise
    finally:
        api.metrics.record(generation.close())
    counts = generation.counts()
    return {
        "prompt_tokens": counts.prompt,
        "cached_tokens": counts.cached,
        "computed_tokens": counts.prompt - counts.cached,
    }
