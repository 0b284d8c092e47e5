"""The OpenAPI document, made from the wire types, and the page that shows it.

The document is version 3.0.3, which most tools read: what JSON Schema writes as an alternative with
null is `nullable` there. The page is Swagger UI from a package, so it loads nothing from elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import msgspec
import swagger_ui_bundle
from aiohttp import web

import radixserve
from radixserve.api.adapters import LoadBody, UnloadBody
from radixserve.api.anthropic.answers import Message as AnthropicMessage
from radixserve.api.anthropic.answers import TokenCount
from radixserve.api.anthropic.wire import CountTokensBody, MessagesBody
from radixserve.api.json_response import json_response
from radixserve.api.openai.answers import ChatCompletion, TextCompletion
from radixserve.api.openai.errors import ErrorEnvelope
from radixserve.api.openai.responses.answers import InputTokens
from radixserve.api.openai.responses.wire import ResponsesBody
from radixserve.api.openai.wire import ChatBody, CompletionBody, DetokenizeBody, TokenizeBody
from radixserve.errors import NotFound

_ASSETS: Final = Path(swagger_ui_bundle.swagger_ui_path)
_ASSET_TYPES: Final = {
    "swagger-ui.css": "text/css",
    "swagger-ui-bundle.js": "text/javascript",
    "favicon-32x32.png": "image/png",
}
_PAGE: Final = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>radixserve API</title>
<link rel="stylesheet" href="docs/swagger-ui.css">
<link rel="icon" href="docs/favicon-32x32.png">
</head>
<body>
<div id="page"></div>
<script src="docs/swagger-ui-bundle.js"></script>
<script>SwaggerUIBundle({url: "openapi.json", dom_id: "#page", validatorUrl: null})</script>
</body>
</html>
"""


@dataclass(frozen=True, slots=True)
class Operation:
    """What a method does at a path. Answers without a type are JSON objects."""

    method: str
    path: str
    summary: str
    body: type[msgspec.Struct] | None = None
    answer: type[msgspec.Struct] | None = None
    streams: bool = False


OPERATIONS: Final = (
    Operation(
        "post", "/v1/chat/completions", "Answer a conversation", ChatBody, ChatCompletion, True
    ),
    Operation("post", "/v1/completions", "Continue texts", CompletionBody, TextCompletion, True),
    Operation("post", "/v1/responses", "Answer items (OpenAI)", ResponsesBody, streams=True),
    Operation(
        "post", "/v1/responses/input_tokens", "Count a prompt's tokens", ResponsesBody, InputTokens
    ),
    Operation("get", "/v1/responses/{id}", "Nothing is stored: always 404"),
    Operation("delete", "/v1/responses/{id}", "Nothing is stored: always 404"),
    Operation("post", "/v1/responses/{id}/cancel", "Nothing is stored: always 404"),
    Operation("get", "/v1/responses/{id}/input_items", "Nothing is stored: always 404"),
    Operation(
        "post", "/v1/messages", "Answer messages (Anthropic)", MessagesBody, AnthropicMessage, True
    ),
    Operation(
        "post", "/v1/messages/count_tokens", "Count a prompt's tokens", CountTokensBody, TokenCount
    ),
    Operation("get", "/v1/models", "The names of the model served"),
    Operation("get", "/v1/models/{model}", "One of the names"),
    Operation("post", "/v1/load_lora_adapter", "Serve an adapter", LoadBody),
    Operation("post", "/v1/unload_lora_adapter", "Serve an adapter no more", UnloadBody),
    Operation("post", "/tokenize", "The tokens of a text or of messages", TokenizeBody),
    Operation("post", "/detokenize", "The text of tokens", DetokenizeBody),
    Operation("get", "/cache", "How full the cache is, and of what"),
    Operation("delete", "/cache", "Drop a prefix, a namespace, or what was not used for long"),
    Operation("get", "/cache/tree", "A part of the radix tree"),
    Operation("post", "/cache/warm", "Compute prompts without answering them"),
    Operation("post", "/cache/pin", "Keep a prefix cached for a while"),
    Operation("get", "/cache/pins", "What is pinned"),
    Operation("delete", "/cache/pin/{id}", "End a pin"),
    Operation("post", "/cache/explain", "Why a prompt would not be found in the cache"),
    Operation("post", "/flush_cache", "Drop everything that is cached"),
    Operation("post", "/reset_prefix_cache", "The same"),
    Operation("get", "/config", "The settings that may change while the server runs"),
    Operation("put", "/config", "Change some of them"),
    Operation("get", "/", "What this server is"),
    Operation("get", "/version", "Version, model and engine"),
    Operation("get", "/health", "200 while the engine works, otherwise 503"),
    Operation("get", "/health/ready", "The same"),
    Operation("get", "/health/live", "200 while the front answers"),
    Operation("get", "/metrics", "Metrics for Prometheus"),
    Operation("get", "/openapi.json", "This document"),
    Operation("get", "/docs", "This document as a page"),
    Operation("get", "/docs/{asset}", "The files of that page"),
    Operation("get", "/ui", "The page for operators"),
    Operation("get", "/ui/events", "What the page shows, once a second, as server-sent events"),
    Operation("get", "/ui/{asset}", "The files of that page"),
)
"""Every operation that the server knows."""


