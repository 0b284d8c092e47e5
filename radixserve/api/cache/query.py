"""Reads the query of a request in a strict way: every name is known, every value is in range."""

from __future__ import annotations

import re
from collections.abc import Collection

from aiohttp import web

from radixserve.api.models import MODELS
from radixserve.api.refusals import check_range, shown
from radixserve.errors import BadRequest

_SECONDS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,6})?)([smhd]?)")
_MOST_SECONDS = 10 * 365 * 86400.0


def parameters(request: web.Request, known: Collection[str]) -> dict[str, str]:
    """The parameters in the query, without the `model` that chooses one of several. Raises
    BadRequest for one that is not known or given twice.
    """
    if request.app[MODELS].are_several:
        known = (*known, "model")
    for name in request.query:
        if name not in known:
            names = f"known are {', '.join(sorted(known))}" if known else "there are none here"
            text = f"Unknown parameter '{shown(name)}'; {names}."
            raise BadRequest(text, param=shown(name), code="unknown_parameter")
        if len(request.query.getall(name)) > 1:
            raise BadRequest(f"'{name}' is given twice.", param=name, code="invalid_value")
    return {name: value for name, value in request.query.items() if name != "model"}


def number(given: dict[str, str], name: str, default: int, lowest: int, highest: int) -> int:
    """An integer parameter. Raises BadRequest outside of its range."""
    text = given.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdecimal() and len(text) < 19):
        raise BadRequest(f"'{name}' must be an integer.", param=name, code="invalid_type")
    check_range(name, int(text), lowest, highest, "integer")
    return int(text)


def seconds(text: str, name: str, *, most: float = _MOST_SECONDS) -> float:
    """A duration such as 90, 90s, 5m, 1h or 30d, up to `most` seconds. Raises BadRequest for
    anything else.
    """
    found = _DURATION.fullmatch(text)
    value = float(found[1]) * _SECONDS[found[2]] if found else 0.0
    if not 0 < value <= most:
        limit = f"{most / 86400:,.0f} days"
        message = f"'{name}' must be a duration such as 90s, 5m, 1h or 30d, up to {limit}."
        raise BadRequest(message, param=name, code="invalid_value")
    return value
