"""The adapters that requests name as their model, and those that operators load and unload while
the server runs: POST /v1/load_lora_adapter and /v1/unload_lora_adapter.

A request can only name a folder below the one that the operator has allowed.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Final

import msgspec
from aiohttp import web

from radixserve.adapters import AdapterInfo, AdapterSource, fault_of
from radixserve.api.access import check_admin, tenant_of
from radixserve.api.body import read_body
from radixserve.api.cache.query import parameters
from radixserve.api.context import Api, api_of
from radixserve.api.json_response import json_response
from radixserve.api.openai.validate import check_model, is_among
from radixserve.errors import BadRequest

log = logging.getLogger(__name__)

_MOST_PATH_CHARS: Final = 4096


class LoadBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """An adapter to be served. Clients of other servers send its number, too, which is not used."""

    lora_name: str
    lora_path: str
    lora_int_id: int | None = None


class UnloadBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """An adapter that is not to be served any more."""

    lora_name: str
    lora_int_id: int | None = None


def adapter_named(api: Api, name: str | None) -> AdapterInfo | None:
    """The adapter that a request names as its model; None if it names the model itself, or none.

    Raises:
        NotFound: there is neither.
        Unavailable: the adapters are not loaded yet.
    """
    adapters = api.engine.adapters
    found = adapters.get(name)
    if found is None:
        if name in adapters.names:
            api.info()
        check_model(name, api.model_names)
    return found


async def load(request: web.Request) -> web.Response:
    """POST /v1/load_lora_adapter."""
    check_admin(request)
    parameters(request, ("model",))
    api, body = api_of(request), await read_body(request, LoadBody)
    if (fault := fault_of(body.lora_name)) is not None:
        text = f"{fault[0].upper()}{fault[1:]}."
        raise BadRequest(text, param="lora_name", code="invalid_value")
    if is_among(body.lora_name, tuple(each for each in api.model_names if "*" not in each)):
        text = f"'{body.lora_name}' is the name of the model."
        raise BadRequest(text, param="lora_name", code="invalid_value")
    path = await api.threads.run(lambda: _allowed(body.lora_path, api.settings.lora_dir))
    info = await api.engine.adapters.load(AdapterSource(body.lora_name, str(path)))
    log.info("%s loaded the adapter %s from %s", tenant_of(request).name, info.name, info.path)
    return json_response(_described(info))


def _allowed(given: str, folder: str | None) -> Path:
    """The folder that a request names, links resolved. Raises BadRequest unless it lies below
    `folder`, in which relative paths begin.
    """
    if folder is None:
        text = "This server loads no adapters while it runs; its operator can allow it (lora_dir)."
        raise BadRequest(text, param="lora_path", code="unsupported_parameter")
    if "\0" not in given and len(given) <= _MOST_PATH_CHARS:
        root = Path(os.path.realpath(folder))
        path = Path(os.path.realpath(root / given))
        if path.is_relative_to(root) and path != root:
            return path
    text = "'lora_path' must lie below the folder that the operator has allowed (lora_dir)."
    raise BadRequest(text, param="lora_path", code="invalid_value")


async def unload(request: web.Request) -> web.Response:
    """POST /v1/unload_lora_adapter."""
    check_admin(request)
    parameters(request, ("model",))
    api, body = api_of(request), await read_body(request, UnloadBody)
    num_running = await api.engine.adapters.unload(body.lora_name)
    log.info("%s unloaded the adapter %s", tenant_of(request).name, body.lora_name)
    return json_response({"lora_name": body.lora_name, "running_requests": num_running})


def _described(info: AdapterInfo) -> dict[str, object]:
    return {
        "lora_name": info.name,
        "lora_path": info.path,
        "rank": info.rank,
        "bytes": info.num_bytes,
        "own_kv": bool(info.kv_digest),
    }
