"""How the calls of each tool format are constrained: a grammar in which a call names a tool and has
the arguments of its schema, written as the format writes calls.

Calls are written as the chat templates of the format write earlier calls, so that the next prompt
begins with the tokens of this answer. Knows neither requests nor tokenizers beyond the ids of
control tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from radixserve.grammar import calls
from radixserve.grammar.calls import NUMBER, Layout, Text
from radixserve.grammar.opening_calls import Opening, opening_calls
from radixserve.parsing import harmony_grammar
from radixserve.parsing.argument_layouts import JSON_OBJECT, KEYWORDS, Arguments, tagged
from radixserve.parsing.tool import Tool
from radixserve.request import Grammar

ANY_OBJECT: Mapping[str, Any] = {"type": "object"}
_SPACE = r"[ \t\r\n]{0,40}"  # with no limit a weak model may write nothing else


class Constrains(Protocol):
    """Writes the grammars of a format's calls."""

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
        any text: calls that are not required cannot be told from text.
        """


@dataclass(frozen=True, slots=True)
class Constraint:
    """The layout of a format's calls, and how it writes arguments.

    Attributes:
        opening: how calls that are not required begin; None: with the marker that the layout
            begins with, behind any text.
    """

    layout: Layout
    arguments: Arguments = JSON_OBJECT
    opening: Opening | None = None

    def grammar(
        self,
        tools: Sequence[Tool],
        *,
        required: bool,
        parallel: bool,
        control: Mapping[str, int],
        after: str = "",
    ) -> Grammar | None:
        """See `Constrains.grammar`."""
        written = _written(tools, self.arguments)
        if self.opening is not None and not required:
            return opening_calls(
                written, self.opening, parallel=parallel, control=control, after=after
            )
        return calls.tool_calls(
            written,
            self.layout,
            required=required,
            parallel=parallel,
            control=control,
            after=after,
        )


class HarmonyConstraint:
    """The constraint of gpt-oss's messages, of which one at most is a call."""

    def grammar(
        self,
        tools: Sequence[Tool],
        *,
        required: bool,
        parallel: bool,
        control: Mapping[str, int],
        after: str = "",
    ) -> Grammar | None:
        """See `Constrains.grammar`."""
        write = harmony_grammar.required_call if required else harmony_grammar.optional_call
        written = _written(tools, JSON_OBJECT)
        return write(written, control=control, in_reasoning=bool(after))


def _written(tools: Sequence[Tool], arguments: Arguments) -> list[calls.Tool]:
    """`tools` with their arguments as a format writes them."""

    def arguments_of(tool: Tool) -> Callable[[Text], str]:
        if (grammar := tool.text_grammar) is not None:
            return lambda text: arguments.of_text(tool.text_parameter, grammar, text)
        return lambda text: arguments.of_schema({**ANY_OBJECT, **tool.parameters}, text)

    return [calls.Tool(tool.name, arguments_of(tool)) for tool in tools]


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


def _functions(tag: str) -> Layout:
    return Layout(
        before=f"<{tag}>\n<function=",
        between=">\n",
        after=f"</function>\n</{tag}>",
        separator="\n",
    )


# With every spacing and every name of a member that the parser takes.
_LLAMA_CALL = (
    r'S\{S("type"S:S"function"S,S)?"(name|function)"S:S"NAME"S,S"(parameters|arguments)"S:S'
).replace("S", _SPACE)
_LLAMA = Opening(
    first=_LLAMA_CALL,
    other=f"{_SPACE};?{_LLAMA_CALL}",
    after=rf"{_SPACE}\}}",
    marker="<|python_tag|>",
)
_PYTHONIC = Opening(
    first=rf"{_SPACE}\[{_SPACE}NAME\({_SPACE}",
    other=rf"{_SPACE},{_SPACE}NAME\({_SPACE}",
    after=rf"{_SPACE}\)",
    closing=rf"{_SPACE}\]",
    marker="<|python_start|>",
    end_marker="<|python_end|>",
)

CONSTRAINTS: Mapping[str, Constrains] = {
    "hermes": Constraint(_HERMES),
    "generic": Constraint(_GENERIC),
    "qwen3_coder": Constraint(
        _functions("tool_call"), tagged("<parameter={}>\n", "\n", "</parameter>", "\n")
    ),
    "seed_oss": Constraint(
        _functions("seed:tool_call"), tagged("<parameter={}>", "", "</parameter>", "\n")
    ),
    "glm": Constraint(
        Layout(before="<tool_call>", between="\n", after="</tool_call>", separator="\n"),
        tagged("<arg_key>{}</arg_key>\n<arg_value>", "", "</arg_value>", "\n"),
    ),
    "glm47": Constraint(
        Layout(before="<tool_call>", between="", after="</tool_call>"),
        tagged("<arg_key>{}</arg_key><arg_value>", "", "</arg_value>", ""),
    ),
    "llama3_json": Constraint(
        Layout(before='{"name": "', between='", "parameters": ', after="}", separator="; "),
        opening=_LLAMA,
    ),
    "llama_pythonic": Constraint(
        Layout(opening="[", before="", between="(", after=")", separator=", ", closing="]"),
        KEYWORDS,
        _PYTHONIC,
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
    "kimi_k2": Constraint(
        Layout(
            opening="<|tool_calls_section_begin|>",
            before="<|tool_call_begin|>functions.",
            between=f":{NUMBER}<|tool_call_argument_begin|>",
            after="<|tool_call_end|>",
            closing="<|tool_calls_section_end|>",
        )
    ),
    "minimax_m2": Constraint(
        Layout(
            opening="<minimax:tool_call>\n",
            before='<invoke name="',
            between='">\n',
            after="</invoke>\n",
            closing="</minimax:tool_call>",
        ),
        tagged('<parameter name="{}">', "", "</parameter>", "\n"),
    ),
    "cohere": Constraint(
        Layout(
            opening="<|START_ACTION|>[\n",
            before=f'    {{"tool_call_id": "{NUMBER}", "tool_name": "',
            between='", "parameters": ',
            after="}",
            separator=",\n",
            closing="\n]<|END_ACTION|>",
            trigger="<|START_ACTION|>",
        )
    ),
    "lfm2": Constraint(
        Layout(
            opening="<|tool_call_start|>[",
            before="",
            between="(",
            after=")",
            separator=", ",
            closing="]<|tool_call_end|>",
        ),
        KEYWORDS,
    ),
    "harmony": HarmonyConstraint(),
}
"""The constraint of every tool format, by the format's name."""
