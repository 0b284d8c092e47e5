"""From a `Grammar` to the source that the library compiles.

Owns the limits of a source's size, what whitespace JSON may have, and the changes to lark sources:
control tokens are named by their ids, schemas are checked and get the grammar's whitespace, texts
inside JSON get grammars of their own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

import msgspec
from llguidance import LLMatcher
from llguidance.gbnf_to_lark import gbnf_to_lark

from radixserve.errors import BadRequest
from radixserve.grammar.calls import choice_rules
from radixserve.grammar.plain import plain
from radixserve.grammar.quoted_lark import lark_until, quoted_lark
from radixserve.grammar.schema import check_keywords
from radixserve.grammar.vocabulary import refusal_of
from radixserve.request import Grammar

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions  # a type that exists in the stubs only

MAX_CHARS = 512 * 1024  # of a source
MAX_CHOICES = 10_000

# One space, or a line break and its indentation: ten levels of four spaces or of a tab. A weak
# model may write as much whitespace as it is allowed to, at every place, until its last token.
_WHITESPACE = r"( |\r?\n( {0,40}|\t{0,10}))"

# JSON as chat templates write it into the next prompt.
_ON_ONE_LINE: Final[JsonCompileOptions] = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
}

# The parts of a lark source in which nothing is changed, then what is changed. A string or regular
# expression that is never closed is one such part, too, because looking for its end again from
# every character in it would take quadratic time. The library refuses it.
_LARK = re.compile(
    r"""
    (?P<skip> //[^\n]*+ | \#[^\n]*+ | "(?:[^"\\\n]|\\.)*+"? | /(?:[^/\\]|\\.)++/?
        | <\[[^\]<>\s]*+\]> )
    | % (?P<json> json | json_line | json_string | text_until ) \s* (?=\{)
    | (?P<token> <[^<>\s"]+> )
    """,
    re.VERBOSE,
)


def library_source(grammar: Grammar, token_ids: Mapping[str, int]) -> str:
    """The source of `grammar` for the library; `token_ids` are the added tokens by name.

    Raises:
        BadRequest: the source is too long, malformed, or uses what is not supported; the sentence
            names the keyword, token or place.
    """
    source = grammar.source
    if len(source) > MAX_CHARS:
        raise BadRequest(
            f"The grammar has {len(source)} characters, more than the limit of {MAX_CHARS}.",
            code="grammar_too_complex",
        )
    try:
        source.encode()
    except UnicodeEncodeError as error:
        raise BadRequest(
            "The grammar is not valid Unicode (a lone surrogate?).", code="invalid_value"
        ) from error
    match grammar.kind:
        case "json_object":
            return _of_schema({"type": "object"}, grammar.whitespace)
        case "json_schema":
            return _of_schema(_decoded(source, "schema"), grammar.whitespace)
        case "regex":
            return LLMatcher.grammar_from_regex(source)
        case "choice":
            return LLMatcher.grammar_from_lark(_alternatives(source))
        case "lark":
            return _Lark(grammar.whitespace, token_ids).library_source(source)
        case "gbnf":
            return LLMatcher.grammar_from_lark(_from_gbnf(source))


def _decoded(source: str, what: str) -> Any:
    try:
        return msgspec.json.decode(source)
    except msgspec.DecodeError as error:
        raise BadRequest(f"The {what} is not valid JSON: {error}.", code="invalid_value") from error
    except RecursionError as error:
        raise BadRequest(f"The {what} is nested too deeply.", code="grammar_too_complex") from error


def _of_schema(schema: Any, whitespace: str | None) -> str:
    if schema is False:
        raise BadRequest("The schema is false: nothing matches it.", code="invalid_value")
    schema = {} if schema is True else plain(schema)
    check_keywords(schema)
    try:
        return LLMatcher.grammar_from_json_schema(
            json.dumps(schema), overrides=_whitespace(whitespace)
        )
    except ValueError as error:
        raise refusal_of(error, "The schema is not valid") from error


def _whitespace(pattern: str | None) -> JsonCompileOptions:
    """The library's options for schemas."""
    if pattern == "":
        return {"whitespace_flexible": False}
    return {"whitespace_pattern": _WHITESPACE if pattern is None else pattern}


def _alternatives(source: str) -> str:
    choices = _decoded(source, "list of choices")
    if not (isinstance(choices, list) and choices and all(isinstance(c, str) for c in choices)):
        raise BadRequest("The choices must be a list of strings.", code="invalid_value")
    if len(choices) > MAX_CHOICES:
        raise BadRequest(
            f"There are {len(choices)} choices, more than the limit of {MAX_CHOICES}.",
            code="grammar_too_complex",
        )
    return f"start: {choice_rules(choices)}"


class _Lark:
    """Changes one lark source: ids for the names of control tokens, every schema checked and given
    its whitespace, and the grammars of texts inside JSON as grammars of their own.
    """

    def __init__(self, whitespace: str | None, token_ids: Mapping[str, int]) -> None:
        self._whitespace = whitespace
        self._token_ids = token_ids
        self._texts: dict[str, str] = {}  # names of grammars for texts, by their sources

    def library_source(self, source: str) -> str:
        """The source of all grammars for the library."""
        changed = "".join(self._parts(source))
        if not self._texts:
            return LLMatcher.grammar_from_lark(changed)
        texts = [{"name": name, "lark_grammar": each} for each, name in self._texts.items()]
        return json.dumps({"grammars": [{"lark_grammar": changed}, *texts]})

    def _parts(self, source: str) -> Iterator[str]:
        done = 0
        while (found := _LARK.search(source, done)) is not None:
            yield source[done : found.start()]
            done = found.end()
            if found["json"]:
                value, done = _value_at(source, done)
                yield self._of_value(found["json"], value)
            elif found["token"]:
                yield _token(found[0], self._token_ids)
            else:
                yield found[0]
        yield source[done:]

    def _of_value(self, word: str, value: dict[str, Any]) -> str:
        match word, value:
            case "json_string", {"lark": str(definition)}:
                return rf'"\"" {self._text(quoted_lark(definition))} "\""'
            case "text_until", {"lark": str(definition), "end": str(end)}:
                return self._text(lark_until(definition, end))
            case "json_string" | "text_until", _:
                raise BadRequest(f"%{word} needs a grammar, 'lark'.", code="invalid_value")
        schema = plain(value)
        check_keywords(schema)
        options = _ON_ONE_LINE if word == "json_line" else _whitespace(self._whitespace)
        return "%json " + json.dumps({**schema, "x-guidance": options})

    def _text(self, source: str) -> str:
        """The name of the grammar with this source."""
        return "@" + self._texts.setdefault(source, f"text_{len(self._texts)}")


def _value_at(source: str, start: int) -> tuple[dict[str, Any], int]:
    try:
        return json.JSONDecoder().raw_decode(source, start)
    except ValueError as error:
        raise BadRequest(
            f"The schema after %json is not valid JSON: {error}.", code="invalid_value"
        ) from error
    except RecursionError as error:
        raise BadRequest(
            "The schema after %json is nested too deeply.", code="grammar_too_complex"
        ) from error


def _token(name: str, token_ids: Mapping[str, int]) -> str:
    if name not in token_ids:
        raise BadRequest(f"The model has no token {name}.", code="invalid_value")
    return f"<[{token_ids[name]}]>"


def _from_gbnf(source: str) -> str:
    try:
        return gbnf_to_lark(source)
    except Exception as error:  # the library raises bare Exception; its parser is recursive
        raise refusal_of(error, "The grammar is not valid") from error
