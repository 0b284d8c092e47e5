"""The server under test: its address, connections to it, and the model to request."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import aiohttp

from radixserve.loadtest.dialect import DIALECTS, Dialect


class CannotStart(Exception):
    """The server cannot be tested; the message is for the person at the terminal."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where and how requests are sent."""

    url: str  # ends in /v1
    model: str = ""  # empty: the first one that the server lists
    api_key: str | None = None
    timeout_seconds: float = 300.0  # of one request
    dialect: Dialect = field(default=DIALECTS["openai"])


def base_url(url: str) -> str:
    """The URL that ends in /v1, from a URL with or without it."""
    url = url.rstrip("/")
    return url if url.endswith("/v1") else f"{url}/v1"


@asynccontextmanager
async def connect(target: Target) -> AsyncIterator[aiohttp.ClientSession]:
    """A session whose paths are relative to the target. It uses one connection per request, because
    some servers close idle ones.
    """
    headers = {"Authorization": f"Bearer {target.api_key}"} if target.api_key else {}
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=10.0)
    try:
        session = aiohttp.ClientSession(
            f"{target.url}/",
            headers=headers,
            connector=connector,
            timeout=timeout,
            read_bufsize=2**20,
        )
    except ValueError as error:
        await connector.close()
        raise CannotStart(f"{target.url} is not a URL: {error}") from error
    async with session:
        yield session


async def find_model(session: aiohttp.ClientSession, target: Target) -> str:
    """The model to request. If the server's list is not usable, this only checks that the server
    answers.

    Raises:
        CannotStart: the server does not answer, or does not serve the model named.
    """
    if target.dialect.lists_models:
        status, text = await _get(session, "models", target)
        if status != 200:
            raise CannotStart(f"{target.url}/models answers {status}: {text[:200]}")
        return _chosen(target, text)
    if not target.model:
        raise CannotStart(
            "a server of this dialect does not list its models; name one with --model"
        )
    await _get(session, "", target)  # any answer is enough
    return target.model


async def _get(session: aiohttp.ClientSession, path: str, target: Target) -> tuple[int, str]:
    """Status and text of a page."""
    try:
        async with session.get(path, timeout=aiohttp.ClientTimeout(total=10.0)) as response:
            return response.status, await response.text(errors="replace")
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise CannotStart(
            f"no server at {target.url}: {error or 'no answer within 10 seconds'}"
        ) from error


def _chosen(target: Target, listed: str) -> str:
    """The chosen model, otherwise the first of the list."""
    try:
        served = [str(model["id"]) for model in json.loads(listed)["data"]]
    except (ValueError, LookupError, TypeError) as error:
        raise CannotStart(
            f"{target.url}/models does not list models as the OpenAI API does"
        ) from error
    if not served or (target.model and target.model not in served):
        raise CannotStart(
            f"{target.url} does not serve {target.model or 'any model'}; it has: "
            f"{', '.join(served) or '-'}"
        )
    return target.model or served[0]
