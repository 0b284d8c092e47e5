"""Turns a validated body and its prompts into a `Generation`: every default resolved, every limit
that depends on the prompt checked.

Checks apply to resolved values, after defaults are filled in. Knows token ids, not text; no HTTP.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from radixserve.adapters import AdapterInfo, namespace_with
from radixserve.api.adapters import adapter_named
from radixserve.api.context import Api
from radixserve.api.openai.validate import check_token_ids, stop_strings, stop_tokens
from radixserve.api.openai.wire import GenerationBody, StreamOptions
from radixserve.api.refusals import check_range, shown, too_many
from radixserve.api.settings import ApiSettings
from radixserve.defaults import Defaults
from radixserve.errors import BadRequest
from radixserve.front.generation import Generation
from radixserve.front.stream import Stream
from radixserve.prefix import PUBLIC
from radixserve.request import Grammar, Request, Sampling
from radixserve.step import EngineInfo

if TYPE_CHECKING:
    from radixserve.parsing.parser import Parser

_INT64 = 2**63
# Single precision cannot divide by a smaller temperature; the result would be the greedy token.
_GREEDY_BELOW = 1e-6

# For the log line of a request: the value at which a parameter has no effect; None: always logged.
_TOLD: dict[str, float | None] = {
    "temperature": None,
    "top_p": None,
    "top_k": 0,
    "min_p": 0.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "repetition_penalty": 1.0,
    "min_tokens": 0,
}


@dataclass(frozen=True, slots=True)
class AnswerForm:
    """What the answer's text will look like.

    Attributes:
        continues: it goes on after the prompt's text.
        grammar: what all of it matches.
        new_parser: makes a parser for one choice; None: all of it is text.
        in_reasoning: it begins within the reasoning.
        shown_tokens: special tokens that the parser must see as text.
        ends: the tokens that end it, besides the usual ones.
        bad_words: token sequences that it must not contain.
    """

    continues: bool
    grammar: Grammar | None = None
    new_parser: Callable[[], Parser] | None = None
    in_reasoning: bool = False
    shown_tokens: frozenset[int] = frozenset()
    ends: tuple[int, ...] = ()
    bad_words: tuple[tuple[int, ...], ...] = ()


def resolve(
    api: Api,
    endpoint: str,
    body: GenerationBody,
    prompts: Sequence[tuple[list[int], str]],
    form: AnswerForm,
) -> Generation:
    """The sequences to generate, prompt by prompt; `body` has passed `check_fields`.

    `prompts` are token ids with the text that `echo` repeats. Choice i of a prompt is drawn with
    seed + i (mod 2**63), so that choices differ and can be reproduced.
    """
    num_choices = body.num_drawn
    if len(prompts) * num_choices > api.settings.max_sequences:
        raise too_many("n", api.settings.max_sequences, "n times the number of prompts")
    adapter = adapter_named(api, body.model)
    generation_id, arrived = secrets.token_hex(12), time.monotonic()
    seed = secrets.randbits(63) if body.seed is None else body.seed % _INT64
    streams: list[Stream] = []
    for all_ids, text in prompts:
        ids = _truncated(all_ids, body, api.info())
        sampling = _sampling(body, len(ids), api.info(), api.settings)
        sampling = _with_form(sampling, form)
        for choice in range(num_choices):
            request = Request(
                id=f"{generation_id}-{len(streams)}",
                prompt_ids=ids,
                sampling=msgspec.structs.replace(sampling, seed=(seed + choice) % _INT64),
                namespace=namespace_of(body, adapter),
                adapter="" if adapter is None else adapter.digest,
                session=session_of(body),
                priority=body.priority or 0,
                reads_cache=body.reads_cache,
                keeps_cache=body.stores_cache,
                arrived=arrived,
            )
            streams.append(_stream(api, body, request, form, text))
    options = body.stream_options or StreamOptions()
    return Generation(
        endpoint,
        generation_id,
        streams,
        num_choices,
        streamed=bool(body.stream),
        include_usage=bool(options.include_usage),
        continuous_usage=bool(options.continuous_usage_stats),
        logprobs=body.num_logprobs,
        adapter="" if adapter is None else adapter.name,
        told=_told(body, streams[0].request.sampling),
    )


def _stream(
    api: Api, body: GenerationBody, request: Request, form: AnswerForm, prompt: str
) -> Stream:
    """The stream of one choice; `prompt` is the text that can be echoed."""
    text_stream = api.tokenizer.stream(
        stop_strings(body, api.settings),
        continues=form.continues,
        min_tokens=request.sampling.min_tokens,
        shown=form.shown_tokens,
        skip_special_tokens=body.skip_special_tokens is not False,
        include_stop=bool(body.include_stop_str_in_output),
    )
    return Stream(
        request,
        text_stream,
        parser=form.new_parser() if form.new_parser is not None else None,
        in_reasoning=form.in_reasoning,
        echo=prompt if body.wants_echo else "",
        prompt_only=body.token_limit == 0,
    )


def namespace_of(body: GenerationBody, adapter: AdapterInfo | None = None) -> str:
    """Requests share K/V only within a namespace; each salt has one of its own, and within it each
    adapter that changes K/V.
    """
    salts = [salt for salt in (body.cache_salt, body.extra_key) if salt is not None]
    own = PUBLIC if not salts else "salt:" + hashlib.sha256(repr(salts).encode()).hexdigest()
    return own if adapter is None else namespace_with(own, adapter.kv_digest)


def session_of(body: GenerationBody) -> str:
    """What requests of one conversation have in common: the cache key or the user that they name,
    in a form that tells neither; "" without both. A salt is told by the namespace.
    """
    named = body.prompt_cache_key or body.user
    if not named:
        return "" if body.cache_salt is None else "salt"
    return hashlib.sha256(named.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _truncated(ids: list[int], body: GenerationBody, info: EngineInfo) -> list[int]:
    """The tokens of a prompt that `truncate_prompt_tokens` leaves; -1 stands for the most that a
    prompt may have.
    """
    most = body.truncate_prompt_tokens
    if most is None:
        return ids
    if most < 1:
        if most == 0:
            text = "'truncate_prompt_tokens' must be positive, or -1."
            raise BadRequest(text, param="truncate_prompt_tokens", code="invalid_value")
        most = info.max_request_tokens - max(1, body.token_limit or 1)
    return ids[:most] if body.truncation_side == "right" else ids[-most:]


def _with_form(sampling: Sampling, form: AnswerForm) -> Sampling:
    ends = dict.fromkeys((*sampling.stop_token_ids, *form.ends))
    return msgspec.structs.replace(
        sampling,
        grammar=form.grammar,
        stop_token_ids=tuple(ends),
        bad_words=form.bad_words,
    )


def _max_tokens(body: GenerationBody, num_prompt: int, info: EngineInfo, defaults: Defaults) -> int:
    """The resolved token limit: the requested or default value, cut to the available room.

    A default gives way to `min_tokens`. Raises BadRequest for a prompt that leaves no room for a
    token, or, if no token is requested, is too long by itself.
    """
    left, limit = info.max_request_tokens - num_prompt, body.token_limit
    if left < 1 and not (limit == 0 and _fits_alone(num_prompt, info)):
        raise _too_long(body.prompt_field, num_prompt, info)
    if limit is not None:
        return min(limit, left)
    default = body.default_limit(defaults)
    return left if default is None else min(max(default, body.min_tokens or 0), left)


def _fits_alone(num_prompt: int, info: EngineInfo) -> bool:
    return num_prompt <= min(info.context_length, info.num_slots)


def _too_long(param: str, num_prompt: int, info: EngineInfo) -> BadRequest:
    holder, code = f"the context of {info.context_length}", "context_length_exceeded"
    if num_prompt < info.context_length:
        holder = f"the K/V budget of this server, which holds requests of {info.max_request_tokens}"
        code = "kv_budget_exceeded"
    message = f"The prompt has {num_prompt} tokens, which leaves no room for an answer in {holder}."
    return BadRequest(message, param=param, code=code)


def _sampling(
    body: GenerationBody, num_prompt: int, info: EngineInfo, settings: ApiSettings
) -> Sampling:
    """Fill in defaults and check every range; the caller sets the seed. The engine draws at least
    one token.
    """
    default = settings.defaults
    max_tokens = _max_tokens(body, num_prompt, info, default)
    temperature = _or(body.temperature, default.temperature)
    top_k = default.top_k if body.top_k is None else body.top_k
    return Sampling(
        max_tokens=max(1, max_tokens),
        seed=0,
        temperature=temperature if temperature >= _GREEDY_BELOW else 0.0,
        top_p=_or(body.top_p, default.top_p),
        top_k=_top_k(top_k, info.vocab_size),
        min_p=_or(body.min_p, default.min_p),
        min_tokens=min(_min_tokens(body), max_tokens),
        stop_token_ids=_stop_token_ids(body, info, default),
        presence_penalty=_or(body.presence_penalty, default.presence_penalty),
        frequency_penalty=_or(body.frequency_penalty, default.frequency_penalty),
        repetition_penalty=_or(body.repetition_penalty, default.repetition_penalty),
        logit_bias=_logit_bias(body.logit_bias, info.vocab_size, settings.max_logit_bias),
        allowed_token_ids=_allowed_token_ids(body, info.vocab_size),
        logprobs=_num_reported(body),
        prompt_logprobs=_prompt_logprobs(body),
    )


def _num_reported(body: GenerationBody) -> int | None:
    """How many alternatives of each token the engine reports. To compare answers it reports the
    logprobs of the tokens alone.
    """
    compares = body.num_drawn > body.num_choices
    return 0 if body.num_logprobs is None and compares else body.num_logprobs


def _prompt_logprobs(body: GenerationBody) -> int | None:
    """How many alternatives of the prompt's tokens the engine reports; None: none are wanted."""
    asked = [body.prompt_logprobs, body.num_logprobs if body.wants_echo else None]
    return max((k for k in asked if k is not None), default=None)


