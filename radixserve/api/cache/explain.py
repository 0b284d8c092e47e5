"""POST /cache/explain: what of a body's prompt the cache would give, and why not more.

The body is one that an endpoint would take, and passes all checks of that endpoint, or
`{"tokens": [...]}`. Nothing is generated, and no recency changes. A tenant is told of its own
prompts only, because K/V and what is remembered of prompts is kept by namespace.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, Final

import msgspec
from aiohttp import web

from radixserve.api.access import check_admin, tenant_of
from radixserve.api.body import decode_body, read_raw
from radixserve.api.cache.bodies import generation_of, tenant_named
from radixserve.api.cache.hints import hints
from radixserve.api.cache.regions import Region, region_of
from radixserve.api.context import Api, api_of
from radixserve.api.json_response import json_response
from radixserve.api.openai.validate import check_token_ids
from radixserve.api.refusals import missing, too_many
from radixserve.engine.counters import NEVER_SEEN, OTHER_NAMESPACE, PREFIX_CHANGED
from radixserve.front.generation import Generation
from radixserve.prefix import PUBLIC
from radixserve.questions import Explain, Explanation
from radixserve.tenants import DEFAULT

AROUND: Final = 8  # tokens that are shown on each side of the first difference
_FOR_HINTS: Final = 2048  # tokens behind the difference in which causes are looked for
_SENTENCES: Final = {
    "hit": "All of the prompt but its last token, which is always computed, is cached.",
    "cache_off": "The request, or the server, does not use the cache.",
    "too_short": "The prompt is too short to be worth looking up.",
    "not_kept": "These tokens are cached, but no state of the recurrent layers, or not the whole "
    "window, is kept there. Once this prompt is computed, one that leaves at the same place hits.",
    "evicted": "It was cached and had to make room for other requests.",
    "expired": "It was pinned until its time was over, and then made room for other requests.",
    "dropped": "It was cached, and an operator dropped it.",
    "prefix_changed": "It differs here from an earlier prompt that is alike from there on.",
    "other_namespace": "It was asked before in another namespace: another salt or tenant.",
    "never_seen": "No recent prompt has the tokens from here on.",
}


class TokensBody(msgspec.Struct, forbid_unknown_fields=True):
    """A prompt as token ids, in the namespace of a tenant's requests without a salt."""

    tokens: list[int]
    tenant: str | None = None


async def explain(request: web.Request) -> web.Response:
    """POST /cache/explain."""
    if tenant_of(request) is DEFAULT:
        check_admin(request)
    api, raw = api_of(request), await read_raw(request)
    fields = decode_body(raw, dict[str, Any])
    if "tokens" in fields:
        question = of_tokens(request, decode_body(raw, TokensBody))
        generation = None
    else:
        generation = await generation_of(request, fields)
        question = of_generation(generation)
    told = await api.engine.ask(question)
    if not tenant_of(request).admin and tenant_of(request) is not DEFAULT:
        told = _without_others(told)
    return json_response(await _Answer(api, question, told, generation, _blocks(fields)).whole())


def of_tokens(request: web.Request, body: TokensBody) -> Explain:
    """The question about a prompt that is given as token ids. Raises BadRequest."""
    api = api_of(request)
    info = api.info()
    if not body.tokens:
        raise missing("tokens")
    if len(body.tokens) > info.context_length:
        raise too_many("tokens", info.context_length)
    check_token_ids(body.tokens, info.vocab_size, "tokens")
    tenant = tenant_named(request, body.tenant)
    return Explain(
        namespace=api.namespaces.of(tenant.name, PUBLIC),
        tokens=body.tokens,
        num_public=api.namespaces.num_public(PUBLIC, body.tokens),
    )


def of_generation(generation: Generation) -> Explain:
    """The question about the first prompt of a body."""
    asked = generation.streams[0].request
    return Explain(
        namespace=asked.namespace,
        tokens=asked.prompt_ids,
        num_public=asked.num_public,
        session=asked.session,
        reads_cache=asked.reads_cache and asked.sampling.prompt_logprobs is None,
    )


