"""How the calls of each tool format are constrained: a grammar in which a call names a tool and has
the arguments of its schema, written as the format writes calls.

Calls are written as the chat templates of the format write earlier calls, so that the next prompt
begins with the tokens of this answer. Knows neither requests nor tokenizers beyond the ids of
control tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from radixserve.grammar import calls
from radixserve.grammar.calls import Layout, Text
from radixserve.parsing.argument_layouts import Arguments, json_object, keywords, tagged
from radixserve.parsing.tool import Tool
from radixserve.request import Grammar

ANY_OBJECT: Mapping[str, Any] = {"type": "object"}


@dataclass(frozen=True, slots=True)
class Constraint:
    """The layout of a format's calls, and how it writes arguments.

    Attributes:
        parallel: an answer may have several calls.
        anywhere: a marker that means nothing else begins a call, so it may stand behind any text.
    """

    layout: Layout
    arguments: Arguments = json_object
    parallel: bool = True
    anywhere: bool = True

    def grammar(
        self,
        tools: Sequence[Tool],
        *,
        required: bool,
        parallel: bool,
        control: Mapping[str, int],
        after: str = "",
    ) -> Grammar | None:
        """The grammar of an answer with calls of `tools`; see `grammar.calls.tool_calls`. None for
        any text: calls that are not required and have no marker of their own are not constrained.
        """
        if not required and not self.anywhere:
            return None

        def arguments_of(tool: Tool) -> Callable[[Text], str]:
            return lambda text: self.arguments({**ANY_OBJECT, **tool.parameters}, text)

        callable_ = [calls.Tool(tool.name, arguments_of(tool)) for tool in tools]
        return calls.tool_calls(
            callable_,
            self.layout,
            required=required,
            parallel=parallel and self.parallel,
            control=control,
            after=after,
        )


_HERMES = Layout(
    before='<tool_call>\n{"name": "',
    between='", "arguments": ',
    after="}\n</tool_call>",
    separator="\n",
)

# As `text.generic_tools` writes earlier calls, so that a call and its history are the same tokens.
_GENERIC = Layout(
    before='<tool_call>{"name": "',
    between='", "arguments": ',
    after="}</tool_call>",
    separator="\n",
    trigger="<tool_call>",
)

CONSTRAINTS = {
    "hermes": Constraint(_HERMES),
    "generic": Constraint(_GENERIC),
    "qwen3_coder": Constraint(
        Layout(
            before="<tool_call>\n<function=",
            between=">\n",
            after="</function>\n</tool_call>",
            separator="\n",
        ),
        tagged("<parameter={}>\n", "\n", "</parameter>"),
    ),
    "glm": Constraint(
        Layout(before="<tool_call>", between="\n", after="</tool_call>", separator="\n"),
        tagged("<arg_key>{}</arg_key>\n<arg_value>", "", "</arg_value>"),
    ),
    "llama3_json": Constraint(
        Layout(before='{"name": "', between='", "parameters": ', after="}", separator="; "),
        anywhere=False,
    ),
    "llama_pythonic": Constraint(
        Layout(opening="[", before="", between="(", after=")", separator=", ", closing="]"),
        keywords,
        anywhere=False,
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
    "mistral_args": Constraint(Layout(before="[TOOL_CALLS]", between="[ARGS]", after="")),
    "deepseek": Constraint(
        Layout(
            opening="<｜tool▁calls▁begin｜>",
            before="<｜tool▁call▁begin｜>function<｜tool▁sep｜>",
            between="\n```json\n",
            after="\n```<｜tool▁call▁end｜>",
            separator="\n",
            closing="<｜tool▁calls▁end｜>",
        )
    ),
    "deepseek_v31": Constraint(
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
        ),
        parallel=False,
        anywhere=False,
    ),
}
"""The constraint of every tool format, by the format's name."""
