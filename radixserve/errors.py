"""Every exception radixserve raises on purpose.

    RadixserveError
    |- DeviceLost              the engine process cannot go on; a new one may
    |- StartupError            the server cannot start; the message is for the operator
    |  |- ConfigError          a setting is unknown, malformed or contradicts another
    |  `- ModelRefused         the model cannot be served exactly; says why
    `- ApiError                becomes the OpenAI error envelope with its HTTP status
       |- BadRequest           400: the request is wrong; names the field
       |- Unauthorized         401: the API key is missing or wrong
       |- Forbidden            403: not to this host name, or only for an administrator
       |- NotFound             404: unknown model or path
       |- MethodNotAllowed     405
       |- BodyTooLarge         413
       |- RateLimited          429: a limit of the key's tenant; carries Retry-After
       |- ServerError          500: this request failed inside the server
       `- Unavailable          503: overloaded, draining or no engine; may carry Retry-After

`assert` is for our own bugs only; no input of a user or an operator may fail an assert.
"""

from __future__ import annotations

from typing import Final

CODES: Final = (
    *("invalid_json", "invalid_body", "invalid_type", "invalid_value"),
    *("missing_required_parameter", "unknown_parameter", "unsupported_parameter"),
    *("empty_array", "array_above_max_length", "string_above_max_length"),
    *("integer_below_min_value", "integer_above_max_value"),
    *("decimal_below_min_value", "decimal_above_max_value"),
    *("context_length_exceeded", "kv_budget_exceeded"),
    *("not_found", "model_not_found", "method_not_allowed"),
    *("request_timeout", "request_too_large", "render_timeout", "render_failed"),
    "grammar_too_complex",
    *("invalid_api_key", "admin_required", "host_not_allowed", "unsupported_content_type"),
    *("malformed_request", "header_too_large"),
    *("generation_failed", "internal_error", "generation_aborted"),
    *("rate_limit_exceeded", "server_is_overloaded", "server_not_ready"),
)
"""Every code that an error envelope may carry; docs/api.md explains each."""


_MAX_REASON_CHARS = 300
_MAX_REFUSAL_CHARS = 1200


class RadixserveError(Exception):
    """Base of everything below."""


def first_line(error: BaseException) -> str:
    """The first line of a library's error message, with the next one where the first ends with a
    colon, cut to the length of a sentence; the type of the error if it has no message.
    """
    lines = [line for line in map(str.strip, str(error).splitlines()) if line]
    line = lines[0] if lines else type(error).__name__
    if line.endswith(":") and len(lines) > 1:
        line = f"{line} {lines[1]}"
    return _cut(line, _MAX_REASON_CHARS)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[:most] + "..."


def _on_one_line(text: str) -> str:
    """`text` without characters that move a terminal's cursor or change its colours: names of
    tensors and files can hold any.
    """
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)


class DeviceLost(RadixserveError):
    """The device no longer answers this process; only a new process can use it again."""


class StartupError(RadixserveError):
    """The server cannot start."""


class ConfigError(StartupError):
    """A setting is unknown, malformed or contradicts another."""


class ModelRefused(StartupError):
    """The model cannot be served exactly, or cannot be loaded."""

    def __init__(self, sentence: str) -> None:
        super().__init__(_cut(_on_one_line(sentence), _MAX_REFUSAL_CHARS))


class AdapterRefused(ModelRefused):
    """The adapter cannot be served with this model, or cannot be loaded."""


class ApiError(RadixserveError):
    """A refusal or failure that the client sees as `{"error": {message, type, param, code}}`."""

    status = 500
    type = "server_error"
    code: str | None = None

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code if code is not None else type(self).code


class BadRequest(ApiError):
    """The request itself is wrong; `param` names the field."""

    status = 400
    type = "invalid_request_error"


class Unauthorized(ApiError):
    """The API key is missing or wrong."""

    status = 401
    type = "invalid_request_error"
    code = "invalid_api_key"


class Forbidden(ApiError):
    """The server does not answer to this host name, or to this tenant's key here."""

    status = 403
    type = "invalid_request_error"


class NotFound(ApiError):
    """Unknown model or unknown path."""

    status = 404
    type = "invalid_request_error"


class MethodNotAllowed(ApiError):
    """The path exists, the method does not; `allow` lists the ones that do."""

    status = 405
    type = "invalid_request_error"
    code = "method_not_allowed"

    def __init__(self, message: str, *, allow: tuple[str, ...]) -> None:
        super().__init__(message)
        self.allow = allow


class BodyTooLarge(ApiError):
    """The body exceeds the configured limit."""

    status = 413
    type = "invalid_request_error"
    code = "request_too_large"


class RateLimited(ApiError):
    """The tenant has reached a limit of its own; `retry_after` is in seconds."""

    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"

    def __init__(self, message: str, *, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class ServerError(ApiError):
    """This request failed inside the server; others are not affected."""


class Unavailable(ApiError):
    """The server cannot answer now: the queue is full, the server drains, or the engine does not
    start.
    """

    status = 503
    code = "server_is_overloaded"

    def __init__(
        self, message: str, *, code: str | None = None, retry_after: int | None = None
    ) -> None:
        super().__init__(message, code=code)
        self.retry_after = retry_after
