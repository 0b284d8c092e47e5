"""The endpoints of the Anthropic dialect."""

from __future__ import annotations

import msgspec
from aiohttp import web

from radixserve.api.adapters import adapter_named
from radixserve.api.anthropic.answers import TokenCount
from radixserve.api.anthropic.conversation import translated
from radixserve.api.anthropic.renderer import MessagesRenderer
from radixserve.api.anthropic.wire import CountTokensBody, MessagesBody
from radixserve.api.body import read_body
from radixserve.api.context import Api, api_of
from radixserve.api.handlers import Endpoint
from radixserve.api.openai.endpoints import prepare_chat
from radixserve.api.openai.prompts import chat_prompt, conversation_of
from radixserve.api.openai.tools import offered_tools
from radixserve.errors import ApiError
from radixserve.front.generation import Generation


async def prepare_messages(api: Api, body: MessagesBody) -> Generation:
    """Make all checks of a body, cheap ones first. Raises the refusal."""
    chat = translated(body, ignore_unknown=api.settings.ignore_unknown_fields)
    try:
        generation = await prepare_chat(api, chat.body, fewest_tokens=0, marks=chat.marks)
    except ApiError as refusal:
        chat.restate(refusal)
        raise
    generation.endpoint = MESSAGES.name
    return generation


async def count_tokens(request: web.Request) -> web.Response:
    """POST /v1/messages/count_tokens: the tokens of the prompt that /v1/messages would compute."""
    api = api_of(request)
    body = await read_body(request, CountTokensBody)
    chat = translated(body, ignore_unknown=api.settings.ignore_unknown_fields)
    try:
        adapter_named(api, chat.body.model)
        conversation = conversation_of(chat.body, offered_tools(chat.body).shown)
        encoded = await chat_prompt(api, conversation, api.info())
    except ApiError as refusal:
        chat.restate(refusal)
        raise
    count = msgspec.json.encode(TokenCount(len(encoded.ids)))
    return web.Response(body=count, content_type="application/json")


MESSAGES = Endpoint("messages", MessagesBody, prepare_messages, MessagesRenderer)
