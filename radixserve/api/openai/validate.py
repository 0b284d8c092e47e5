"""Turns a decoded body into engine requests. All limits, defaults and rules across
fields are here.

Takes wire structs and tokenised prompts and returns a `Generation` of streams. Checks apply to
resolved values, after defaults are filled in. Knows token ids, not text; no HTTP.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from fnmatch import fnmatchcase

import msgspec

from radixserve.api.context import Api
from radixserve.api.openai.wire import (
    AS_IF_ABSENT,
    IF_NO_REASONING,
    ChatBody,
    CompletionBody,
    GenerationBody,
    KnownElsewhere,
    StreamOptions,
)
from radixserve.api.refusals import check_range, shown, too_many, unsupported
from radixserve.api.settings import ApiSettings
from radixserve.defaults import DECIMALS, INTEGERS, Defaults
from radixserve.errors import BadRequest, NotFound
from radixserve.front.generation import Generation
from radixserve.front.stream import Stream
from radixserve.request import Request, Sampling
from radixserve.step import EngineInfo

_INT64 = 2**63
# Single precision cannot divide by a smaller temperature; the result would be the greedy token.
_GREEDY_BELOW = 1e-6

_INTEGERS: dict[str, tuple[int, int]] = {
    "top_k": INTEGERS["top_k"],
    "seed": (-_INT64, _INT64 - 1),
    "min_tokens": (0, _INT64 - 1),
    "max_tokens": (0, _INT64 - 1),
}


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


def check_model(asked: str | None, served: tuple[str, ...]) -> None:
    """Raises NotFound unless `asked` is one of the names served here, or absent. A `*` in a name
    stands for any characters.
    """
    if asked is not None and not any(_is_called(asked, name) for name in served):
        raise NotFound(
            f"The model '{shown(asked)}' does not exist here; served is '{served[0]}'.",
            param="model",
            code="model_not_found",
        )


def _is_called(asked: str, name: str) -> bool:
    return asked == name or ("*" in name and fnmatchcase(asked, name))


def check_fields(body: GenerationBody, settings: ApiSettings, *, has_reasoning: bool) -> None:
    """Make all checks that need no prompt, before tokenising.

    `has_reasoning`: the chat template supports reasoning, so fields about it would have an effect.
    """
    _refuse_unsupported(body, has_reasoning)
    for name, (lowest, highest) in DECIMALS.items():
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


def check_chat(body: ChatBody, settings: ApiSettings) -> None:
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
    if body.max_tokens is not None and body.token_limit != body.max_tokens:
        message = "'max_tokens' and 'max_completion_tokens' differ; give one of them."
        raise BadRequest(message, param="max_completion_tokens", code="invalid_value")


def check_completion(body: CompletionBody, settings: ApiSettings) -> None:
    """Raises BadRequest for logprobs outside 0 .. max_completion_logprobs."""
    check_range("logprobs", body.logprobs, 0, settings.max_completion_logprobs, "integer")


def stop_tokens(info: EngineInfo, default: Defaults) -> tuple[int, ...]:
    """The tokens that end an answer without `ignore_eos`, each once: those of the model's
    configurations and of its tokenizer. Ids beyond the vocabulary are left out.
    """
    ids = dict.fromkeys((*info.eos_token_ids, *default.stop_token_ids))
    return tuple(token_id for token_id in ids if 0 <= token_id < info.vocab_size)


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
    """Refuse a text that cannot fit the context, before it is tokenised."""
    if num_chars > info.context_length * settings.max_chars_per_token:
        message = (
            f"The prompt has {num_chars} characters; it cannot fit the context of "
            f"{info.context_length} tokens."
        )
        raise BadRequest(message, param=param, code="context_length_exceeded")


def resolve(
    api: Api,
    endpoint: str,
    body: GenerationBody,
    prompts: Sequence[tuple[list[int], str]],
    *,
    continues: bool,
) -> Generation:
    """The sequences to generate, prompt by prompt; `body` has passed `check_fields`.

    `prompts` are token ids with the text that `echo` repeats; `continues` says that the answer goes
    on after the prompt's text. Choice i of a prompt is drawn with seed + i (mod 2**63), so that
    choices differ and can be reproduced.
    """
    num_choices = 1 if body.n is None else body.n
    if len(prompts) * num_choices > api.settings.max_sequences:
        raise too_many("n", api.settings.max_sequences, "n times the number of prompts")
    generation_id, arrived = secrets.token_hex(12), time.monotonic()
    seed = secrets.randbits(63) if body.seed is None else body.seed % _INT64
    stops = stop_strings(body, api.settings)
    streams: list[Stream] = []
    for ids, text in prompts:
        sampling = _sampling(body, len(ids), api.info(), api.settings)
        for choice in range(num_choices):
            request = Request(
                id=f"{generation_id}-{len(streams)}",
                prompt_ids=ids,
                sampling=msgspec.structs.replace(sampling, seed=(seed + choice) % _INT64),
                arrived=arrived,
            )
            text_stream = api.tokenizer.stream(
                stops, continues=continues, min_tokens=sampling.min_tokens
            )
            streams.append(
                Stream(
                    request,
                    text_stream,
                    index=len(streams),
                    echo=text if body.wants_echo else "",
                    prompt_only=body.token_limit == 0,
                )
            )
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
        told=_told(body, streams[0].request.sampling),
    )


def _max_tokens(body: GenerationBody, num_prompt: int, info: EngineInfo, defaults: Defaults) -> int:
    """The resolved token limit: the requested or default value, cut to the available room.

    A default gives way to `min_tokens`. Raises BadRequest for a prompt that leaves no room for a
    token, or, if no token is requested, is too long by itself.
    """
    left, limit = info.max_request_tokens - num_prompt, body.token_limit
    if left < 1 and not (limit == 0 and _fits_alone(num_prompt, info)):
        raise _too_long(num_prompt, info)
    if limit is not None:
        return min(limit, left)
    default = body.default_limit(defaults)
    return left if default is None else min(max(default, body.min_tokens or 0), left)


def _fits_alone(num_prompt: int, info: EngineInfo) -> bool:
    return num_prompt <= min(info.context_length, info.num_slots)


def _too_long(num_prompt: int, info: EngineInfo) -> BadRequest:
    holder, code = f"the context of {info.context_length}", "context_length_exceeded"
    if num_prompt < info.context_length:
        holder = f"the K/V budget of this server, which holds requests of {info.max_request_tokens}"
        code = "kv_budget_exceeded"
    message = f"The prompt has {num_prompt} tokens, which leaves no room for an answer in {holder}."
    return BadRequest(message, param=None, code=code)


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
        logprobs=body.num_logprobs,
        prompt_logprobs=body.num_logprobs if body.wants_echo else None,
    )


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
    """Whether the values are equal; True and 1 are different."""
    return value == accepted and isinstance(value, bool) == isinstance(accepted, bool)


def _check_stream_options(body: GenerationBody) -> None:
    options = body.stream_options
    if not body.stream:
        raise BadRequest(
            "'stream_options' needs 'stream': true.", param="stream_options", code="invalid_value"
        )
    if options is not None and options.include_obfuscation:
        raise unsupported("stream_options.include_obfuscation")
