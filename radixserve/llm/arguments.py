"""The arguments of Python users become the fields of request bodies; wrong ones are refused by
name, as the HTTP API refuses wrong fields.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from typing import Any, TypeVar

import msgspec

from radixserve.api.body import convert_member
from radixserve.api.openai.wire import GenerationBody
from radixserve.api.refusals import shown
from radixserve.errors import BadRequest
from radixserve.llm.params import SamplingParams

B = TypeVar("B", bound=GenerationBody)
T = TypeVar("T")


def listed(value: Iterable[T], name: str, expected: str) -> list[T]:
    """The items of `value`, the argument `name`. Raises BadRequest for what has no items, and for
    texts, mappings and sets, whose items are in no useful order.
    """
    if isinstance(value, (str, bytes, Mapping, Set)) or not isinstance(value, Iterable):
        raise wrong_argument(name, expected, value)
    return list(value)


def fields_of(params: SamplingParams | None) -> dict[str, Any]:
    """The fields of a body that say what `params` says. Raises BadRequest if it is anything
    else.
    """
    if params is None:
        return {}
    if not isinstance(params, SamplingParams):
        raise wrong_argument("params", "one SamplingParams, or None", params)
    return params.fields()


def body_of(body_type: type[B], fields: dict[str, Any]) -> B:
    """The request body with `fields`. Raises BadRequest that names a wrong one."""
    body = convert_member(fields, body_type, None)
    for name, value in fields.items():
        _check_json(name, value)
    return body


def wrong_argument(name: str, expected: str, value: object) -> BadRequest:
    """The refusal of `value` as the argument `name`."""
    message = f"'{name}' must be {expected}; it is of type {type(value).__name__}."
    return BadRequest(message, param=name, code="invalid_type")


def _check_json(name: str, value: object) -> None:
    """Raises BadRequest for a value that JSON cannot hold, such as an object within a schema. It
    would fail later, in another process. Takes time of the size of `value`.
    """
    try:
        msgspec.json.encode(value)
    except (TypeError, ValueError, RecursionError) as error:
        message = f"'{name}' cannot be written as JSON: {shown(error)}."
        raise BadRequest(message, param=name, code="invalid_type") from None
