"""The wording of refusals: one function per kind of mistake, so that message, `param` and `code`
are the same everywhere.

Knows no endpoint and no field.
"""

from __future__ import annotations

from radixserve.errors import BadRequest


def shown(value: object) -> str:
    """A client's value for an error message: at most 64 characters of it."""
    text = str(value)
    return text if len(text) <= 64 else text[:61] + "..."


def check_range(name: str, value: float | None, lowest: float, highest: float, kind: str) -> None:
    """Raises BadRequest unless lowest <= value <= highest, or the value is absent."""
    if value is None or lowest <= value <= highest:
        return
    if value < lowest:
        message, code = (
            f"'{name}' is {shown(value)}; the lowest allowed is {lowest}.",
            f"{kind}_below_min_value",
        )
    else:
        message, code = (
            f"'{name}' is {shown(value)}; the highest allowed is {highest}.",
            f"{kind}_above_max_value",
        )
    raise BadRequest(message, param=name, code=code)


def too_many(param: str, most: int, what: str | None = None) -> BadRequest:
    """The refusal of a list or object with more than `most` entries."""
    message = f"{what or repr(param)} may have at most {most} entries."
    return BadRequest(message, param=param, code="array_above_max_length")


def unsupported(param: str, what: str | None = None) -> BadRequest:
    """The refusal of a field or value that other servers know, and that this one would otherwise
    ignore.
    """
    message = f"Not supported by this server: {what or repr(param)}. Leave it out, or send null."
    return BadRequest(message, param=param, code="unsupported_parameter")


def missing(param: str) -> BadRequest:
    """The refusal of a body without a field that it must have."""
    return BadRequest(
        f"Missing required field '{param}'.", param=param, code="missing_required_parameter"
    )
