"""The error envelope of the OpenAI dialect."""

from __future__ import annotations

import msgspec

from radixserve.api.refusals import shown
from radixserve.errors import ApiError

_MAX_MESSAGE_CHARS = 1000


class ErrorDetail(msgspec.Struct):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorEnvelope(msgspec.Struct):
    error: ErrorDetail


def encode_error(error: ApiError) -> bytes:
    """The envelope's bytes, with message and param cut to a bounded length."""
    param = None if error.param is None else shown(error.param)
    detail = ErrorDetail(error.message[:_MAX_MESSAGE_CHARS], error.type, param, error.code)
    return msgspec.json.encode(ErrorEnvelope(detail))
