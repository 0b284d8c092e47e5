"""Writes the grammars of calls that no marker begins: an answer is a call if it begins like one.

Some models write a call as the whole answer, such as {"name": "weather", "parameters": {...}}.
Other answers begin with a bracket, too, so the text up to the arguments decides. Once it has named
a tool and said that arguments follow, the answer is a call and obeys the tool's schema. Any other
text is free, such as {"name": "Ada", ...} if no tool is called Ada.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from radixserve.grammar.calls import Text, Tool, quoted
from radixserve.request import Grammar


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """How a model writes such calls.

    All attributes but the markers are regular expressions; NAME in them is the name of a tool.

    Attributes:
        first: everything before the arguments of the first call, leading white space included.
        other: the same for a call that follows another.
        after: what stands behind the arguments of a call.
        closing: what stands behind the last call.
        marker: a control token behind which calls may begin as they do in the beginning.
        end_marker: a control token that may stand behind the last call.
    """

    first: str
    other: str
    after: str
    closing: str = ""
    marker: str
    end_marker: str = ""


def opening_calls(
    tools: Sequence[Tool],
    opening: Opening,
    *,
    parallel: bool,
    control: Mapping[str, int],
    after: str = "",
) -> Grammar:
    """The grammar of an answer that is free text, or calls of `tools` if it begins like one.

    With `after` everything up to and including this text is free. Nothing follows the calls. A
    marker that is none of the `control` tokens is not looked for. Cost: the length of the schemas.
    """
    text = Text(control)
    calls = [
        "first",
        "other*" if parallel else "",
        f"/{opening.closing}/" if opening.closing else "",
        f"({text.literal(opening.end_marker)})?" if opening.end_marker in control else "",
    ]
    rules = [
        f"start: {text.until('lead', after) if after else ''} begun",
        f"begun: {' | '.join(('calls', 'OTHER', *_with_control_tokens(text, opening, control)))}",
        f"calls: {' '.join(calls)}",
        "OTHER: /(?s:.*)/ & ~(FIRST /(?s:.*)/)",
        f"FIRST: BEFORE_FIRST ({' | '.join(quoted(tool.name) for tool in tools)}) BEHIND_FIRST",
        *_heads("first", opening.first, tools),
        *_heads("other", opening.other, tools),
    ]
    for i, tool in enumerate(tools):
        rules.append(f"arguments_{i}: {tool.expansion(text)} /{opening.after}/")
    return Grammar(kind="lark", source="\n".join([*rules, *text.rules, ""]))


def _heads(name: str, pattern: str, tools: Sequence[Tool]) -> Iterator[str]:
    """The rule `name` for a call of any of the tools. What stands before its arguments is one
    terminal, because a text that begins like it is told from it by its last character only.
    """
    upper, (before, behind) = name.upper(), pattern.split("NAME")
    yield f"BEFORE_{upper}: /{before}/"
    yield f"BEHIND_{upper}: /{behind}/"
    yield f"{name}: {' | '.join(f'{upper}_{i} arguments_{i}' for i in range(len(tools)))}"
    for i, tool in enumerate(tools):
        yield f"{upper}_{i}: BEFORE_{upper} {quoted(tool.name)} BEHIND_{upper}"


def _with_control_tokens(text: Text, opening: Opening, control: Mapping[str, int]) -> Iterator[str]:
    """The alternatives of an answer that has control tokens: behind the marker it begins anew."""
    marker = control.get(opening.marker)
    if marker is not None:
        yield f"OTHER <[{marker}]> begun"
    if others := sorted(set(control.values()) - {marker}):
        again = "" if marker is None else f"(<[{marker}]> begun)?"
        yield f"OTHER <[{','.join(map(str, others))}]> {text.free(opening.marker)} {again}"
