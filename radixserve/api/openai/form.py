"""The form that a body asks its answer to have: JSON, a schema, a regular expression, a choice or a
grammar.

Several servers have fields of their own for this; each is understood, and a body may use one of
them. Whether a grammar can be compiled is checked elsewhere (`TokenizerClient.check_grammar`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import msgspec

from radixserve.api.openai.wire import GenerationBody
from radixserve.api.openai.wire_format import ResponseFormat, StructuredOutputs
from radixserve.api.refusals import missing, unsupported
from radixserve.errors import BadRequest
from radixserve.grammar.closed import closed
from radixserve.request import Grammar

Asked = tuple[str, Grammar]
"""The field that asks for a form, and the form."""


def form_of(body: GenerationBody) -> Asked | None:
    """The form that `body` asks for; None if it may be any text. Raises BadRequest for a form that
    is incomplete, and for two forms.
    """
    asked = list(_forms(body))
    if len(asked) > 1:
        (first, _), (second, _) = asked[:2]
        text = f"'{first}' and '{second}' both give the answer a form; give one of them."
        raise BadRequest(text, param=second, code="invalid_value")
    return asked[0] if asked else None


def _forms(body: GenerationBody) -> Iterator[Asked]:
    if body.response_format is not None and body.response_format.type != "text":
        yield "response_format", _of_response_format(body.response_format)
    if body.structured_outputs is not None:
        yield from _of_structured_outputs(body.structured_outputs)
    for name in ("guided_json", "json_schema"):
        if (schema := getattr(body, name)) is not None:
            yield name, _schema(schema)
    for name in ("guided_regex", "regex"):
        if (pattern := getattr(body, name)) is not None:
            yield name, Grammar(kind="regex", source=pattern)
    if body.guided_choice is not None:
        yield "guided_choice", _choice(body.guided_choice)
    for name in ("guided_grammar", "grammar", "ebnf"):
        if source := getattr(body, name):
            yield name, _grammar(source)


def _of_response_format(asked: ResponseFormat) -> Grammar:
    if asked.type == "json_object":
        return Grammar(kind="json_object")
    if asked.type != "json_schema":
        raise unsupported("response_format.type", f"the response format '{asked.type}'")
    if asked.json_schema is None:
        raise missing("response_format.json_schema")
    if asked.json_schema.schema is None:
        raise missing("response_format.json_schema.schema")
    return _schema(asked.json_schema.schema)


def _of_structured_outputs(asked: StructuredOutputs) -> Iterator[Asked]:
    if asked.structural_tag is not None:
        raise unsupported("structured_outputs.structural_tag")
    whitespace = "" if asked.disable_any_whitespace else asked.whitespace_pattern
    path = "structured_outputs"
    if asked.json is not None:
        grammar = _schema(asked.json, is_open=asked.disable_additional_properties is False)
        yield f"{path}.json", msgspec.structs.replace(grammar, whitespace=whitespace)
    if asked.json_object:
        yield f"{path}.json_object", Grammar(kind="json_object", whitespace=whitespace)
    if asked.regex is not None:
        yield f"{path}.regex", Grammar(kind="regex", source=asked.regex)
    if asked.choice is not None:
        yield f"{path}.choice", _choice(asked.choice)
    if asked.grammar is not None:
        yield f"{path}.grammar", _grammar(asked.grammar)


def _schema(schema: Any, *, is_open: bool = False) -> Grammar:
    """A schema given as an object, or as the text of one. Its objects have the members that it
    names (`grammar.closed`), unless `is_open`.
    """
    if isinstance(schema, str):
        with suppress(msgspec.DecodeError, UnicodeEncodeError, RecursionError):
            schema = msgspec.json.decode(schema)
    if isinstance(schema, str):  # not JSON, which the check of the grammar tells
        return Grammar(kind="json_schema", source=schema)
    schema = schema if is_open else closed(schema)
    return Grammar(kind="json_schema", source=msgspec.json.encode(schema).decode())


def _choice(choices: list[str]) -> Grammar:
    return Grammar(kind="choice", source=msgspec.json.encode(choices).decode())


def _grammar(source: str) -> Grammar:
    """GBNF has rules with `::=`, lark has rules with a colon."""
    return Grammar(kind="gbnf" if "::=" in source else "lark", source=source)
