"""Rewrites of schemas that the library would refuse, although what they say can be enforced, or is
nothing at all.

    {"type": "array", "uniqueItems": false}     {"type": "array"}
    {"type": "string", "nullable": true}        {"type": ["string", "null"]}, as OpenAPI 3.0 says
    {"minItems": 2.0}                           {"minItems": 2}
    {"type": "string", "format": "password"}    {"type": "string"}

The last one: by the standard, a format that it does not define is an annotation, like any word that
it does not define. The formats that it does define stay, and are enforced or refused by name.
"""

from __future__ import annotations

from typing import Any, Final

from radixserve.grammar.schema import with_parts

FORMATS: Final = frozenset(
    (
        *("date-time", "date", "time", "duration", "uuid", "regex"),
        *("email", "idn-email", "hostname", "idn-hostname", "ipv4", "ipv6"),
        *("uri", "uri-reference", "uri-template", "iri", "iri-reference"),
        *("json-pointer", "relative-json-pointer"),
        *("color", "style", "phone", "utc-millisec", "ip-address", "host-name"),  # draft 3
    )
)
"""The formats that a draft of JSON Schema defines."""

_LIMITS = frozenset(
    ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")
)


def plain(schema: Any) -> Any:
    """`schema` without keywords that have no effect where they stand, and with others written as
    the library knows them. It means the same. One that is nested too deeply to be read is returned
    as it is. Cost: the schema's size.
    """
    try:
        return _plain(schema)
    except RecursionError:
        return schema


def _plain(schema: Any) -> Any:
    if not isinstance(schema, dict):
        return schema
    kept = {word: value for word, value in schema.items() if not _is_void(word, schema)}
    return with_parts(_with_null({word: _whole(word, kept[word]) for word in kept}), _plain)


def _is_void(keyword: str, schema: dict[str, Any]) -> bool:
    """Whether `keyword` has no effect in `schema`."""
    value = schema[keyword]
    match keyword:
        case "uniqueItems" | "nullable" | "$recursiveAnchor" | "not":
            return value is False
        case "dependencies" | "dependentRequired" | "dependentSchemas":
            return bool(value == {})
        case "propertyNames" | "unevaluatedItems" | "unevaluatedProperties":
            return _is_true(value)
        case "if":
            return "then" not in schema and "else" not in schema
        case "then" | "else":
            return "if" not in schema
        case "minContains" | "maxContains":
            return "contains" not in schema
        case "format":
            return isinstance(value, str) and value not in FORMATS
    return False


def _is_true(schema: Any) -> bool:
    """Whether everything matches `schema`, which is no number."""
    return schema is True or schema == {}


def _whole(keyword: str, value: Any) -> Any:
    """A limit that is written with a decimal point, without it."""
    is_whole = keyword in _LIMITS and isinstance(value, float) and value.is_integer()
    return int(value) if is_whole else value


def _with_null(schema: dict[str, Any]) -> dict[str, Any]:
    """`schema` with "null" among its types if it is `nullable`. OpenAPI gives this word a meaning
    only beside a type.
    """
    types = schema.get("type")
    types = [types] if isinstance(types, str) else types
    if schema.get("nullable") is not True or not isinstance(types, list):
        return schema
    rest = {word: value for word, value in schema.items() if word != "nullable"}
    return rest | {"type": [*types, *(["null"] if "null" not in types else [])]}
