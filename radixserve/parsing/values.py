"""Values that a model writes as plain text, turned into JSON by the tool's schema.

The tag formats do not say whether `5` is a number or a string; the schema of the parameter does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from radixserve.parsing.output import Output
from radixserve.parsing.python_text import literal_to_json

_MAX_DEPTH = 8  # of references and alternatives that are followed
_TYPES = {
    str: "string",
    bool: "boolean",
    int: "number",
    float: "number",
    list: "array",
    dict: "object",
    type(None): "null",
}
_WORDS = {"true": "true", "false": "false", "null": "null", "none": "null"}
STRING = frozenset(("string",))
BOOLEAN = frozenset(("boolean",))


class Arguments:
    """Writes the arguments of a call member by member."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._before = "{"

    def key(self, name: str) -> None:
        """A member begins; its value is written to the output next."""
        self._output.arguments(f"{self._before}{json.dumps(name, ensure_ascii=False)}: ")
        self._before = ", "

    def close(self) -> None:
        """The object is complete."""
        self._output.arguments("{}" if self._before == "{" else "}")


def types_of(parameters: Mapping[str, object], name: str) -> frozenset[str]:
    """The JSON types that a parameter may have by the schema of all parameters; integer counts as
    number. A parameter of which the schema says nothing is a string.
    """
    properties = parameters.get("properties")
    schema = properties.get(name) if isinstance(properties, Mapping) else None
    return _types(schema, parameters, _MAX_DEPTH) or STRING


def to_json(text: str, types: frozenset[str]) -> str:
    """The JSON text of a value of one of these types, not only strings: `text` itself if that is
    JSON, otherwise what it means in Python, otherwise a string.
    """
    bare = text.strip()
    word = _WORDS.get(bare.lower(), bare)
    for candidate in (word, literal_to_json(bare)):
        if candidate is not None and _type(candidate) in types:
            return candidate
    return json.dumps(text, ensure_ascii=False)


def _type(text: str) -> str | None:
    """The type of a JSON value; None if the text is none."""
    try:
        value = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None
    return _TYPES[type(value)]


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def _types(schema: object, root: Mapping[str, object], depth: int) -> frozenset[str]:
    """The types that a schema names, empty if it names none."""
    if not isinstance(schema, Mapping) or depth == 0:
        return frozenset()
    if "type" in schema:
        named = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        return frozenset("number" if each == "integer" else str(each) for each in named)
    if isinstance(values := schema.get("enum"), list):
        return frozenset(_TYPES[type(value)] for value in values)
    if "const" in schema:
        return frozenset((_TYPES[type(schema["const"])],))
    alternatives = [_referred(schema.get("$ref"), root)]
    for keyword in ("anyOf", "oneOf", "allOf"):
        each = schema.get(keyword)
        alternatives += each if isinstance(each, list) else []
    return frozenset().union(*(_types(each, root, depth - 1) for each in alternatives))


def _referred(reference: object, root: Mapping[str, object]) -> object:
    """The schema within `root` that a reference names, or None."""
    if not isinstance(reference, str) or not reference.startswith("#/"):
        return None
    found: object = root
    for key in reference[2:].split("/"):
        key = key.replace("~1", "/").replace("~0", "~")
        found = found.get(key) if isinstance(found, Mapping) else None
    return found
