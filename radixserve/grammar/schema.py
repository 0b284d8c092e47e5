"""Which JSON Schema keywords are enforced. A schema with a keyword that would have no effect is
refused, so that no keyword is silently ignored.

The library refuses the keywords of recent drafts that it does not enforce, but only those, and it
gives no place. Words that no draft gives a meaning to are annotations by the standard; so are
titles, descriptions, defaults and examples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final
from urllib.parse import unquote

from radixserve.errors import BadRequest

ENFORCED: Final = frozenset(
    (
        *("$ref", "allOf", "anyOf", "oneOf", "const", "enum", "type"),
        *("items", "additionalItems", "prefixItems", "minItems", "maxItems"),
        *("properties", "patternProperties", "additionalProperties", "required"),
        *("minProperties", "maxProperties"),
        *("minLength", "maxLength", "pattern", "format"),
        *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
    )
)
"""The library enforces these, or refuses the schema where it cannot, with a sentence that names the
keyword.
"""

REFUSED: Final = frozenset(
    (
        *("not", "if", "then", "else"),
        *("dependencies", "dependentRequired", "dependentSchemas", "propertyNames"),
        *("contains", "minContains", "maxContains", "uniqueItems"),
        *("unevaluatedItems", "unevaluatedProperties"),
        *("$dynamicRef", "$dynamicAnchor", "$recursiveRef", "$recursiveAnchor"),
        *("divisibleBy", "disallow", "extends"),  # draft 3
        "nullable",  # OpenAPI 3.0
        "x-guidance",  # the library's own options, which could switch keywords off
    )
)
"""These would have no effect."""

_ONE = ("items", "additionalItems", "additionalProperties")
_MANY = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
_NAMED = ("properties", "patternProperties")
_KEPT = ("$defs", "definitions")


def check_keywords(schema: object) -> None:
    """Refuse a schema with a keyword that is not enforced, where it can have an effect: in the
    schema itself, and in what it refers to.

    Raises:
        BadRequest: names the keyword and its place, as a JSON pointer.
    """
    done: set[str] = set()
    waiting = [("#", schema)]
    while waiting:
        place, each = waiting.pop()
        if place in done or not isinstance(each, dict):
            continue
        done.add(place)
        for keyword in each:
            if keyword in REFUSED:
                raise BadRequest(
                    f"The JSON Schema keyword {keyword!r} at {place} is not supported.",
                    code="unsupported_parameter",
                )
        waiting += parts_of(place, each)
        if isinstance(reference := each.get("$ref"), str):
            waiting += _targets(schema, reference)


def parts_of(place: str, schema: dict[str, Any]) -> Iterator[tuple[str, object]]:
    """The schemas directly inside `schema`, which is at `place`, with their places; not those that
    are only kept for references.
    """
    for keyword in _ONE:
        if isinstance(part := schema.get(keyword), dict):
            yield f"{place}/{keyword}", part
    for keyword in _MANY:
        if isinstance(parts := schema.get(keyword), list):
            yield from ((f"{place}/{keyword}/{i}", part) for i, part in enumerate(parts))
    for keyword in _NAMED:
        if isinstance(named := schema.get(keyword), dict):
            yield from ((f"{place}/{keyword}/{name}", part) for name, part in named.items())


def with_parts(schema: dict[str, Any], change: Callable[[Any], Any]) -> dict[str, Any]:
    """A copy of `schema` with each schema directly inside it changed, also those that are only kept
    for references.
    """
    return {keyword: _changed(keyword, value, change) for keyword, value in schema.items()}


def _changed(keyword: str, value: Any, change: Callable[[Any], Any]) -> Any:
    if keyword in _ONE and isinstance(value, dict):
        return change(value)
    if keyword in _MANY and isinstance(value, list):
        return [change(part) for part in value]
    if keyword in (*_NAMED, *_KEPT) and isinstance(value, dict):
        return {name: change(part) for name, part in value.items()}
    return value


def _targets(root: object, reference: str) -> Iterator[tuple[str, object]]:
    """What a reference may mean: the place that a JSON pointer names, or, for a reference by an id
    or an anchor, everything that is kept for references.
    """
    if reference == "#" or reference.startswith("#/"):
        found = root
        for part in reference.split("/")[1:]:
            name = unquote(part).replace("~1", "/").replace("~0", "~")
            if isinstance(found, list) and name.isdecimal() and int(name) < len(found):
                found = found[int(name)]
            else:
                found = found.get(name) if isinstance(found, dict) else None
        yield reference, found
    elif isinstance(root, dict):
        for keyword in _KEPT:
            if isinstance(kept := root.get(keyword), dict):
                yield from ((f"#/{keyword}/{name}", part) for name, part in kept.items())
