"""How answers of chat and text completions end."""

from __future__ import annotations

from radixserve.api.openai.errors import encode_error
from radixserve.api.openai.wire import GenerationBody
from radixserve.errors import ApiError
from radixserve.front.stream import Stream

DONE = b"data: [DONE]\n\n"
"""The last event of a complete stream; a stream that failed has none."""


def failed(error: ApiError) -> bytes:
    """The last event of a stream that failed."""
    return b"data: %b\n\n" % encode_error(error)


def stop_reason(stream: Stream, body: GenerationBody) -> str | int | None:
    """The stop string or the token of `stop_token_ids` that ended the answer; None for the usual
    end and for a limit.
    """
    matched = stream.matched_stop
    if isinstance(matched, int) and matched not in (body.stop_token_ids or ()):
        return None
    return matched
