"""The model's chat template: a conversation in, text out.

Owns the choice between the templates of a model, what a client may set in them and how much text
they may make. A template is a program written by the model's author: it runs in the sandbox of
transformers, may raise anything and may never end, so this belongs in a process that can be killed.
Knows no tokens.
"""

from __future__ import annotations

import inspect

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerFast

from radixserve.errors import BadRequest, first_line
from radixserve.text.conversation import Conversation, Ending, client_strings, uses_tools

_ENDINGS: dict[Ending, dict[str, bool]] = {
    "answer": {"add_generation_prompt": True},
    "closed": {"add_generation_prompt": False},
    "open": {"add_generation_prompt": False, "continue_final_message": True},
}
_REASONING = ("reasoning_effort", "enable_thinking", "reasoning_content", "<think>")
# Options that would replace what the server passes to a template.
_PASSED = inspect.signature(PreTrainedTokenizerFast.apply_chat_template).parameters
_RESERVED = frozenset(("messages", "conversations", *_PASSED))
# A rendered conversation may be this many times as long as what the client wrote, plus some
# characters.
_MAX_GROWTH = 4
_MAX_GROWTH_CHARS = 1 << 20


class ChatTemplate:
    """The chat template of a model, or the two that some models have for conversations without and
    with tools.

    Attributes:
        text: the template of conversations with tools, which may be that of all others too; None
            if the model has no template.
    """

    def __init__(self, loaded: PreTrainedTokenizerFast, override: str | None = None) -> None:
        """`override` replaces the model's own templates."""
        self._loaded = loaded
        self._plain = override or _own_template(loaded, with_tools=False)
        self.text = override or _own_template(loaded, with_tools=True)

    @property
    def has_reasoning(self) -> bool:
        """Whether the template mentions reasoning, so that fields such as `reasoning_effort` would
        have an effect on this model.
        """
        return any(word in (self.text or "") for word in _REASONING)

    @property
    def source(self) -> str:
        """All code that may write a part of a prompt."""
        return f"{self._plain or ''}\n{self.text or ''}"

    def render(self, conversation: Conversation) -> str:
        """The text of `conversation`.

        Raises:
            BadRequest: there is no template, it refuses this conversation or makes too much text of
                it, or an option has the name of something else.
        """
        template = self.text if uses_tools(conversation) else self._plain
        if template is None:
            raise BadRequest(
                "this model has no chat template: use /v1/completions", param="messages"
            )
        _check_options(conversation)
        try:
            text: str = self._loaded.apply_chat_template(
                conversation.messages,
                tools=conversation.tools or None,
                documents=conversation.documents or None,
                chat_template=template,
                tokenize=False,
                **_ENDINGS[conversation.ending],
                **conversation.options,
            )
        except Exception as error:  # template code can raise any exception
            raise BadRequest(_refusal(error, conversation.ending), param="messages") from error
        _check_growth(text, conversation)
        return text


def _own_template(loaded: PreTrainedTokenizerFast, *, with_tools: bool) -> str | None:
    """The model's own template; None if it has none."""
    try:
        template: str = loaded.get_chat_template(tools=[] if with_tools else None)
    except ValueError:
        return None
    return template


def _check_options(conversation: Conversation) -> None:
    for name in conversation.options:
        if name in _RESERVED or not name.isidentifier():
            raise BadRequest(
                f"'chat_template_kwargs' cannot set {name!r}.",
                param=f"chat_template_kwargs.{name}",
            )


def _check_growth(text: str, conversation: Conversation) -> None:
    written = sum(map(len, client_strings(conversation)))
    most = written * _MAX_GROWTH + _MAX_GROWTH_CHARS
    if len(text) > most:
        raise BadRequest(
            f"the model's chat template makes {len(text)} characters of these messages, more "
            f"than the limit of {most}",
            param="messages",
        )


def _refusal(error: Exception, ending: Ending) -> str:
    if type(error) is TemplateError:  # raised by the template itself, through raise_exception()
        return f"the model's chat template refuses these messages: {first_line(error)}"
    if ending == "open" and type(error) is ValueError:  # its text was not found
        return "the model's chat template changes the last message, so it cannot be continued"
    return f"the model's chat template cannot render these messages ({type(error).__name__})"
