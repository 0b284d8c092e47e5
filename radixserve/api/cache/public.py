"""The file of public prefixes: prompts whose K/V all tenants share.

A line is a body as POST /cache/warm takes it. What all prompts have in common that go on from it is
public: of a conversation the part up to the end of its last message. It is found by rendering some
continuations, because a template, or a token that spans the border, may depend on what comes next.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any, Final

import msgspec

from radixserve.api.cache.bodies import prepared
from radixserve.api.cache.warm import only_tokens
from radixserve.api.context import Api
from radixserve.api.openai.prompts import chat_prompt
from radixserve.api.refusals import unsupported
from radixserve.body_file import FileBody, read_body_file
from radixserve.errors import ApiError, BadRequest, ConfigError, Unavailable
from radixserve.front.generation import Generation
from radixserve.prefix import PUBLIC
from radixserve.text.conversation import Conversation

_CONTINUATIONS: Final = ("A", " a", "\n1")  # no two of them, nor what joins them, begin alike
_AGAIN_SECONDS: Final = 0.5  # after which a server that could not is asked again

log = logging.getLogger(__name__)


async def share(api: Api, path: str, bodies: Sequence[FileBody]) -> None:
    """Make the prefixes of a file, and no others, public for the requests that come from now on.
    Some renderings for each. One that is longer than the K/V budget of now is left out with a
    warning: no request that goes on from it would fit, either. While the server takes no requests,
    because its engine does not start, this waits.

    Raises:
        ConfigError: one of them is refused; one sentence with its line. Then nothing has changed.
    """
    fitting = [await _patiently(api, path, body) for body in bodies]
    found = [prefix for prefix in fitting if prefix]
    api.namespaces.share(found)
    log.info("%d public prefixes of %s, %d tokens", len(found), path, sum(map(len, found)))


async def share_again(api: Api, path: str) -> None:
    """Read the file again. If it cannot be used, the log says why, and nothing changes."""
    try:
        bodies = await api.threads.run(lambda: read_body_file(Path(path)))
        await share(api, path, bodies)
    except (ApiError, ConfigError) as error:
        log.error("the public prefixes stay as they were: %s", error)


async def _patiently(api: Api, path: str, body: FileBody) -> list[int]:
    """What `_prefix_in` gives, as soon as the server can give it."""
    has_told = False
    while True:
        try:
            return await _prefix_in(api, path, body)
        except Unavailable as error:
            if not has_told:
                log.warning("the public prefixes of %s wait: %s", path, error)
            has_told = True
        await asyncio.sleep(_AGAIN_SECONDS)


async def _prefix_in(api: Api, path: str, body: FileBody) -> list[int]:
    """The token ids of a body that are public; none if they do not fit the K/V budget. Raises
    ConfigError if it is refused, and Unavailable if that cannot be told now.
    """
    where = f"the public prefix in line {body.line} of {path}"
    try:
        return await _public_part(api, body.fields)
    except Unavailable:
        raise
    except ApiError as error:
        if error.code != "kv_budget_exceeded":
            raise ConfigError(f"{where} cannot be used: {error}") from None
        log.warning("%s is left out until the file is read with a larger budget: %s", where, error)
        return []


async def _public_part(api: Api, fields: dict[str, Any]) -> list[int]:
    """The token ids of a body that are public. Raises BadRequest."""
    if "tokens" in fields:
        fields = {"prompt": only_tokens(fields)}
    generation = await prepared(api, fields)
    if len(generation.streams) > generation.num_choices:
        raise unsupported("prompt", "several prompts in one line")
    if generation.adapter:
        raise unsupported("model", "a public prefix of an adapter")
    if generation.streams[0].request.namespace != PUBLIC:
        raise unsupported("cache_salt", "a public prefix with a salt")
    if generation.conversation is not None:
        prompts = await _conversations(api, generation.conversation)
    elif isinstance(text := fields.get("prompt"), str):
        bodies = ({**fields, "prompt": text + each} for each in ("", *_CONTINUATIONS))
        prompts = [_ids(await prepared(api, each)) for each in bodies]
    else:
        prompts = [_ids(generation)]
    columns = takewhile(lambda ids: len(set(ids)) == 1, zip(*prompts, strict=False))
    shared = [ids[0] for ids in columns]
    if not shared:
        raise BadRequest("Prompts that go on from it have no token in common.")
    return shared


def _ids(generation: Generation) -> list[int]:
    return generation.streams[0].request.prompt_ids


async def _conversations(api: Api, conversation: Conversation) -> list[list[int]]:
    """The prompts of a conversation that ends, and of some that go on, as far as the template
    renders them.
    """
    messages, found = conversation.messages, []
    role = "assistant" if messages and messages[-1]["role"] in ("user", "tool") else "user"
    more = [[{"role": role, "content": each}] for each in _CONTINUATIONS]
    refusal: BadRequest | None = None
    for behind in ([], *more):
        each = msgspec.structs.replace(conversation, messages=[*messages, *behind], ending="closed")
        try:
            found.append((await chat_prompt(api, each, api.info())).ids)
        except BadRequest as error:
            refusal = error
    if len(found) < 2:
        assert refusal is not None, "what is not rendered is refused"
        raise refusal
    return found