def _min_tokens(body: GenerationBody) -> int:
    """The resolved value. Raises BadRequest if it exceeds the request's own token limit."""
    fewest, limit = body.min_tokens or 0, body.token_limit
    if limit is not None and fewest > limit:
        message = (
            f"'min_tokens' is {shown(fewest)}, but at most {shown(limit)} tokens are generated."
        )
        raise BadRequest(message, param="min_tokens", code="integer_above_max_value")
    return fewest


def _told(body: GenerationBody, sampling: Sampling) -> str:
    """The parameters for the log, such as "temperature=0 top_p=1(default) max_tokens=16(default)";
    parameters without effect are left out.
    """
    words = []
    for name, without_effect in _TOLD.items():
        value = getattr(sampling, name)
        if value != without_effect:
            default = "(default)" if getattr(body, name) is None else ""
            shown_value = f"{value:g}" if isinstance(value, float) else value
            words.append(f"{name}={shown_value}{default}")
    limit = body.token_limit
    note = "(default)" if limit is None else ""
    if limit is not None and limit > sampling.max_tokens:
        note = "(clamped)"
    return " ".join([*words, f"max_tokens={sampling.max_tokens}{note}"])


def _or(value: float | None, default: float) -> float:
    return default if value is None else float(value)


def _top_k(top_k: int, vocab_size: int) -> int:
    """The resolved value, 0 for no limit: -1, or the size of the vocabulary and above."""
    return 0 if top_k < 0 or top_k >= vocab_size else top_k


