"""The grammar of a chat answer: the form that was asked for, the calls that it may or must have,
and the reasoning before them.

    tools     form       the answer is
    required  any        calls; the form has no say, because there is no text
    auto      none       text, then maybe calls, whose names and arguments are right
    auto      given      calls, or else text of that form
    none      given      text of that form

A schema of a tool that has to be called, or that is `strict`, is obeyed, or refused if it cannot
be. Other tools with such a schema are called with any JSON object.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import msgspec

from radixserve.api.context import Api
from radixserve.api.openai.form import Asked
from radixserve.api.openai.tools import Offer
from radixserve.api.openai.wire_tools import Function, TextFunction
from radixserve.errors import BadRequest
from radixserve.grammar.answers import calls_or_form, form_after, form_rules
from radixserve.grammar.calls import json_string
from radixserve.grammar.closed import closed
from radixserve.parsing.call_grammars import call_grammar
from radixserve.parsing.tool import Tool
from radixserve.request import Grammar


async def answer_grammar(
    api: Api, offer: Offer, asked: Asked | None, *, in_reasoning: bool
) -> Grammar | None:
    """The grammar of the answer; None: any text. Raises BadRequest that names the field whose
    schema or grammar cannot be used.
    """
    after = api.formats.reasoning.end if in_reasoning and api.formats.reasoning else ""
    if not offer.callable:
        if asked is None:
            return None
        param, form = asked
        await check_grammar(api, param, form)
        if not after:
            return form
        _check_combines(param, form)
        return form_after(form, after, api.tokenizer.control_tokens)
    if asked is not None and not offer.required:
        await check_grammar(api, *asked)
        _check_combines(*asked)
    tools = [_wanted(each) for each in offer.callable]
    grammar = _with_calls(api, tools, offer, asked, after)
    if grammar is None:
        return None
    try:
        await check_grammar(api, "tools", grammar)
    except BadRequest:
        tools = [await _tool(api, each, offer) for each in offer.callable]
        if (grammar := _with_calls(api, tools, offer, asked, after)) is not None:
            await check_grammar(api, "tools", grammar)
    return grammar


def _check_combines(param: str, form: Grammar) -> None:
    """Raises BadRequest that names `param` if `form` cannot be a part of another grammar."""
    with _naming(param):
        form_rules(form)


def _with_calls(
    api: Api, tools: Sequence[Tool], offer: Offer, asked: Asked | None, after: str
) -> Grammar | None:
    has_form = asked is not None and not offer.required
    calls = call_grammar(
        api.formats.tools.name,
        tools,
        required=offer.required or has_form,
        parallel=offer.parallel,
        control=api.tokenizer.control_tokens,
        after=after,
    )
    if calls is None or asked is None or not has_form:
        return calls
    return calls_or_form(calls, asked[1])


async def _tool(api: Api, function: Function, offer: Offer) -> Tool:
    """The tool as its calls are constrained."""
    wanted = _wanted(function)
    try:
        await check_grammar(api, "tools", _of_arguments(wanted))
    except BadRequest as refusal:
        if offer.required or function.strict or refusal.code == "grammar_too_complex":
            refusal.message = f"The parameters of '{function.name}': {refusal.message}"
            raise
        return Tool(function.name)
    return wanted


def _wanted(function: Function) -> Tool:
    """The tool as its calls should be constrained."""
    text_grammar = function.text_grammar if isinstance(function, TextFunction) else None
    return Tool(function.name, closed(function.parameters or {}), text_grammar)


def _of_arguments(tool: Tool) -> Grammar:
    """What constrains the arguments of this tool alone."""
    if tool.text_grammar is not None:
        return Grammar(kind="lark", source=f"start: {json_string(tool.text_grammar)}")
    return Grammar(kind="json_schema", source=msgspec.json.encode(tool.parameters).decode())


async def check_grammar(api: Api, param: str, grammar: Grammar) -> None:
    """Raises BadRequest that names `param` if the engine could not use `grammar`."""
    with _naming(param):
        await api.tokenizer.check_grammar(grammar)


@contextmanager
def _naming(param: str) -> Iterator[None]:
    """Let refusals name `param`."""
    try:
        yield
    except BadRequest as refusal:
        refusal.param = param
        raise