@cache
def document() -> dict[str, Any]:
    """The OpenAPI document."""
    types = [
        each
        for operation in OPERATIONS
        for each in (operation.body, operation.answer, ErrorEnvelope)
        if each is not None
    ]
    names = dict.fromkeys(types)
    refs, schemas = msgspec.json.schema_components(
        names, ref_template="#/components/schemas/{name}"
    )
    ref_of = dict(zip(names, refs, strict=True))
    paths: dict[str, Any] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method] = _described(operation, ref_of)
    described = {
        "openapi": "3.0.3",
        "info": {"title": "radixserve", "version": radixserve.__version__},
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }
    return nullable(described)  # type: ignore[no-any-return]


def _described(operation: Operation, ref_of: Mapping[type[msgspec.Struct], Any]) -> dict[str, Any]:
    name = f"{operation.method}{operation.path}"
    schema = {"type": "object"} if operation.answer is None else ref_of[operation.answer]
    answer = {"application/json": {"schema": schema}}
    if operation.path in ("/metrics", "/docs", "/docs/{asset}", "/ui", "/ui/{asset}"):
        answer = {"text/plain": {"schema": {"type": "string"}}}
    if operation.streams:
        answer["text/event-stream"] = {"schema": {"type": "string"}}
    failure = {"application/json": {"schema": ref_of[ErrorEnvelope]}}
    described: dict[str, Any] = {
        "operationId": "_".join(part for part in name.replace("/", " ").split()).strip("_"),
        "summary": operation.summary,
        "responses": {
            "200": {"description": "the answer", "content": answer},
            "default": {"description": "a refusal or failure", "content": failure},
        },
    }
    if operation.body is not None:
        content = {"application/json": {"schema": ref_of[operation.body]}}
        described["requestBody"] = {"required": True, "content": content}
    if "{" in operation.path:
        parameter = operation.path.partition("{")[2].rstrip("}")
        described["parameters"] = [
            {"name": parameter, "in": "path", "required": True, "schema": {"type": "string"}}
        ]
    return described


def nullable(schema: Any) -> Any:
    """`schema` with `nullable` in place of alternatives with the type null, as OpenAPI 3.0 has
    it.
    """
    if isinstance(schema, list):
        return [nullable(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    changed = {key: nullable(value) for key, value in schema.items()}
    if changed.get("type") == "null":
        return {**changed, "type": "string", "enum": [None], "nullable": True}
    alternatives = schema.get("anyOf")
    if not isinstance(alternatives, list) or {"type": "null"} not in alternatives:
        return changed
    del changed["anyOf"]
    kept = [nullable(each) for each in alternatives if each != {"type": "null"}]
    return {"anyOf": kept, **changed, "nullable": True}


async def openapi(request: web.Request) -> web.Response:
    """GET /openapi.json."""
    return json_response(document())


async def docs(request: web.Request) -> web.Response:
    """GET /docs: the document as a page for people."""
    return web.Response(text=_PAGE, content_type="text/html")


async def docs_asset(request: web.Request) -> web.FileResponse:
    """GET /docs/{asset}: a script or style of that page."""
    name = request.match_info["asset"]
    if name not in _ASSET_TYPES:
        raise NotFound("There is no such file.", code="not_found")
    return web.FileResponse(_ASSETS / name, headers={"Content-Type": _ASSET_TYPES[name]})
