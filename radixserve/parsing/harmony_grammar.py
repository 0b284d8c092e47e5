"""How the calls of gpt-oss are constrained: a message whose header names a tool as its recipient
has arguments as content.

An answer is a sequence of messages. The prompt ends within the header of the first:

    <|channel|>analysis<|message|>THOUGHT<|end|><|start|>assistant
        to=functions.weather<|channel|>commentary json<|message|>{"city": "Oslo"}

The model may also write the recipient behind the channel. A call is the last message.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from radixserve.grammar.calls import Text, Tool, quoted
from radixserve.request import Grammar

_BEGINS = ("<|start|>", "<|channel|>")
_MESSAGE = "<|message|>"
_ENDS = ("<|end|>", "<|call|>", "<|return|>")


def required_call(
    tools: Sequence[Tool], *, control: Mapping[str, int], in_reasoning: bool
) -> Grammar:
    """A call, which may have one message of reasoning before it. It is written as chat templates
    write earlier calls.
    """
    text = Text(control)
    thought = f"{text.until('thought', '<|end|>')} {text.literal('<|start|>assistant')}"
    if not in_reasoning:
        thought = f"({text.literal('<|channel|>analysis<|message|>')} {thought})?"
    header = text.literal("<|channel|>commentary json<|message|>")
    rules = [f"start: {thought} {quoted(' to=functions.')} call", *_calls(tools, header, text)]
    return Grammar(kind="lark", source="\n".join([*rules, *text.rules, ""]))


def optional_call(
    tools: Sequence[Tool], *, control: Mapping[str, int], in_reasoning: bool
) -> Grammar | None:
    """Any messages, of which the last may be a call. Once a header says `to=`, it must name a tool.

    None for any text: the tokenizer lacks the control tokens of messages, so they cannot be told
    from text.
    """
    if not {*_BEGINS, _MESSAGE}.issubset(control):
        return None
    text = Text(control)
    others = set(control).difference(_BEGINS, (_MESSAGE,), _ENDS)
    begins, within = _tokens(control, _BEGINS), _tokens(control, {*others, *_BEGINS})
    rules = [
        f"start: {'content' if in_reasoning else 'header'}",
        f"header: TEXT | TEXT {within} header | TEXT {_tokens(control, (_MESSAGE, *_ENDS))} content"
        ' | recipient "functions."? call',
        f"content: TEXT | TEXT {_tokens(control, {*others, _MESSAGE, *_ENDS})} content"
        f" | TEXT {begins} header",
        f"rest: OTHER_TEXT? ({within} TEXT)* {_tokens(control, (_MESSAGE,))}",
        "recipient[lazy]: /((?s:.*)[^A-Za-z0-9_])?to=/",
        "TEXT: /(?s:.*)/",
        "OTHER_TEXT: /[^A-Za-z0-9_.:\\/-](?s:.*)/",
        *_calls(tools, "rest", text),
    ]
    return Grammar(kind="lark", source="\n".join([*rules, *text.rules, ""]))


def _calls(tools: Sequence[Tool], header: str, text: Text) -> list[str]:
    """The rule `call`: the name of a tool, `header`, and the tool's arguments."""
    each = [f"{quoted(tool.name)} {header} {tool.expansion(text)}" for tool in tools]
    return [f"call: {' | '.join(each)}"]


def _tokens(control: Mapping[str, int], names: Collection[str]) -> str:
    """The expansion for one of these control tokens, as far as the tokenizer has them."""
    return f"<[{','.join(str(control[name]) for name in sorted(names) if name in control)}]>"
