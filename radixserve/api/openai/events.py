"""How streams of chat and text completions end."""

from __future__ import annotations

from radixserve.api.openai.errors import encode_error
from radixserve.errors import ApiError

DONE = b"data: [DONE]\n\n"
"""The last event of a complete stream; a stream that failed has none."""


def failed(error: ApiError) -> bytes:
    """The last event of a stream that failed."""
    return b"data: %b\n\n" % encode_error(error)
