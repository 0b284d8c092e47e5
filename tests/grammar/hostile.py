"""The worst grammars: large, deep, forking, of very many states. All of them are refused."""

from __future__ import annotations

import io
import json

from tests.grammar.accept import grammar

MANY = 10_000

_RULES = "\n".join(f'r{i}: "a{i}" r{i + 1} | "b"' for i in range(MANY))
_GBNF_RULES = "\n".join(f'r{i} ::= "a{i}" r{i + 1} | "b"' for i in range(MANY))
_WIDE = {f"p{i}": {"type": "object", "properties": {"x": {"type": "string"}}} for i in range(MANY)}
_FORK = {"anyOf": [{"$ref": "#/$defs/n"}, {"$ref": "#/$defs/n"}]}
HOSTILE = {
    "a schema of 1 MB": grammar("json_schema", {"enum": ["x" * 50] * 20_000}),
    "a wide schema": grammar("json_schema", {"type": "object", "properties": _WIDE}),
    "a deep schema": grammar("json_schema", '{"items":' * 50_000 + "1" + "}" * 50_000),
    "a schema that forks": grammar("json_schema", {"allOf": [_FORK] * 40, "$defs": {"n": _FORK}}),
    "10,000 rules in a row": grammar("lark", f'start: r0\n{_RULES}\nr{MANY}: "z"'),
    "10,000 rules of gbnf": grammar("gbnf", f'root ::= r0\n{_GBNF_RULES}\nr{MANY} ::= "z"'),
    "a deep expression": grammar("regex", "(" * 100_000 + "a" + ")" * 100_000),
    "an intersection of many states": grammar(
        "lark", "start: X\nX: /(?s:.*)a(?s:.){40}/ & /(?s:.*)b(?s:.){41}/ & ~/(?s:.*)c(?s:.){12}/"
    ),
}

_FIELDS = {"json_schema": "json", "regex": "regex", "lark": "grammar", "gbnf": "grammar"}
_NOTES = {"regex": "{}", "lark": "\n// {}", "gbnf": "\n# {}"}


def hostile_body(name: str, number: int = 0) -> io.BytesIO:
    """The body of a request for a completion of this form. Other numbers change nothing but the
    text of the grammar.
    """
    wanted = HOSTILE[name]
    source = wanted.source
    if number:
        note = _NOTES.get(wanted.kind)
        source += note.format(number) if note else " " * number
    asked = {"structured_outputs": {_FIELDS[wanted.kind]: source}}
    return io.BytesIO(json.dumps({"prompt": "x", "max_tokens": 4} | asked).encode())