def _blocks(fields: dict[str, Any]) -> list[str]:
    """The texts of a system prompt that comes in blocks: Anthropic's, or the first message's."""
    given, messages = fields.get("system"), fields.get("messages")
    if given is None and isinstance(messages, list) and messages and isinstance(messages[0], dict):
        first = messages[0]
        given = first.get("content") if first.get("role") in ("system", "developer") else None
    blocks = given if isinstance(given, list) else []
    return [str(each.get("text", "")) for each in blocks if isinstance(each, dict)]


class _Answer:
    """The answer in the making."""

    def __init__(
        self,
        api: Api,
        question: Explain,
        told: Explanation,
        generation: Generation | None,
        blocks: Sequence[str],
    ) -> None:
        self._api, self._ids, self._told = api, question.tokens, told
        self._conversation = None if generation is None else generation.conversation
        self._blocks = blocks

    async def whole(self) -> dict[str, Any]:
        told, num_matched = self._told, sum(self._told.matched.values())
        region = await self._region(told.differs_at)
        cause = next(iter(told.lost), "hit" if len(self._ids) > 1 else "too_short")
        answer: dict[str, Any] = {
            "prompt_tokens": len(self._ids),
            "matched_tokens": num_matched,
            "matched": told.matched,
            "cause": cause,
            "why": _SENTENCES[cause],
            "lost": told.lost,
            "compared_with": told.compared,
            "first_difference": None,
            "hints": [],
        }
        if told.gone_seconds is not None:
            answer["gone"] = {"seconds_ago": told.gone_seconds, "room_for_tokens": told.gone_for}
        if told.differs_at is not None:
            answer["first_difference"] = await self._difference(told.differs_at, region)
            if PREFIX_CHANGED in told.lost:
                answer["hints"] = await self._hints(told.differs_at, region)
        return answer

    async def _region(self, position: int | None) -> Region | None:
        if position is None:
            return None
        if self._conversation is None:
            return Region(kind="prompt", words="the prompt")
        messages = self._api.volatile.removed(self._conversation.messages)
        conversation = msgspec.structs.replace(self._conversation, messages=messages)
        return await region_of(self._api, conversation, self._ids, position, self._blocks)

    async def _difference(self, at: int, region: Region | None) -> dict[str, Any]:
        told = self._told
        here = at - told.theirs_from
        return {
            "position": at,
            "region": region,
            "before": await self._texts(self._ids[max(0, at - AROUND) : at]),
            "prompt": await self._texts(self._ids[at : at + AROUND]),
            "earlier": await self._texts(told.theirs[here : here + AROUND]),
        }

    async def _hints(self, at: int, region: Region | None) -> list[str]:
        told = self._told
        here = at - told.theirs_from
        parts = (
            self._ids[max(0, at - 64) : at],
            self._ids[at : at + _FOR_HINTS],
            told.theirs[here : here + _FOR_HINTS],
        )
        before, mine, theirs = await self._decoded(parts)
        return hints(before, mine, theirs, region)

    async def _texts(self, ids: Sequence[int]) -> list[dict[str, Any]]:
        texts = await self._decoded([[each] for each in ids])
        return [{"id": each, "text": text} for each, text in zip(ids, texts, strict=True)]

    async def _decoded(self, parts: Iterable[Sequence[int]]) -> list[str]:
        """The text of each part, special tokens shown."""
        decode = partial(self._api.tokenizer.decode, skip_special_tokens=False)
        return await self._api.threads.run(lambda: [decode(list(each)) for each in parts])


def _without_others(told: Explanation) -> Explanation:
    """What a tenant is told: neither whether others have the same prompt, nor for how many tokens
    of a request, which may be another's, room was made. The rest of the answer is made from this,
    so that nothing in it depends on others.
    """
    lost = dict(told.lost)
    others = lost.pop(OTHER_NAMESPACE, 0)
    if others:
        lost[NEVER_SEEN] = lost.get(NEVER_SEEN, 0) + others
    return msgspec.structs.replace(told, lost=lost, gone_for=None)
