"""Writes the grammars of tool calls: which text a model may write around calls, and that a call
names a tool and has the arguments of its schema.

A model's way of writing calls is a `Layout`; for the tags of Hermes and Qwen it is

    Layout(before='<tool_call>\\n{"name": "', between='", "arguments": ',
           after="}\\n</tool_call>", separator="\\n")

and what may be called is a `Tool` each. Then

    tool_calls(tools, layout, required=False)   free text, then maybe calls, maybe text again, ...
    tool_calls(tools, layout)                   calls only, at least one
    tool_calls(tools, layout, parallel=False)   exactly one call (with required=False: at most one,
                                                and nothing behind it)
    tool_calls([tool], layout, ...)             the same with this tool only

With `after="</think>"` everything up to and including this text is free. Where a call begins, the
model has no choice but to write it to its end; where nothing but its layout can follow, its tokens
are not even drawn.

A tag may be a token of its own or several tokens of text. `control` has the tokens that cannot be
text; a tag that is one of them is written as that token, any other tag as text. Free text may hold
control tokens, such as those around reasoning, but not the one that begins a call.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from radixserve.request import Grammar

NUMBER = "\ufdd0"
"""Stands for a whole number of up to four digits in the parts of a layout. No text has this
character.
"""
_NO_TOKENS: Mapping[str, int] = {}
_ANY_TEXT = "TEXT: /(?s:.*)/"
_REGEX_SIGNS = re.compile(r"[\\.+*?()|\[\]{}^$/]")


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that may be called. `arguments` is an expansion of a lark rule: what a call has
    between the parts of its layout, `json_arguments` for arguments in JSON. Where it needs rules
    of its own or text that may be control tokens, it is a function of the grammar's `Text`.
    """

    name: str
    arguments: str | Callable[[Text], str]

    def expansion(self, text: Text) -> str:
        """`arguments` as an expansion."""
        return self.arguments if isinstance(self.arguments, str) else self.arguments(text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How a model writes calls. Its parts may hold `NUMBER`.

    opening  before NAME between ARGUMENTS after  separator  before ... after  closing
    """

    before: str
    between: str
    after: str
    separator: str = ""
    opening: str = ""
    closing: str = ""
    # The text in which a call is recognised: a beginning of `opening`, or of `before` if there is
    # none. Empty: the control token at that place, or else all of it.
    trigger: str = ""


def json_arguments(schema: Mapping[str, Any]) -> str:
    """The expansion of arguments in JSON that obey `schema`, spaced as `json.dumps` does."""
    return "%json_line " + json.dumps(schema)


def json_string(definition: str) -> str:
    """The expansion of a JSON string whose text matches a grammar in Lark's syntax."""
    return "%json_string " + json.dumps({"lark": definition})


def text_until(definition: str, end: str) -> str:
    """The expansion of a text that matches a grammar in Lark's syntax, and of `end` behind it."""
    return "%text_until " + json.dumps({"lark": definition, "end": end})


def tool_calls(
    tools: Sequence[Tool],
    layout: Layout,
    *,
    required: bool = True,
    parallel: bool = True,
    control: Mapping[str, int] = _NO_TOKENS,
    after: str = "",
) -> Grammar:
    """The grammar of an output with calls of `tools`, of which there is at least one; see above.

    `control` maps the names of control tokens to their ids. Cost: the length of the schemas.
    """
    text = Text(control)
    first = layout.opening + layout.before
    trigger = layout.trigger or text.first_part(first)
    more = f"({text.literal(layout.separator)} {text.literal(layout.before)} call)*"
    rest = f"call {more if parallel else ''} {text.literal(layout.closing)}"
    rules = [f"call: {' | '.join(f'call_{i}' for i in range(len(tools)))}"]
    for i, tool in enumerate(tools):
        parts = (
            text.literal(tool.name + layout.between),
            tool.expansion(text),
            text.literal(layout.after),
        )
        rules.append(f"call_{i}: {' '.join(parts)}")
    lead = f"{text.until('lead', after)} SPACE?" if after else ""
    if required:
        start = f"{lead} {text.literal(first)} {rest}"
    else:
        block = f"{text.until('begin', trigger)} {text.literal(first[len(trigger) :])} {rest}"
        start = (
            f"{lead} ({block})* {text.free(trigger)}"
            if parallel
            else (f"{lead} ({text.free(trigger)} | {block})")
        )
    source = "\n".join([f"start: {start}", *rules, *text.rules, "SPACE: /[ \\t\\r\\n]+/", ""])
    return Grammar(kind="lark", source=source)


def until(marker: str, control: Mapping[str, int]) -> tuple[str, list[str]]:
    """The expansion for any text up to and including the first `marker`, and the rules that it
    needs.
    """
    text = Text(control)
    return text.until("lead", marker), text.rules


class Text:
    """Expansions for text that is given and for text that is free, and the rules they need.

    Attributes:
        control: the control tokens by name.
    """

    def __init__(self, control: Mapping[str, int]) -> None:
        self.control = control
        self._names = _names_in(control)
        self._rules: dict[str, None] = {}  # in the order in which they were needed

    @property
    def rules(self) -> list[str]:
        """The rules that the expansions so far need."""
        return list(self._rules)

    def rule(self, expansion: str) -> str:
        """The name of a new rule with this expansion."""
        name = f"rule_{len(self._rules)}"
        self._add(f"{name}: {expansion}")
        return name

    def literal(self, text: str) -> str:
        """Exactly `text`, with a number in place of each `NUMBER`."""
        return " ".join(map(self._part, self._parts(text)))

    def first_part(self, text: str) -> str:
        """The control token with which `text` begins, or else all of it."""
        first = next(self._parts(text), "")
        return first if first in self.control else text

    def free(self, marker: str) -> str:
        """Any text without `marker`."""
        if marker in self.control:
            return f"<[^{self.control[marker]}]>*"
        return f"{self._pieces()} TEXT"

    def until(self, name: str, marker: str) -> str:
        """Any text up to and including the first `marker`; `name` is for its rule."""
        if marker in self.control:
            return f"<[^{self.control[marker]}]>* <[{self.control[marker]}]>"
        return f"{self._pieces()} {self._lazy(name, marker)}"

    def value(self, marker: str) -> str:
        """Any text without control tokens, up to and including the first `marker`."""
        if marker in self.control:
            self._add(_ANY_TEXT)
            return f"TEXT <[{self.control[marker]}]>"
        return self._lazy("value", marker)

    def _lazy(self, name: str, marker: str) -> str:
        self._add(f"{name}[lazy]: /(?s:.*){escaped(marker)}/")
        return name

    def _add(self, rule: str) -> None:
        self._rules[rule] = None

    def _part(self, part: str) -> str:
        if part == NUMBER:
            self._add("NUMBER: /[0-9]{1,4}/")
            return "NUMBER"
        return f"<[{self.control[part]}]>" if part in self.control else quoted(part)

    def _parts(self, text: str) -> Iterator[str]:
        """`text` cut around the names of control tokens and `NUMBER`; no part is empty."""
        return filter(None, self._names.split(text))

    def _pieces(self) -> str:
        """Text, each piece of which ends with a control token."""
        self._add(_ANY_TEXT)
        if not self.control:
            return ""
        ids = ",".join(map(str, sorted(self.control.values())))
        self._add(f"piece: TEXT <[{ids}]>")
        return "piece*"


def escaped(text: str) -> str:
    """`text` as a part of a regular expression in a lark source."""
    return _REGEX_SIGNS.sub(r"\\\g<0>", text).replace("\n", r"\n")


def quoted(text: str) -> str:
    """`text` as a string of a lark source."""
    return json.dumps(text, ensure_ascii=False)


def choice_rules(texts: Iterable[str]) -> str:
    """The expansion of a lark rule that is one of `texts`, and the terminal that it needs.

    Alternatives of a terminal are one item for the parser. Those of a rule are one each, and the
    parser has room for 2,000.
    """
    return "CHOICE\nCHOICE: " + " | ".join(map(quoted, texts))


def _names_in(control: Mapping[str, int]) -> re.Pattern[str]:
    """Matches `NUMBER` or the name of a control token, of several the longest."""
    names = sorted(control, key=len, reverse=True)
    return re.compile(f"({'|'.join(map(re.escape, [*names, NUMBER]))})")
