"""How the calls of each tool format are constrained: a grammar in which a call names a tool and has
the arguments of its schema, written as the format writes calls.

A format that has several ways of writing a call gets one of them, which its parser reads. Knows
neither requests nor tokenizers beyond the ids of control tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from radixserve.grammar import calls
from radixserve.grammar.calls import Layout, json_arguments, quoted
from radixserve.parsing.tool import Tool
from radixserve.request import Grammar

ANY_OBJECT: Mapping[str, Any] = {"type": "object"}


@dataclass(frozen=True, slots=True)
class Constraint:
    """The layout of a format's calls, and how it writes arguments."""

    layout: Layout
    arguments: Callable[[Mapping[str, Any]], str] = json_arguments
    parallel: bool = True  # an answer may have several calls

    def grammar(
        self,
        tools: Sequence[Tool],
        *,
        required: bool,
        parallel: bool,
        control: Mapping[str, int],
        after: str = "",
    ) -> Grammar:
        """The grammar of an answer with calls of `tools`; see `grammar.calls.tool_calls`."""
        callable_ = [
            calls.Tool(tool.name, self.arguments({**ANY_OBJECT, **tool.parameters}))
            for tool in tools
        ]
        return calls.tool_calls(
            callable_,
            self.layout,
            required=required,
            parallel=parallel and self.parallel,
            control=control,
            after=after,
        )


def _qwen_coder_arguments(schema: Mapping[str, Any]) -> str:
    def one(name: str, value: str) -> str:
        begin, end = f"<parameter={name}>\n", "\n</parameter>\n"
        return f"{quoted(begin)} {value} {quoted(end)}"

    return _tagged(schema, one)


def _glm_arguments(schema: Mapping[str, Any]) -> str:
    def one(name: str, value: str) -> str:
        begin, end = f"<arg_key>{name}</arg_key>\n<arg_value>", "</arg_value>\n"
        return f"{quoted(begin)} {value} {quoted(end)}"

    return _tagged(schema, one)


def _tagged(schema: Mapping[str, Any], one: Callable[[str, str], str]) -> str:
    """The arguments between tags, in the order of the schema; those that are not required may be
    left out.
    """
    required = set(schema.get("required") or ())
    parts = []
    for name, each in _properties(schema).items():
        written = one(name, _plain_value(each))
        parts.append(written if name in required else f"({written})?")
    return " ".join(parts) or '""'


def _plain_value(schema: Any) -> str:
    """A value between tags: strings stand without quotes, and have no `<` here."""
    if isinstance(schema, dict) and schema.get("type") == "string":
        options = schema.get("enum")
        if options and all(isinstance(option, str) for option in options):
            return "(" + " | ".join(map(quoted, options)) + ")"
        return "/[^<]*/"
    return json_arguments(schema if isinstance(schema, dict) else {})


def _pythonic_arguments(schema: Mapping[str, Any]) -> str:
    """`a=1, b="x"`: the required ones in order, then the others, which may be left out."""
    required = set(schema.get("required") or ())
    written = {
        name: f"{quoted(name + '=')} {_python_value(each)}"
        for name, each in _properties(schema).items()
    }
    first = [value for name, value in written.items() if name in required]
    others = [value for name, value in written.items() if name not in required]
    rest = " ".join(f'(", " {other})?' for other in others)
    if first:
        return " ".join([' ", " '.join(first), rest])
    starts = [
        " ".join([other, *(f'(", " {later})?' for later in others[i + 1 :])])
        for i, other in enumerate(others)
    ]
    return f"({' | '.join(starts)})?" if starts else '""'


def _python_value(schema: Any) -> str:
    if isinstance(schema, dict) and schema.get("type") == "boolean":
        return '("True" | "False")'
    return json_arguments(schema if isinstance(schema, dict) else {})


def _properties(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    properties = schema.get("properties")
    return properties if isinstance(properties, dict) else {}


_HERMES = Layout(
    before='<tool_call>\n{"name": "',
    between='", "arguments": ',
    after="}\n</tool_call>",
    separator="\n",
)

CONSTRAINTS = {
    "hermes": Constraint(_HERMES),
    "generic": Constraint(_HERMES),
    "qwen3_coder": Constraint(
        Layout(
            before="<tool_call>\n<function=",
            between=">\n",
            after="</function>\n</tool_call>",
            separator="\n",
        ),
        _qwen_coder_arguments,
    ),
    "glm": Constraint(
        Layout(before="<tool_call>", between="\n", after="</tool_call>", separator="\n"),
        _glm_arguments,
    ),
    "llama3_json": Constraint(
        Layout(before='{"name": "', between='", "parameters": ', after="}", separator="; ")
    ),
    "llama_pythonic": Constraint(
        Layout(opening="[", before="", between="(", after=")", separator=", ", closing="]"),
        _pythonic_arguments,
    ),
    "mistral": Constraint(
        Layout(
            opening="[TOOL_CALLS][",
            before='{"name": "',
            between='", "arguments": ',
            after="}",
            separator=", ",
            closing="]",
        )
    ),
    "deepseek": Constraint(
        Layout(
            opening="<｜tool▁calls▁begin｜>",
            before="<｜tool▁call▁begin｜>",
            between="<｜tool▁sep｜>",
            after="<｜tool▁call▁end｜>",
            closing="<｜tool▁calls▁end｜>",
        )
    ),
    "harmony": Constraint(
        Layout(
            before="<|channel|>commentary to=functions.",
            between=" <|constrain|>json<|message|>",
            after="",
            trigger="<|channel|>commentary to=functions.",
        ),
        parallel=False,
    ),
}
"""The constraint of every tool format, by the format's name."""
