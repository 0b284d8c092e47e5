"""The error envelope of the Anthropic dialect. It has no place for the field and the code of an
error, so the message names the field.
"""

from __future__ import annotations

from typing import Final

import msgspec

from radixserve.api.refusals import shown
from radixserve.errors import ApiError
from radixserve.logs import REQUEST_ID

_MAX_MESSAGE_CHARS: Final = 1000
_TYPES: Final = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
_TOO_LONG: Final = ("context_length_exceeded", "kv_budget_exceeded")


class ThreadRefused(msgspec.Struct, kw_only=True):
    """Says that the server holds no conversations. Anthropic's client, whose tool runner asks for a
    thread by default, then sends the whole conversation with every request.
    """

    error_code: str = "thread_unsupported_request"
    unsupported: list[str] = msgspec.field(default_factory=lambda: ["thread"])


class ErrorDetail(msgspec.Struct, omit_defaults=True):
    type: str
    message: str
    details: ThreadRefused | None = None


class ErrorEnvelope(msgspec.Struct, tag="error"):
    error: ErrorDetail
    request_id: str


def encode_error(error: ApiError) -> bytes:
    """The envelope's bytes, with the message cut to a bounded length. The id is that of the request
    that this task handles.
    """
    details = ThreadRefused() if error.param == "thread" else None
    detail = ErrorDetail(_type_of(error), _message_of(error)[:_MAX_MESSAGE_CHARS], details)
    return msgspec.json.encode(ErrorEnvelope(detail, REQUEST_ID.get()))


def _type_of(error: ApiError) -> str:
    default = "invalid_request_error" if error.status < 500 else "api_error"
    return _TYPES.get(error.status, default)


def _message_of(error: ApiError) -> str:
    """The message, with the field in front unless it names the field; agents know a prompt that is
    too long by the words "prompt is too long".
    """
    if error.code in _TOO_LONG:
        return f"prompt is too long: {error.message}"
    if error.param is None or (param := shown(error.param)) in error.message:
        return error.message
    return f"{param}: {error.message}"
