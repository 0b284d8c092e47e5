"""The endpoint of the Responses API, and the answer to requests for stored responses."""

from __future__ import annotations

from functools import partial
from typing import NoReturn

import msgspec
from aiohttp import web

from radixserve.api.body import read_body
from radixserve.api.context import Api, api_of
from radixserve.api.handlers import Endpoint
from radixserve.api.openai.endpoints import prepare_chat
from radixserve.api.openai.responses.answers import InputTokens
from radixserve.api.openai.responses.renderer import ResponsesRenderer
from radixserve.api.openai.responses.translate import Translation, translate
from radixserve.api.openai.responses.truncation import with_latest_turns
from radixserve.api.openai.responses.wire import ResponsesBody
from radixserve.errors import ApiError, NotFound
from radixserve.front.generation import Generation


async def prepare_response(api: Api, body: ResponsesBody) -> Generation:
    """Make all checks: those of the chat body that means the same. Raises the refusal, in the names
    of this body.
    """
    prepare = partial(_prepare, api)
    translation = translate(body, ignore_unknown=api.settings.ignore_unknown_fields)
    if body.truncation == "auto":
        return await with_latest_turns(translation, prepare)
    return await prepare(translation)


async def _prepare(api: Api, translation: Translation) -> Generation:
    try:
        generation = await prepare_chat(api, translation.chat)
    except ApiError as refusal:
        translation.name(refusal)
        raise
    generation.endpoint = RESPONSES.name
    return generation


async def count_input_tokens(request: web.Request) -> web.Response:
    """POST /v1/responses/input_tokens: the tokens of the prompt that /v1/responses would
    compute.
    """
    api = api_of(request)
    generation = await prepare_response(api, await read_body(request, ResponsesBody))
    count = InputTokens(len(generation.streams[0].request.prompt_ids))
    return web.Response(body=msgspec.json.encode(count), content_type="application/json")


async def not_stored(request: web.Request) -> NoReturn:
    """GET, DELETE and POST of a response: nothing is stored."""
    message = "This server stores no responses; each is complete in the answer to its request."
    raise NotFound(message, code="not_found")


RESPONSES = Endpoint("responses", ResponsesBody, prepare_response, ResponsesRenderer)
