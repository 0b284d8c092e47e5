"""HTTP for the exporters that reads little of an answer: by themselves they read all of it, however
much a collector sends.
"""

from __future__ import annotations

import os
from io import BytesIO
from typing import Any, Final

from requests import PreparedRequest, RequestException, Response, Session
from requests.adapters import HTTPAdapter

MOST_BYTES: Final = 1 << 20


class _Bounded(HTTPAdapter):
    def send(self, request: PreparedRequest, *args: Any, **kwargs: Any) -> Response:
        """See `HTTPAdapter.send`. Raises RequestException for a long answer."""
        response = super().send(request, *args, **kwargs)
        content = response.raw.read(MOST_BYTES + 1, decode_content=True)
        if len(content) > MOST_BYTES:
            response.raw.close()
            raise RequestException("the answer is too long")
        response.raw = BytesIO(content)
        return response


def session() -> Session | None:
    """What an exporter sends with. None if variables name one that adds credentials, which the
    exporter then finds by itself.
    """
    if any(name.endswith("_CREDENTIAL_PROVIDER") for name in os.environ):
        return None
    made = Session()
    for scheme in ("http://", "https://"):
        made.mount(scheme, _Bounded())
    return made
