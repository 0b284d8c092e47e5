"""The checks of a decoded body: ranges, and rules across fields. What depends on the prompt is
checked in `resolve`.

Knows token ids, not text; no HTTP.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from radixserve.api.openai.wire import (
    AS_IF_ABSENT,
    WITHOUT_EFFECT_ON_TEXT,
    ChatBody,
    CompletionBody,
    GenerationBody,
    KnownElsewhere,
)
from radixserve.api.refusals import check_range, shown, too_many, unsupported
from radixserve.api.settings import ApiSettings
from radixserve.defaults import DECIMALS, INTEGERS, Defaults
from radixserve.errors import BadRequest, NotFound
from radixserve.step import EngineInfo
from radixserve.tenants import MAX_PRIORITY

if TYPE_CHECKING:
    pass

_INT64 = 2**63
_MAX_SALT_CHARS = 1024

_INTEGERS: dict[str, tuple[int, int]] = {
    "top_k": INTEGERS["top_k"],
    "seed": (-_INT64, _INT64 - 1),
    "min_tokens": (0, _INT64 - 1),
    "max_tokens": (0, _INT64 - 1),
    "priority": (-MAX_PRIORITY, MAX_PRIORITY),
}


def check_model(asked: str | None, served: tuple[str, ...]) -> None:
    """Raises NotFound unless `asked` is one of the names served here, or absent. A `*` in a name
    stands for any characters.
    """
    if asked is not None and not is_among(asked, served):
        raise NotFound(
            f"The model '{shown(asked)}' does not exist here; served is '{served[0]}'.",
            param="model",
            code="model_not_found",
        )


def is_among(asked: str, served: tuple[str, ...]) -> bool:
    """Whether `asked` is one of the names, in which a `*` stands for any characters."""
    return any(asked == each or ("*" in each and fnmatchcase(asked, each)) for each in served)


def check_fields(body: GenerationBody, settings: ApiSettings) -> None:
    """Make all checks that need no prompt, before tokenising."""
    _refuse_unsupported(body)
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
    check_range("prompt_logprobs", body.prompt_logprobs, 0, settings.max_top_logprobs, "integer")
    check_range("truncate_prompt_tokens", body.truncate_prompt_tokens, -1, _INT64 - 1, "integer")
    if body.stream and body.prompt_logprobs is not None:
        text = "'prompt_logprobs' is not available for streams."
        raise BadRequest(text, param="prompt_logprobs", code="unsupported_parameter")
    if body.prompt_cache_options is not None and body.prompt_cache_options.prewarm:
        raise unsupported("prompt_cache_options.prewarm")
    for name in ("cache_salt", "extra_key"):
        _check_salt(name, getattr(body, name))
    if body.stop_token_ids is not None and len(body.stop_token_ids) > settings.max_stop_token_ids:
        raise too_many("stop_token_ids", settings.max_stop_token_ids)


def _check_salt(name: str, salt: str | None) -> None:
    if salt is not None and not 0 < len(salt) <= _MAX_SALT_CHARS:
        text = f"'{name}' must have 1 to {_MAX_SALT_CHARS} characters."
        raise BadRequest(text, param=name, code="invalid_value")


def check_chat(body: ChatBody, settings: ApiSettings, *, fewest_tokens: int = 1) -> None:
    """Raises BadRequest when top_logprobs or the two names of the token limit contradict, and for a
    limit below `fewest_tokens`.
    """
    if body.echo:
        raise unsupported("echo")
    check_range("max_tokens", body.max_tokens, fewest_tokens, _INT64 - 1, "integer")
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
    """Raises BadRequest for logprobs outside 0 .. max_completion_logprobs, and for a `best_of` that
    is below `n` or cannot be streamed.
    """
    check_range("logprobs", body.logprobs, 0, settings.max_completion_logprobs, "integer")
    check_range("best_of", body.best_of, body.num_choices, settings.max_choices, "integer")
    if body.stream and body.num_drawn > body.num_choices:
        text = "'best_of' above 'n' is not available for streams."
        raise BadRequest(text, param="best_of", code="unsupported_parameter")


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


def _refuse_unsupported(body: GenerationBody) -> None:
    served = {*type(body).__annotations__}
    if isinstance(body, CompletionBody):
        served |= {*WITHOUT_EFFECT_ON_TEXT}
    for name in KnownElsewhere.__annotations__:  # without those of its base
        value = None if name in served else getattr(body, name)
        accepted = AS_IF_ABSENT.get(name, ())
        if value is not None and not any(_same(value, each) for each in accepted):
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
