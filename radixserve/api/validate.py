"""The one place where a decoded body becomes engine requests: every limit, default and cross-field
rule.

Takes wire structs and tokenised prompts, gives a `Generation`. All checks are made on resolved
values, never on what the client left out. Knows token ids, not text; no HTTP.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from radixserve.api.refusals import check_range, shown, too_many, unsupported
from radixserve.api.settings import ApiSettings
from radixserve.api.wire import (
    AS_IF_ABSENT,
    IF_NO_REASONING,
    ChatBody,
    CompletionBody,
    GenerationBody,
    KnownElsewhere,
    StreamOptions,
)
from radixserve.errors import BadRequest, NotFound
from radixserve.request import Request, Sampling
from radixserve.step import EngineInfo

_INT64 = 2**63
# a temperature that single precision cannot divide by: the result is the greedy token anyway
_GREEDY_BELOW = 1e-6

# name: lowest, highest
_DECIMALS: dict[str, tuple[float, float]] = {
    "temperature": (0.0, 2.0),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "presence_penalty": (-2.0, 2.0),
    "frequency_penalty": (-2.0, 2.0),
    "repetition_penalty": (0.001, 2.0),
}
_INTEGERS: dict[str, tuple[int, int]] = {
    "top_k": (-1, _INT64 - 1),
    "seed": (-_INT64, _INT64 - 1),
    "min_tokens": (0, _INT64 - 1),
    "max_tokens": (0, _INT64 - 1),
}


@dataclass(frozen=True, slots=True)
class Wanted:
    """What an endpoint asks beyond the common fields, in one vocabulary for chat and text
    completions.
    """

    max_tokens: int | None  # None: `default_max_tokens`, or what is left of the context
    default_max_tokens: int | None = None
    logprobs: int | None = None
    echo: bool = False


@dataclass(frozen=True, slots=True)
class Generation:
    """A validated body: the sequences to generate and how the answer is to be rendered.

    Sequence i is choice `i % num_choices` of prompt `i // num_choices`.
    """

    id: str
    requests: list[Request]
    num_choices: int
    stops: tuple[str, ...]
    stream: bool
    include_usage: bool
    continuous_usage: bool  # every chunk carries the usage so far
    logprobs: int | None
    echo: bool
    prompt_only: bool  # no token was asked for; the engine draws one all the same


def check_model(asked: str | None, served: tuple[str, ...]) -> None:
    """Raises NotFound unless `asked` is one of the names served here, or absent."""
    if asked is not None and asked not in served:
        raise NotFound(
            f"The model '{shown(asked)}' does not exist here; served is '{served[0]}'.",
            param="model",
            code="model_not_found",
        )


def check_fields(body: GenerationBody, settings: ApiSettings, *, has_reasoning: bool) -> None:
    """All checks that need no prompt: to be made before anything is tokenised.

    `has_reasoning`: the model would understand a wish for more or less reasoning.
    """
    _refuse_unsupported(body, has_reasoning)
    for name, (lowest, highest) in _DECIMALS.items():
        check_range(name, getattr(body, name), lowest, highest, "decimal")
    if body.top_p == 0:
        raise BadRequest("'top_p' must be above 0.", param="top_p", code="decimal_below_min_value")
    for name, bounds in _INTEGERS.items():
        check_range(name, getattr(body, name), *bounds, "integer")
    check_range("n", body.n, 1, settings.max_choices, "integer")
    if body.stream_options is not None:
        _check_stream_options(body)
    stop_strings(body, settings)
    if body.stop_token_ids is not None and len(body.stop_token_ids) > settings.max_stop_token_ids:
        raise too_many("stop_token_ids", settings.max_stop_token_ids)


def chat_wanted(body: ChatBody, settings: ApiSettings) -> Wanted:
    """Raises BadRequest when top_logprobs or the two names of the token limit contradict."""
    if body.echo:
        raise unsupported("echo")
    check_range("max_tokens", body.max_tokens, 1, _INT64 - 1, "integer")
    check_range("max_completion_tokens", body.max_completion_tokens, 1, _INT64 - 1, "integer")
    check_range("top_logprobs", body.top_logprobs, 0, settings.max_top_logprobs, "integer")
    if body.top_logprobs is not None and not body.logprobs:
        raise BadRequest(
            "'top_logprobs' needs 'logprobs': true.", param="top_logprobs", code="invalid_value"
        )
    limit = (
        body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
    )
    if body.max_tokens is not None and limit != body.max_tokens:
        message = "'max_tokens' and 'max_completion_tokens' differ; give one of them."
        raise BadRequest(message, param="max_completion_tokens", code="invalid_value")
    return Wanted(max_tokens=limit, logprobs=(body.top_logprobs or 0) if body.logprobs else None)


def completion_wanted(body: CompletionBody, settings: ApiSettings) -> Wanted:
    """Raises BadRequest for logprobs outside 0 .. max_completion_logprobs."""
    check_range("logprobs", body.logprobs, 0, settings.max_completion_logprobs, "integer")
    return Wanted(
        max_tokens=body.max_tokens,
        default_max_tokens=settings.default_completion_tokens,
        logprobs=body.logprobs,
        echo=bool(body.echo),
    )


def stop_strings(body: GenerationBody, settings: ApiSettings) -> tuple[str, ...]:
    """The stop strings as a tuple. Raises BadRequest for too many, an empty or a very long one."""
    stops = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
    if len(stops) > settings.max_stops:
        raise too_many("stop", settings.max_stops)
    if any(not stop for stop in stops):
        raise BadRequest(
            "'stop' must not contain an empty string.", param="stop", code="invalid_value"
        )
    if any(len(stop) > settings.max_stop_chars for stop in stops):
        message = f"A stop string may have at most {settings.max_stop_chars} characters."
        raise BadRequest(message, param="stop", code="string_above_max_length")
    return stops


def check_token_ids(ids: Sequence[int], vocab_size: int, param: str) -> None:
    """Raises BadRequest naming the first id outside the vocabulary. O(n)."""
    if not ids or (min(ids) >= 0 and max(ids) < vocab_size):
        return
    i, bad = next((i, t) for i, t in enumerate(ids) if not 0 <= t < vocab_size)
    message = f"Token id {shown(bad)} is outside the vocabulary (0 .. {vocab_size - 1})."
    raise BadRequest(message, param=f"{param}[{i}]", code="invalid_value")


def check_prompt_chars(num_chars: int, info: EngineInfo, settings: ApiSettings, param: str) -> None:
    """Refuse a text that cannot fit before any time is spent on tokenising it."""
    if num_chars > info.context_length * settings.max_chars_per_token:
        message = (
            f"The prompt has {num_chars} characters; it cannot fit the context of "
            f"{info.context_length} tokens."
        )
        raise BadRequest(message, param=param, code="context_length_exceeded")


def resolve(
    body: GenerationBody,
    wanted: Wanted,
    prompts: list[list[int]],
    info: EngineInfo,
    settings: ApiSettings,
) -> Generation:
    """The sequences to generate, prompt by prompt; `body` has passed `check_fields`.

    Choice i of a prompt is drawn with seed + i (mod 2**63), so that choices differ and can be asked
    for again.
    """
    num_choices = 1 if body.n is None else body.n
    if len(prompts) * num_choices > settings.max_sequences:
        raise too_many("n", settings.max_sequences, "n times the number of prompts")
    generation_id = secrets.token_hex(12)
    seed = secrets.randbits(63) if body.seed is None else body.seed % _INT64
    arrived = time.monotonic()
    requests: list[Request] = []
    for prompt_ids in prompts:
        max_tokens = _max_tokens(wanted, len(prompt_ids), info)
        sampling = _sampling(body, wanted, max_tokens, info, settings)
        for choice in range(num_choices):
            drawn = msgspec.structs.replace(
                sampling, seed=(seed + choice) % _INT64, max_tokens=max(1, max_tokens)
            )
            request_id = f"{generation_id}-{len(requests)}"
            requests.append(
                Request(id=request_id, prompt_ids=prompt_ids, sampling=drawn, arrived=arrived)
            )
    options = body.stream_options or StreamOptions()
    return Generation(
        id=generation_id,
        requests=requests,
        num_choices=num_choices,
        stops=stop_strings(body, settings),
        stream=bool(body.stream),
        include_usage=bool(options.include_usage),
        continuous_usage=bool(options.continuous_usage_stats),
        logprobs=wanted.logprobs,
        echo=wanted.echo,
        prompt_only=wanted.max_tokens == 0,
    )


def _max_tokens(wanted: Wanted, num_prompt: int, info: EngineInfo) -> int:
    """The resolved token limit. Raises BadRequest when prompt and answer cannot fit the context or
    the K/V budget.
    """
    asked = wanted.max_tokens if wanted.max_tokens is not None else 1
    if num_prompt + asked > info.context_length:
        message = (
            f"The prompt has {num_prompt} tokens and at least {shown(asked)} are to be generated; "
            f"the context holds {info.context_length}."
        )
        raise BadRequest(message, param=None, code="context_length_exceeded")
    if num_prompt + asked > info.num_slots:
        message = (
            f"The prompt has {num_prompt} tokens and at least {shown(asked)} are to be generated; "
            f"the K/V budget of this server holds {info.num_slots}, so this can never run."
        )
        raise BadRequest(message, param=None, code="kv_budget_exceeded")
    if wanted.max_tokens is not None:
        return wanted.max_tokens
    left = min(info.context_length, info.num_slots) - num_prompt
    return left if wanted.default_max_tokens is None else min(left, wanted.default_max_tokens)


def _sampling(
    body: GenerationBody, wanted: Wanted, max_tokens: int, info: EngineInfo, settings: ApiSettings
) -> Sampling:
    """Defaults filled in, every value within its range; the seed is set by the caller."""
    min_tokens = body.min_tokens or 0
    if min_tokens > max_tokens:
        message = (
            f"'min_tokens' is {shown(min_tokens)}, but at most {max_tokens} tokens are generated."
        )
        raise BadRequest(message, param="min_tokens", code="integer_above_max_value")
    temperature = _or(body.temperature, 1.0)
    return Sampling(
        max_tokens=max_tokens,
        seed=0,
        temperature=temperature if temperature >= _GREEDY_BELOW else 0.0,
        top_p=_or(body.top_p, 1.0),
        top_k=_top_k(body.top_k, info.vocab_size),
        min_p=_or(body.min_p, 0.0),
        min_tokens=min_tokens,
        stop_token_ids=_stop_token_ids(body, info),
        presence_penalty=_or(body.presence_penalty, 0.0),
        frequency_penalty=_or(body.frequency_penalty, 0.0),
        repetition_penalty=_or(body.repetition_penalty, 1.0),
        logit_bias=_logit_bias(body.logit_bias, info.vocab_size, settings.max_logit_bias),
        logprobs=wanted.logprobs,
        prompt_logprobs=wanted.logprobs if wanted.echo else None,
    )


def _or(value: float | None, default: float) -> float:
    return default if value is None else float(value)


def _top_k(top_k: int | None, vocab_size: int) -> int:
    """0 when there is no limit: absent, -1, or at least the whole vocabulary."""
    return 0 if top_k is None or top_k < 0 or top_k >= vocab_size else top_k


def _stop_token_ids(body: GenerationBody, info: EngineInfo) -> tuple[int, ...]:
    ids = list(body.stop_token_ids or ())
    check_token_ids(ids, info.vocab_size, "stop_token_ids")
    if not body.ignore_eos:
        ids.extend(token_id for token_id in info.eos_token_ids if 0 <= token_id < info.vocab_size)
    return tuple(dict.fromkeys(ids))


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


def _refuse_unsupported(body: GenerationBody, has_reasoning: bool) -> None:
    for name in KnownElsewhere.__struct_fields__:
        value = getattr(body, name)
        if value is None or (name in IF_NO_REASONING and not has_reasoning):
            continue
        if not any(_same(value, accepted) for accepted in AS_IF_ABSENT.get(name, ())):
            raise unsupported(name)


def _same(value: object, accepted: object) -> bool:
    """Equal, with True and 1 told apart."""
    return value == accepted and isinstance(value, bool) == isinstance(accepted, bool)


def _check_stream_options(body: GenerationBody) -> None:
    options = body.stream_options
    if not body.stream:
        raise BadRequest(
            "'stream_options' needs 'stream': true.", param="stream_options", code="invalid_value"
        )
    if options is not None and options.include_obfuscation:
        raise unsupported("stream_options.include_obfuscation")
