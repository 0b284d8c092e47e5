"""How the arguments of a call are written in the formats that do not write them as one JSON object:
expansions of lark rules that obey a tool's schema.

Between tags a string is free text. Of its schema only `enum` and `const` are obeyed, and of the
schema of all arguments only `properties`, `required` and what they refer to.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from radixserve.grammar.calls import Text, json_arguments, json_string, quoted, text_until
from radixserve.parsing.values import BOOLEAN, STRING, types_of


@dataclass(frozen=True, slots=True)
class Arguments:
    """How a format writes the arguments of a call.

    Attributes:
        of_schema: the expansion of arguments that obey a schema.
        of_text: the expansion of a single argument, by its name and the grammar of its text.
    """

    of_schema: Callable[[Mapping[str, Any], Text], str]
    of_text: Callable[[str, str, Text], str]


_ANY_NAME = r"/[A-Za-z_][A-Za-z0-9_-]*/"


def _json_object(schema: Mapping[str, Any], text: Text) -> str:
    return json_arguments(schema)


def _json_text(name: str, definition: str, text: Text) -> str:
    return f'{quoted("{" + json.dumps(name) + ": ")} {json_string(definition)} "}}"'


JSON_OBJECT = Arguments(_json_object, _json_text)
"""One JSON object."""


def tagged(begin: str, space: str, end: str, separator: str) -> Arguments:
    """Arguments between tags, in the order of the schema; those that are not required may be left
    out. `begin` has `{}` in the place of the name, `space` stands between a value and `end`,
    `separator` behind each argument.
    """
    before, after = begin.split("{}")

    def member(root: Mapping[str, Any], name: str, text: Text) -> str:
        value, closing = _plain_value(root, name), text.literal(space + end + separator)
        if not value:
            value, closing = text.value(end), text.literal(separator)
        return f"{text.literal(before + name + after)} {value} {closing}"

    def arguments(schema: Mapping[str, Any], text: Text) -> str:
        if _is_free(schema):
            name = f"{text.literal(before)} {_ANY_NAME} {text.literal(after)}"
            return f"({name} {text.value(end)} {text.literal(separator)})*"
        required = _required(schema)
        members = {name: member(schema, name, text) for name in _properties(schema)}
        written = (each if name in required else f"({each})?" for name, each in members.items())
        return " ".join(written) or '""'

    def of_text(name: str, definition: str, text: Text) -> str:
        tag = "" if end in text.control else space + end
        closing = text.literal((space + end + separator).removeprefix(tag))
        return f"{text.literal(before + name + after)} {text_until(definition, tag)} {closing}"

    return Arguments(arguments, of_text)


def _keywords(schema: Mapping[str, Any], text: Text) -> str:
    if _is_free(schema):
        member = text.rule(f'{_ANY_NAME} "=" {json_arguments({})}')
        return f'({member} (", " {member})*)?'
    required = _required(schema)
    members = {
        name: text.rule(f"{quoted(name + '=')} {_python_value(schema, name)}")
        for name in _properties(schema)
    }
    first = [each for name, each in members.items() if name in required]
    others = [each for name, each in members.items() if name not in required]
    if first:
        return " ".join([' ", " '.join(first), _each_after_a_comma(others, text)])
    starts = " | ".join(_each_as_the_first(others, text))
    return f"({starts})?" if starts else '""'


def _keyword_text(name: str, definition: str, text: Text) -> str:
    return f"{quoted(name + '=')} {json_string(definition)}"


KEYWORDS = Arguments(_keywords, _keyword_text)
"""`a=1, b="x"`: the required arguments in order, then the others, which may be left out."""


def _each_after_a_comma(members: Sequence[str], text: Text) -> str:
    return text.rule(" ".join(f'(", " {each})?' for each in members)) if members else ""


def _each_as_the_first(members: Sequence[str], text: Text) -> Iterator[str]:
    rest = ""  # what may follow, from the last member to the first
    for each in reversed(members):
        yield f"{each} {rest}"
        rest = text.rule(f'(", " {each})? {rest}')


def _plain_value(root: Mapping[str, Any], name: str) -> str:
    """The expansion of a value that stands between tags without quotes; "" for any text."""
    schema = _properties(root)[name]
    types = types_of(root, name)
    if types == BOOLEAN:  # some templates write earlier calls as Python does
        return '("true" | "false" | "True" | "False")'
    if not types <= STRING:
        return _json_value(schema, root)
    if not isinstance(schema, dict):
        return ""
    options = schema.get("enum", [schema["const"]] if "const" in schema else None)
    if isinstance(options, list) and options and all(isinstance(each, str) for each in options):
        return f"({' | '.join(map(quoted, options))})"
    return ""


def _python_value(root: Mapping[str, Any], name: str) -> str:
    if types_of(root, name) == BOOLEAN:
        return '("True" | "False")'
    return _json_value(_properties(root)[name], root)


def _json_value(schema: Any, root: Mapping[str, Any]) -> str:
    """A value in JSON, with the definitions that its schema may refer to."""
    definitions = {key: root[key] for key in ("$defs", "definitions") if key in root}
    return json_arguments({**schema, **definitions} if isinstance(schema, dict) else {})


def _is_free(schema: Mapping[str, Any]) -> bool:
    """Whether the schema names no argument and forbids none."""
    return not _properties(schema) and schema.get("additionalProperties") is not False


def _required(schema: Mapping[str, Any]) -> frozenset[str]:
    names = schema.get("required")
    return frozenset(names if isinstance(names, list) else ())


def _properties(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    properties = schema.get("properties")
    return properties if isinstance(properties, dict) else {}
