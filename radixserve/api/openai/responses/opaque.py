"""Reasoning in the form that clients of a server without a store send back unread.

`encrypted_content` of a reasoning item is the reasoning itself, in base64 behind a mark. It is not
a secret: the client has the same text beside it.
"""

from __future__ import annotations

import base64
import binascii

_MARK = "radixserve-1."


def sealed(text: str) -> str:
    """`text` for the `encrypted_content` of an item."""
    return _MARK + base64.b64encode(text.encode()).decode()


def opened(content: str) -> str | None:
    """The text in `content`; None if `sealed` did not make it."""
    mark, data = content[: len(_MARK)], content[len(_MARK) :]
    if mark != _MARK:
        return None
    try:
        return base64.b64decode(data, validate=True).decode()
    except (binascii.Error, ValueError):
        return None
