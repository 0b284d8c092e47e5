"""Every tool format, and which one a model with a given chat template writes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from radixserve.parsing.answer import Calls, NoCalls, read_answer
from radixserve.parsing.harmony import HarmonyCalls
from radixserve.parsing.json_calls import (
    CohereCalls,
    DeepSeekCalls,
    HermesCalls,
    KimiCalls,
    LlamaCalls,
    MistralCalls,
)
from radixserve.parsing.output import Output, call_id, short_call_id
from radixserve.parsing.parser import MarkupParser, Parser, PlainParser
from radixserve.parsing.pythonic import LfmCalls, PythonicCalls
from radixserve.parsing.reader import Reader
from radixserve.parsing.reasoning import HARMONY, ReasoningFormat
from radixserve.parsing.tag_calls import GlmCalls, MiniMaxCalls, QwenCoderCalls
from radixserve.parsing.tool import Tool


@dataclass(frozen=True, slots=True)
class Format:
    """How a family of models writes tool calls.

    Attributes:
        markers: strings that may be special tokens of the tokenizer and must be spelled out in the
            text that the parser gets, if tools are offered.
        ends: strings or tokens that end a turn in addition to the usual ones.
    """

    name: str
    calls: Calls
    markers: frozenset[str]
    ends: tuple[str, ...] = ()
    new_id: Callable[[], str] = call_id

    def parser(
        self,
        tools: Sequence[Tool],
        *,
        reasoning: ReasoningFormat | None = None,
        starts_in_reasoning: bool = False,
    ) -> Parser:
        """A parser for one answer; see `parser`."""
        return parser(self, tools, reasoning=reasoning, starts_in_reasoning=starts_in_reasoning)


def parser(
    tool_format: Format | None,
    tools: Sequence[Tool] = (),
    *,
    reasoning: ReasoningFormat | None = None,
    starts_in_reasoning: bool = False,
) -> Parser:
    """A parser for one answer.

    Without `tools` the markup of calls is text. `starts_in_reasoning`: the prompt ends with the
    marker that begins reasoning (`ReasoningFormat.opened_by`); it has no effect without
    `reasoning`.
    """
    if not tools:
        tool_format = FORMATS["harmony"] if reasoning is HARMONY else None
    if tool_format is None and reasoning is None:
        return PlainParser()
    calls = NoCalls() if tool_format is None else tool_format.calls
    reader = Reader()
    output = Output(tools, call_id if tool_format is None else tool_format.new_id)
    reading = read_answer(reader, output, calls, reasoning, starts_in_reasoning)
    return MarkupParser(reader, output, reading)


FORMATS = {
    each.name: each
    for each in (
        Format("hermes", HermesCalls(), HermesCalls.markers),
        Format("qwen3_coder", QwenCoderCalls(), QwenCoderCalls.markers),
        Format("seed_oss", QwenCoderCalls(), QwenCoderCalls.markers),
        Format("llama3_json", LlamaCalls(), LlamaCalls.markers, ("<|eom_id|>",)),
        Format("llama_pythonic", PythonicCalls(), PythonicCalls.markers, ("<|eom_id|>",)),
        Format("mistral", MistralCalls(), MistralCalls.markers, new_id=short_call_id),
        Format("mistral_args", MistralCalls(), MistralCalls.markers, new_id=short_call_id),
        Format("deepseek", DeepSeekCalls(), DeepSeekCalls.markers),
        Format("deepseek_v31", DeepSeekCalls(), DeepSeekCalls.markers),
        Format("glm", GlmCalls(), GlmCalls.markers),
        Format("glm47", GlmCalls(), GlmCalls.markers),
        Format("kimi_k2", KimiCalls(), KimiCalls.markers),
        Format("minimax_m2", MiniMaxCalls(), MiniMaxCalls.markers),
        Format("cohere", CohereCalls(), CohereCalls.markers),
        Format("lfm2", LfmCalls(), LfmCalls.markers),
        Format("harmony", HarmonyCalls(), HarmonyCalls.markers, ("<|call|>", "<|return|>")),
        Format("generic", HermesCalls(), HermesCalls.markers),
    )
}
"""Every tool format by the name that `--tool-parser` takes. Two that share a parser differ in how
calls are written when they are constrained (`radixserve.parsing.layouts`).
"""

_SIGNS: tuple[tuple[str | None, tuple[str, ...]], ...] = (
    # formats that are not known, although their templates contain signs of known ones
    (None, ("]<]minimax[>[",)),
    (None, ("<tool_calls>[",)),
    (None, ("<|python_tag|>", "<function=")),
    ("harmony", ("<|channel|>", "<|message|>")),
    ("kimi_k2", ("<|tool_calls_section_begin|>", "<|tool_call_argument_begin|>")),
    ("minimax_m2", ("<minimax:tool_call>", "<invoke name=")),
    ("cohere", ("<|START_ACTION|>", '"tool_name"')),
    ("lfm2", ("<|tool_call_start|>",)),
    ("lfm2", ("<|tool_list_start|>",)),
    ("deepseek", ("<｜tool▁calls▁begin｜>", "```json")),
    ("deepseek_v31", ("<｜tool▁calls▁begin｜>",)),
    ("mistral_args", ("[TOOL_CALLS]", "[ARGS]")),
    ("mistral", ("[TOOL_CALLS]",)),
    ("seed_oss", ("<seed:tool_call>", "<function=")),
    ("qwen3_coder", ("<function=", "<parameter=")),
    ("glm47", ("</arg_key><arg_value>",)),
    ("glm", ("<arg_key>",)),
    ("hermes", ("<tool_call>",)),
    ("llama_pythonic", ("<|python_start|>",)),
    ("llama_pythonic", ("[func_name1(",)),
    ("llama3_json", ("<|python_tag|>",)),
    ("llama3_json", ('"parameters": dictionary',)),
)
"""Formats and what their templates contain; the first whose strings all occur is taken."""


def detect_tool_format(chat_template: str) -> str | None:
    """The name of the format that a model with this chat template writes tool calls in; None if
    the template has no place for tools, or an unknown one.
    """
    for name, signs in _SIGNS:
        if all(sign in chat_template for sign in signs):
            return name
    return None
