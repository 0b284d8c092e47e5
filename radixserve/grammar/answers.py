"""Grammars of answers that have text of a form, with reasoning before it or calls instead of it.

`form_rules` writes a `Grammar` as the lark rule `answer`, so that it can be a part of another one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import msgspec
from llguidance import regex_to_lark

from radixserve.errors import BadRequest
from radixserve.grammar.calls import choice_rules, until
from radixserve.request import Grammar


def form_rules(form: Grammar) -> str:
    """`form` as the lark rule `answer`, with the terminals that it needs.

    Raises:
        BadRequest: it is a grammar with rules of its own, or malformed.
    """
    match form.kind:
        case "json_object":
            return 'answer: %json {"type": "object"}'
        case "json_schema":
            return "answer: %json " + json.dumps(_decoded(form.source))
        case "regex":
            return f"answer: /{regex_to_lark(form.source, use_ascii='')}/"
        case "choice":
            return f"answer: {choice_rules(map(str, _choices(form.source)))}"
        case _:
            raise BadRequest(
                "A grammar cannot be combined with tools or reasoning; use a schema, a regular "
                "expression or a choice.",
                code="unsupported_parameter",
            )


def form_after(form: Grammar, marker: str, control: Mapping[str, int]) -> Grammar:
    """Any text up to `marker`, then text of `form`."""
    lead, rules = until(marker, control)
    rules = [f"start: {lead} SPACE? answer", form_rules(form), *rules]
    source = "\n".join([*rules, "SPACE: /[ \\t\\r\\n]+/", ""])
    return Grammar(kind="lark", source=source, whitespace=form.whitespace)


def calls_or_form(calls: Grammar, form: Grammar) -> Grammar:
    """Either `calls`, made by `tool_calls` with `required`, or text of `form`."""
    rules = calls.source.replace("start:", "calls:", 1)
    source = f"start: calls | answer\n{form_rules(form)}\n{rules}"
    return Grammar(kind="lark", source=source, whitespace=form.whitespace)


def _choices(source: str) -> list[object]:
    decoded = _decoded(source)
    return decoded if isinstance(decoded, list) else [decoded]


def _decoded(source: str) -> object:
    try:
        return msgspec.json.decode(source)
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError) as error:
        raise BadRequest(f"The form is not valid JSON: {error}.", code="invalid_value") from error
