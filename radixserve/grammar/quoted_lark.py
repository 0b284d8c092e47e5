"""A grammar in Lark's syntax for text that stands inside a call of a tool.

The input of a custom tool is a text that matches a grammar. Most models write it inside a JSON
object, where a quote is `\\"` and a line break is `\\n`, so the literals and regular expressions of
the grammar are changed until they match the written form, for example

    line: "+" /.+/ "\\n"    becomes    LINE: "+" /(?:[^"\\\\\\x00-\\x1f]|\\\\["\\\\bfrt])+/ "\\\\n"

Characters are written as `json.dumps` writes them, in one way only. Of the control characters that
a class of a regular expression stands for, only those with a short name are written.

**Rules become terminals.** The library cuts a text into terminals and looks one byte ahead. Behind
`/.+/` a backslash may go on with the text or begin the line break, which only its next byte tells.
Within one terminal there is no such limit, so a grammar whose rules do not refer to themselves
becomes a single terminal. A grammar that does keeps its rules. It may then have no classes with
characters that are escaped.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from graphlib import CycleError, TopologicalSorter

from radixserve.errors import BadRequest
from radixserve.grammar.calls import escaped, quoted
from radixserve.grammar.quoted_regex import (
    SHORT_NAMES,
    quoted_character,
    quoted_class,
    quoted_regex,
)

# The terminals of Lark's own library, which a grammar may import.
_COMMON = {
    "DIGIT": "[0-9]",
    "HEXDIGIT": "[0-9A-Fa-f]",
    "INT": "[0-9]+",
    "SIGNED_INT": "[+-]?[0-9]+",
    "DECIMAL": r"[0-9]+\.[0-9]*|\.[0-9]+",
    "FLOAT": r"[0-9]+[eE][+-]?[0-9]+|([0-9]+\.[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?",
    "SIGNED_FLOAT": r"[+-]?([0-9]+[eE][+-]?[0-9]+|([0-9]+\.[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?)",
    "NUMBER": r"([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?",
    "SIGNED_NUMBER": r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?",
    "ESCAPED_STRING": r'"([^"\\\n]|\\.)*"',
    "LCASE_LETTER": "[a-z]",
    "UCASE_LETTER": "[A-Z]",
    "LETTER": "[A-Za-z]",
    "WORD": "[A-Za-z]+",
    "CNAME": "[A-Za-z_][A-Za-z0-9_]*",
    "WS_INLINE": r"[ \t]+",
    "WS": r"[ \t\f\r\n]+",
    "CR": r"\r",
    "LF": r"\n",
    "NEWLINE": r"(\r?\n)+",
    "SH_COMMENT": r"#[^\n]*",
    "CPP_COMMENT": r"\/\/[^\n]*",
    "SQL_COMMENT": r"--[^\n]*",
}

_STRING = r'"(?:[^"\\\n]|\\.)*+"'
_NAME = r"[!?]?_?[A-Za-z][\w-]*+"
_PARTS = re.compile(
    rf"""
    (?P<ignored> //[^\n]*+ | \#[^\n]*+ | ->\s*+ {_NAME} )
    | (?P<first> {_STRING} ) \s*+ \.\. \s*+ (?P<last> {_STRING} )
    | (?P<string> {_STRING} ) (?P<any_case> i? )
    | / (?P<regex> (?:[^/\\]|\\.)++ ) / (?P<flags> [a-z]*+ )
    | %import\s++common \s*+
      (?: \. \s*+ (?P<imported> \w++ ) (?: \s*+ -> \s*+ (?P<called> \w++ ) )?
        | \( (?P<several> [\w\s,]*+ ) \) )
    | (?P<ignore> %ignore\b )
    | (?P<refused> %\w*+ | @\w*+ | <[^<>\s"]++> | ~ (?!\s*+\d)
        | {_NAME} \[ [\w\s,="]*+ \] \s*+ : )
    | (?P<defined> {_NAME} ) \s*+ :
    | (?P<name> {_NAME} )
    | (?P<bracket> [\[\]] )
    | (?P<open> ["/] (?s:.*) )
    """,
    re.VERBOSE,
)


class _Grammar:
    """A grammar that is changed part by part. `inside_json`: for text as JSON writes it."""

    def __init__(self, definition: str, *, inside_json: bool) -> None:
        self._definition = definition
        self._inside_json = inside_json
        self._parts = [*_PARTS.finditer(definition)]
        for part in self._parts:
            _check(part)
        uses = _uses(self._parts)
        self._numbers = {name: i for i, name in enumerate(uses)}
        self.is_one_terminal = not any(part["ignore"] for part in self._parts) and (
            not _refers_to_itself(uses)
        )

    def changed(self) -> str:
        """The changed grammar, with a rule `start`."""
        pieces: list[str] = []
        done = 0
        for part in self._parts:
            pieces += (self._definition[done : part.start()], self._changed(part))
            done = part.end()
        pieces.append(self._definition[done:])
        if self.is_one_terminal:
            pieces.append(f"\nstart: {self._named('start')}\n")
        return "".join(pieces)

    def _changed(self, part: re.Match[str]) -> str:
        if part["ignored"]:
            return ""
        if part["defined"]:
            return f"{self._named(part['defined'])}:"
        if part["name"]:
            return self._named(part["name"])
        if part["bracket"] and self.is_one_terminal:
            return "(" if part["bracket"] == "[" else ")?"
        if part["imported"] or part["several"] is not None:
            return self._imports(part)
        return self._literal(part) if self._inside_json else part[0]

    def _named(self, name: str) -> str:
        """The name that a rule or terminal has in the changed grammar."""
        if not self.is_one_terminal:
            return name
        bare = name.lstrip("!?")
        if bare not in self._numbers:
            raise _invalid(f"has no rule '{bare[:60]}'")
        return f"PART_{self._numbers[bare]}"

    def _imports(self, part: re.Match[str]) -> str:
        names = [part["imported"]] if part["imported"] else _several(part)
        return "\n".join(
            f"{self._named(part['called'] or name)}: {self._regex(_COMMON[name], '')}"
            for name in names
        )

    def _regex(self, pattern: str, flags: str) -> str:
        if not self._inside_json:
            return f"/{pattern}/{flags}"
        return f"/{quoted_regex(pattern, flags, allow_classes=self.is_one_terminal)}/"

    def _literal(self, part: re.Match[str]) -> str:
        if part["regex"]:
            return self._regex(part["regex"], part["flags"])
        if part["first"]:
            return _range(_text_of(part["first"]), _text_of(part["last"]))
        if not part["string"]:
            return part[0]
        text = _text_of(part["string"])
        if part["any_case"]:
            characters = (quoted_character(each, escaped(each)) for each in text)
            return f"/(?i:{''.join(characters)})/" if text else '""'
        return quoted(json.dumps(text, ensure_ascii=False)[1:-1]).replace("\x7f", r"\u007f")


def quoted_lark(definition: str) -> str:
    """The grammar of what stands between the quotes of a JSON string whose text matches
    `definition`. O(len(definition)) and the number of rules.

    Raises:
        BadRequest: it is malformed, or has what cannot be written so: control tokens, schemas,
            other grammars, other libraries, and some classes of regular expressions.
    """
    return _Grammar(definition, inside_json=True).changed()


def lark_until(definition: str, end: str) -> str:
    """The grammar of a text without the tag `end` that matches `definition`, and of `end` behind
    it. White space around the tag may occur in the text. If `end` is empty, the text is all.

    Raises:
        BadRequest: as `quoted_lark`; and for rules that refer to themselves, because then the end
            could not be told from the text.
    """
    grammar = _Grammar(definition, inside_json=False)
    if not grammar.is_one_terminal:
        raise _unsupported("'%ignore' or rules that refer to themselves")
    source = grammar.changed()
    if not end:
        return source
    without = f"/(?s:.*)/ & ~/(?s:.*){escaped(end.strip())}(?s:.*)/"
    source = source.replace("\nstart: ", "\nTEXT: ")
    return f"{source}start[lazy]: ENDED\nENDED: (TEXT & {without}) {quoted(end)}\n"


def _check(part: re.Match[str]) -> None:
    """Refuse what no changed grammar can have."""
    if part["refused"]:
        raise _unsupported(f"'{part['refused'][:40]}'")
    if part["open"]:
        raise _invalid("has a part that is never closed")
    names = [part["imported"]] if part["imported"] else _several(part)
    if unknown := next((name for name in names if name not in _COMMON), None):
        raise _unsupported(f"the import of '{unknown[:40]}'")


def _uses(parts: list[re.Match[str]]) -> dict[str, set[str]]:
    """The names that each rule and terminal is made of, in their order."""
    uses: dict[str, set[str]] = {}
    used: set[str] = set()
    for part in parts:
        if part["defined"]:
            used = uses.setdefault(part["defined"].lstrip("!?"), set())
        elif part["name"]:
            used.add(part["name"])
        elif part["imported"]:
            uses[part["called"] or part["imported"]] = set()
        elif part["several"] is not None:
            uses |= {name: set() for name in _several(part)}
    return uses


def _refers_to_itself(uses: Mapping[str, set[str]]) -> bool:
    """Whether a rule is a part of itself."""
    try:
        TopologicalSorter(uses).prepare()
    except CycleError:
        return True
    return False


def _several(part: re.Match[str]) -> list[str]:
    names: str = part["several"] or ""
    return names.replace(",", " ").split()


def _text_of(string: str) -> str:
    try:
        text: str = json.loads(string)
    except ValueError as error:
        raise _invalid(f"has a string that is not valid: {string[:40]}") from error
    return text


def _range(first: str, last: str) -> str:
    if len(first) != 1 or len(last) != 1:
        raise _invalid("has a range whose ends are not one character each")
    members = "".join(each for each in SHORT_NAMES if first <= each <= last)
    written = f"[\\x{{{ord(first):x}}}-\\x{{{ord(last):x}}}]"
    return f"/{quoted_class(written, members)}/"


def _invalid(what: str) -> BadRequest:
    return BadRequest(f"The grammar {what}.", code="invalid_value")


def _unsupported(what: str) -> BadRequest:
    text = f"The grammar of a text inside a call cannot have {what}."
    return BadRequest(text, code="unsupported_parameter")
