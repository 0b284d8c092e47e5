"""Endpoints other than generation: models, health, metrics, version, tokenize and detokenize."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial
from typing import Any

from aiohttp import web

import radixserve
from radixserve.adapters import AdapterInfo
from radixserve.api.adapters import adapter_named
from radixserve.api.body import read_body
from radixserve.api.context import API, Api, api_of
from radixserve.api.json_response import json_response
from radixserve.api.models import MODELS
from radixserve.api.openai.prompts import chat_prompt, conversation_of, text_prompt
from radixserve.api.openai.tools import offered_tools
from radixserve.api.openai.validate import check_token_ids
from radixserve.api.openai.wire import ChatBody, DetokenizeBody, TokenizeBody
from radixserve.api.refusals import too_many, unsupported
from radixserve.errors import BadRequest
from radixserve.metrics import Metrics
from radixserve.metrics_page import page


async def about(request: web.Request) -> web.Response:
    """GET /: describes the server to a person who opens the address in a browser."""
    api, models = request.app[API], request.app[MODELS]
    names = [each.model_name for each in models]
    facts = {
        "server": "radixserve",
        "version": radixserve.__version__,
        **({"models": names} if models.are_several else {"model": api.model_name}),
        "openai_base_url": f"{api.settings.root_path}/v1",
        "health": f"{api.settings.root_path}/health",
        "metrics": f"{api.settings.root_path}/metrics",
    }
    return json_response(facts)


async def list_models(request: web.Request) -> web.Response:
    """GET /v1/models: the names without `*`, with the members that OpenAI's and Anthropic's clients
    look for.
    """
    models = [
        _model(api, name)
        for api in request.app[MODELS]
        for name in api.model_names
        if "*" not in name
    ]
    models += [_adapter(api, each) for api in request.app[MODELS] for each in api.engine.adapters]
    page = {"has_more": False, "first_id": models[0]["id"], "last_id": models[-1]["id"]}
    return json_response({"object": "list", "data": models, **page})


async def get_model(request: web.Request) -> web.Response:
    """GET /v1/models/{model}; a model's name may contain slashes."""
    name, models = request.match_info["model"], request.app[MODELS]
    api = models.named(name) if models.are_several else request.app[API]
    adapter = adapter_named(api, name)
    return json_response(_model(api, name) if adapter is None else _adapter(api, adapter))


async def live(request: web.Request) -> web.Response:
    """GET /health/live: the event loop answers."""
    return json_response({"status": "live"})


async def ready(request: web.Request) -> web.Response:
    """GET /health/ready and /health: 503 with the reason while an engine does not work."""
    request.app[MODELS].check_ready()
    return json_response({"status": "ready"})


async def metrics(request: web.Request) -> web.Response:
    """GET /metrics: where there are several models, with the name of each as a label."""
    models = request.app[MODELS]
    for api in models:
        engine = api.engine
        api.metrics.take_state(engine.stats, engine.info, up=engine.unready_reason is None)
    body = page([(api.metrics, api.engine.info) for api in models])
    return web.Response(body=body, headers={"Content-Type": Metrics.content_type})


async def version(request: web.Request) -> web.Response:
    """GET /version: version, model and engine, and whether a cache hit equals a miss bit for bit in
    this configuration.
    """
    models = request.app[MODELS]
    facts = [
        {
            "model": api.model_name,
            "defaults": api.settings.defaults,
            "engine": api.engine.info,
        }
        for api in models
    ]
    told = {"models": facts} if models.are_several else facts[0]
    return json_response({"version": radixserve.__version__, **told})


async def tokenize(request: web.Request) -> web.Response:
    """POST /tokenize: the ids that /v1/completions (prompt) or /v1/chat/completions (messages)
    would compute.
    """
    api = api_of(request)
    body = await read_body(request, TokenizeBody)
    adapter_named(api, body.model)
    if (body.prompt is None) == (body.messages is None):
        raise BadRequest(
            "Give exactly one of 'prompt' and 'messages'.", param="prompt", code="invalid_value"
        )
    info = api.info()
    if body.messages is not None:
        if body.add_special_tokens is not None:
            raise unsupported("add_special_tokens", "'add_special_tokens' with 'messages'")
        offer = offered_tools(ChatBody(messages=[], tools=body.tools))
        ids = (await chat_prompt(api, conversation_of(body, offer.shown), info)).ids
    else:
        for name in ("add_generation_prompt", "continue_final_message", "tools"):
            if getattr(body, name) is not None:
                raise unsupported(name, f"'{name}' with 'prompt'")
        add = body.add_special_tokens is not False
        ids, _ = await text_prompt(api, body.prompt or "", info, add_special_tokens=add)
    return json_response(
        {"tokens": ids, "count": len(ids), "max_model_len": info.max_request_tokens}
    )


async def detokenize(request: web.Request) -> web.Response:
    """POST /detokenize: the text of token ids, special tokens shown."""
    api = api_of(request)
    body = await read_body(request, DetokenizeBody)
    adapter_named(api, body.model)
    info = api.info()
    if len(body.tokens) > info.context_length:
        raise too_many("tokens", info.context_length)
    check_token_ids(body.tokens, info.vocab_size, "tokens")
    text = await api.threads.run(
        partial(api.tokenizer.decode, body.tokens, skip_special_tokens=False)
    )
    return json_response({"prompt": text})


def _model(api: Api, name: str) -> dict[str, Any]:
    info = api.engine.info
    most = info.max_request_tokens if info is not None else None
    openai = {"object": "model", "created": api.created, "owned_by": "radixserve"}
    anthropic = {
        "type": "model",
        "display_name": name,
        "created_at": datetime.fromtimestamp(api.created, UTC).isoformat(),
        "lifecycle": "active",
        "max_input_tokens": most,
    }
    return {"id": name, "root": api.model_name, "max_model_len": most, **openai, **anthropic}


def _adapter(api: Api, adapter: AdapterInfo) -> dict[str, Any]:
    """An adapter as vLLM lists it: `root` is its folder, `parent` the model's name."""
    return _model(api, adapter.name) | {"root": adapter.path, "parent": api.model_name}
