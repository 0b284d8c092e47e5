"""Reads a request's body, with limits of size and time, and decodes it strictly.

Decoding refuses NaN and Infinity, a boolean or 10.0 in place of an integer, lone surrogates and
unknown fields. A key written twice in one object is not an error: the last one counts, as in most
JSON readers. Knows no endpoint.
"""

from __future__ import annotations

import asyncio
import logging
import re
from typing import Any, TypeVar

import msgspec
from aiohttp import web

from radixserve.api.context import Api, api_of
from radixserve.api.refusals import shown
from radixserve.api.unknown import leave_out_unknown
from radixserve.errors import BadRequest

Body = TypeVar("Body", bound=msgspec.Struct)
T = TypeVar("T")

log = logging.getLogger("radixserve.api")

_NO_JSON = "The body is not valid JSON, or is nested too deeply."
_MAX_NAMED = 8  # fields of one body in the log
_MISSING = re.compile(r"Object missing required field `([^`]*)`")
_UNKNOWN = re.compile(r"Object contains unknown field `(.*?)`(?: - at `|$)", re.DOTALL)
_PATH = re.compile(r" - at `(?:key` in `)?\$?\.?([^`]*)`$")


async def read_body(request: web.Request, body_type: type[Body]) -> Body:
    """Read and decode the body; the declared content type is ignored.

    Raises as `read_raw`, and BadRequest for a body that is not of this type.
    """
    return decode_for(api_of(request), await read_raw(request), body_type)


async def read_raw(request: web.Request) -> bytes:
    """Read the body.

    Raises aiohttp's 413 beyond the size limit (which counts decompressed bytes), and BadRequest
    with status 408 if the body does not arrive in time.
    """
    try:
        async with asyncio.timeout(api_of(request).settings.body_read_seconds):
            return await request.read()
    except TimeoutError:
        refusal = BadRequest("The body did not arrive in time.", code="request_timeout")
        refusal.status = 408
        raise refusal from None


def decode_for(api: Api, raw: bytes, body_type: type[Body]) -> Body:
    """Decode a body as strictly as the settings say."""
    if api.settings.ignore_unknown_fields:
        return decode_known(raw, body_type)
    return decode_body(raw, body_type)


def decode_body(raw: bytes, body_type: type[T]) -> T:
    """Decode the typed body. Raises BadRequest, which names the field if one is wrong."""
    try:
        return msgspec.json.decode(raw, type=body_type, strict=True)
    except msgspec.ValidationError as error:
        raise _bad_field(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise BadRequest(_NO_JSON, code="invalid_json") from None


def decode_known(raw: bytes, body_type: type[Body]) -> Body:
    """As `decode_body`, without the fields that are not known, which the log names."""
    try:
        return decode_body(raw, body_type)
    except BadRequest as refusal:
        if refusal.code != "unknown_parameter":
            raise
    return convert_member(decode_body(raw, dict[str, Any]), body_type, None, ignore_unknown=True)


def convert_member(
    value: object, member_type: type[Body], path: str | None, *, ignore_unknown: bool = False
) -> Body:
    """Decode a member of a decoded body, for members whose type depends on their values; with None
    as `path`, a whole body. Raises BadRequest, which names the place below `path` if one is wrong.
    With `ignore_unknown` fields that are not known are removed from `value`, as by `decode_known`.
    """
    try:
        return msgspec.convert(value, member_type, strict=True)
    except msgspec.ValidationError as error:
        refusal = _bad_field(str(error), path)
    if not ignore_unknown or refusal.code != "unknown_parameter":
        raise refusal
    _note(leave_out_unknown(value, member_type), path)
    return convert_member(value, member_type, path)


def _note(removed: list[str], base: str | None) -> None:
    """Log the places below `base` that were left out of one body."""
    names = [repr(shown(_join(base, each))) for each in removed[:_MAX_NAMED]]
    more = f" and {len(removed) - _MAX_NAMED} more" if len(removed) > _MAX_NAMED else ""
    log.warning(
        "fields left out, because this version does not know them: %s%s", ", ".join(names), more
    )


def _bad_field(reason: str, base: str | None = None) -> BadRequest:
    """Turn msgspec's message into a refusal with a path such as `messages[0].role`, below `base`,
    and a code like OpenAI's.
    """
    path_match = _PATH.search(reason)
    path = path_match[1][:64] if path_match else None
    if base is not None:
        path = base if not path else base + path if path.startswith("[") else f"{base}.{path}"
    if missing := _MISSING.match(reason):
        param = _join(path, missing[1])
        return BadRequest(
            f"Missing required field '{param}'.", param=param, code="missing_required_parameter"
        )
    if unknown := _UNKNOWN.match(reason):
        param = _join(path, unknown[1][:64])
        return BadRequest(f"Unknown field '{param}'.", param=param, code="unknown_parameter")
    what = reason[: path_match.start()] if path_match else reason
    if path is None and what.startswith("Expected `object`"):
        return BadRequest("The body must be a JSON object.", code="invalid_json")
    code = "invalid_value" if "enum value" in what or "out of range" in what else "invalid_type"
    where = f"'{path}'" if path else "the body"
    return BadRequest(f"Invalid value for {where}: {what[:200]}.", param=path, code=code)


def _join(path: str | None, name: str) -> str:
    return f"{path}.{name}" if path else name