def _stop_token_ids(body: GenerationBody, info: EngineInfo, default: Defaults) -> tuple[int, ...]:
    ids = list(body.stop_token_ids or ())
    check_token_ids(ids, info.vocab_size, "stop_token_ids")
    if not body.ignore_eos:
        ids.extend(stop_tokens(info, default))
    return tuple(dict.fromkeys(ids))


def _allowed_token_ids(body: GenerationBody, vocab_size: int) -> tuple[int, ...]:
    """Each id once. An empty list would allow nothing."""
    if body.allowed_token_ids is None:
        return ()
    if not body.allowed_token_ids:
        raise BadRequest(
            "'allowed_token_ids' must not be empty.", param="allowed_token_ids", code="empty_array"
        )
    check_token_ids(body.allowed_token_ids, vocab_size, "allowed_token_ids")
    return tuple(dict.fromkeys(body.allowed_token_ids))


def _logit_bias(given: dict[str, float] | None, vocab_size: int, most: int) -> dict[int, float]:
    if not given:
        return {}
    if len(given) > most:
        raise too_many("logit_bias", most)
    bias: dict[int, float] = {}
    for key, value in given.items():
        if not (key.isascii() and key.isdecimal() and len(key) < 12 and int(key) < vocab_size):
            message = f"'{shown(key)}' is not a token id of the vocabulary (0 .. {vocab_size - 1})."
            raise BadRequest(message, param="logit_bias", code="invalid_value")
        check_range("logit_bias", value, -100.0, 100.0, "decimal")
        bias[int(key)] = value
    return bias
