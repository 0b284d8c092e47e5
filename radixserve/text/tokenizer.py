"""The model's tokenizer and chat template, for use in a tokenizer process.

Loads every fast tokenizer that transformers can load, by folder or hub name, without importing
torch: `PreTrainedTokenizerFast` of transformers reads tokenizer.json directly, while
`AutoTokenizer` imports torch to read the model's configuration first. A chat template is a program
written by the model's author and may never end, so this runs in a process that can be killed
(`worker.py`). Knows nothing of requests and HTTP.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import tokenizers
from transformers import PreTrainedTokenizerFast

from radixserve.errors import BadRequest, ModelRefused, first_line
from radixserve.text.control import ControlTokens, unused_marks
from radixserve.text.conversation import (
    Conversation,
    changed,
    client_strings,
    uses_tools,
)
from radixserve.text.detokenizer import Detokenizer
from radixserve.text.generic_tools import LITERALS, with_generic_tools
from radixserve.text.messages import NOT_UNICODE, TAIL_CHARS, TOO_DEEP, Encoded
from radixserve.text.probes import try_template
from radixserve.text.templates import ChatTemplate
from radixserve.text.tool_forms import with_argument_text, with_short_ids

_CODE = "invalid_value"  # of every refusal


class Tokenizer(Detokenizer):
    """Turns text and conversations into token ids, and ids into text.

    Attributes:
        template: the model's chat template; without one `encode_chat` always fails.
        facts: what the template can do.
    """

    def __init__(
        self,
        loaded: PreTrainedTokenizerFast,
        *,
        chat_template: str | None = None,
        allow_control_tokens: bool = False,
    ) -> None:
        """`chat_template` replaces the model's own.

        Raises:
            ModelRefused: the chat template does not compile, or tokens cannot be turned into text
                one by one.
        """
        self._loaded = loaded
        self._backend: tokenizers.Tokenizer = loaded.backend_tokenizer
        # Files saved after training may still set fixed lengths; a server never cuts or pads a
        # prompt.
        self._backend.no_truncation()
        self._backend.no_padding()
        super().__init__(self._backend)
        self.template = ChatTemplate(loaded, chat_template)
        self.facts = try_template(self.template)
        self._control = None
        if not allow_control_tokens:
            source = self.template.source + ("" if self.facts.has_tools else LITERALS)
            self._control = ControlTokens(self._backend, self.facts.written, source)

    @classmethod
    def load(cls, folder_or_name: str) -> Tokenizer:
        """`Tokenizer` of `load_files`, with the model's own chat template."""
        return cls(load_files(folder_or_name))

    @property
    def eos_token_id(self) -> int | None:
        """The token that ends a text, as the tokenizer's own configuration names it."""
        found: int | None = self._loaded.eos_token_id
        return found

    def to_json(self) -> str:
        """The tokenizer as JSON for `tokenizers.Tokenizer.from_str`, from which a `Detokenizer` can
        be made.
        """
        text: str = self._backend.to_str()
        return text

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Token ids of `text`; about 0.7 us per character, with the GIL released.

        Names of control tokens in `text` become tokens only if that is allowed.

        Raises:
            BadRequest: `text` is not valid Unicode (a lone surrogate), or the tokenizer fails.
        """
        with _refusals(param=None):
            if self._control is not None and self._control.may_occur([text]):
                return self._control.encode_text(text, add_special_tokens=add_special_tokens)
            return self._encode(text, add_special_tokens)

    def encode_chat(self, conversation: Conversation) -> Encoded:
        """Token ids of `conversation` in the model's chat template, and the end of its text.

        Names of control tokens in what the client wrote become tokens only if that is allowed;
        those that the template writes always do.

        Raises:
            BadRequest: param "messages" or that of an option; there is no template, it refuses
                this conversation, or the tokenizer fails.
        """
        with _refusals(param="messages"):
            rendered = self._render(conversation)
            ids = self._encode_rendered(conversation, rendered)
        return Encoded(ids, rendered[-TAIL_CHARS:])

    def _encode_rendered(self, conversation: Conversation, rendered: str) -> list[int]:
        add = conversation.add_special_tokens
        texts = client_strings(conversation)
        if self._control is None or not self._control.may_be_made(texts):
            return self._encode(rendered, add)

        def render(change: Callable[[str], str]) -> str:
            return self._render(changed(conversation, change))

        marks = unused_marks([rendered, *texts])
        return self._control.encode_rendered(rendered, render, marks, add_special_tokens=add)

    def _encode(self, text: str, add_special_tokens: bool) -> list[int]:
        # encode() keeps the GIL and tracks offsets; this one does neither.
        [encoding] = self._backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        ids: list[int] = encoding.ids
        return ids

    def _render(self, conversation: Conversation) -> str:
        if uses_tools(conversation):
            try:
                conversation = self._adapted(conversation)
            except (KeyError, ValueError, TypeError, AttributeError) as error:
                raise BadRequest(
                    f"a tool, tool call or tool result is not complete ({type(error).__name__})"
                ) from error
        return self.template.render(conversation)

    def _adapted(self, conversation: Conversation) -> Conversation:
        """`conversation` with tools in the form that the template can render."""
        if not self.facts.has_tools:
            return with_generic_tools(conversation, has_system=self.facts.has_system)
        if self.facts.wants_argument_text:
            conversation = with_argument_text(conversation)
        if self.facts.wants_short_ids:
            conversation = with_short_ids(conversation)
        return conversation


def load_files(folder_or_name: str) -> PreTrainedTokenizerFast:
    """Load from a folder or by hub name. Takes about a second, mostly to import transformers.

    Raises:
        ModelRefused: there is no usable fast tokenizer.
    """
    is_local = Path(folder_or_name).is_dir()
    if not is_local and folder_or_name.startswith(("/", ".", "~")):
        raise ModelRefused(f"there is no folder {folder_or_name!r}")
    try:
        return PreTrainedTokenizerFast.from_pretrained(folder_or_name, local_files_only=is_local)
    except Exception as error:  # the libraries below raise bare Exception for a malformed file
        reason = first_line(error)
        hint = (
            "a folder needs tokenizer.json, which "
            "AutoTokenizer.from_pretrained(...).save_pretrained(...) writes"
        )
        raise ModelRefused(
            f"cannot load the tokenizer of {folder_or_name!r}: {reason} ({hint})"
        ) from error


@contextmanager
def _refusals(param: str | None) -> Generator[None]:
    """Turn exceptions of the tokenizer into a refusal of this one request."""
    try:
        yield
    except BadRequest as refusal:
        refusal.param, refusal.code = refusal.param or param, _CODE
        raise
    except RecursionError as error:
        raise BadRequest(TOO_DEEP, param=param, code=_CODE) from error
    except (TypeError, UnicodeEncodeError) as error:
        raise BadRequest(NOT_UNICODE, param=param, code=_CODE) from error
    except BaseException as error:
        # The library raises bare Exception, for example where a regular expression takes too many
        # steps; a panic in its Rust code arrives as a BaseException.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise BadRequest(
            f"the tokenizer failed on this text: {first_line(error)}", param=param, code=_CODE
        ) from error
