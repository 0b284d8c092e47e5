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
from jinja2.exceptions import TemplateError, TemplateSyntaxError
from transformers import PreTrainedTokenizerFast

from radixserve.errors import BadRequest, ModelRefused, first_line
from radixserve.text.control import ControlTokens, unused_marks
from radixserve.text.detokenizer import Detokenizer
from radixserve.text.messages import NOT_UNICODE, Ending

Messages = list[dict[str, str]]

_ENDINGS: dict[Ending, dict[str, bool]] = {
    "answer": {"add_generation_prompt": True},
    "closed": {"add_generation_prompt": False},
    "open": {"add_generation_prompt": False, "continue_final_message": True},
}
_REASONING = ("reasoning_effort", "enable_thinking", "<think>")  # in templates of such models
_CODE = "invalid_value"  # of every refusal
# A rendered conversation may be this many times as long as its messages, plus some characters.
_MAX_GROWTH = 4
_MAX_GROWTH_CHARS = 1 << 20
_PROBES: tuple[Messages, ...] = (
    [
        {"role": "system", "content": "a"},
        {"role": "user", "content": "b"},
        {"role": "assistant", "content": "c"},
        {"role": "user", "content": "d"},
    ],
    [
        {"role": "user", "content": "b"},
        {"role": "assistant", "content": "c"},
        {"role": "user", "content": "d"},
    ],
    [{"role": "user", "content": "b"}],
)


class Tokenizer(Detokenizer):
    """Turns text and messages into token ids, and ids into text."""

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
        self._template = chat_template or _template_of(loaded)
        written = self._try_template()
        self._control = None if allow_control_tokens else ControlTokens(self._backend, written)

    @classmethod
    def load(cls, folder_or_name: str) -> Tokenizer:
        """`Tokenizer` of `load_files`, with the model's own chat template."""
        return cls(load_files(folder_or_name))

    @property
    def eos_token_id(self) -> int | None:
        """The token that ends a text, as the tokenizer's own configuration names it."""
        found: int | None = self._loaded.eos_token_id
        return found

    @property
    def has_chat_template(self) -> bool:
        """Whether there is a chat template; without one `encode_chat` always fails."""
        return self._template is not None

    @property
    def has_reasoning(self) -> bool:
        """Whether the chat template mentions reasoning, so that fields such as `reasoning_effort`
        would have an effect on this model.
        """
        return any(word in (self._template or "") for word in _REASONING)

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

    def encode_chat(self, messages: Messages, ending: Ending = "answer") -> list[int]:
        """Token ids of `messages` in the model's chat template, up to `ending`.

        Names of control tokens in a message's content become tokens only if that is allowed; those
        that the template writes always do.

        Raises:
            BadRequest: param "messages"; there is no template, it refuses these messages, or the
                tokenizer fails.
        """
        with _refusals(param="messages"):
            rendered = self._render(messages, ending)
            contents = [message["content"] for message in messages]
            if self._control is None or not self._control.may_be_made(contents):
                return self._encode(rendered, add_special_tokens=False)

            def render(change: Callable[[str], str]) -> str:
                changed = [{**each, "content": change(each["content"])} for each in messages]
                return self._render(changed, ending)

            marks = unused_marks([rendered, *contents])
            return self._control.encode_rendered(rendered, render, marks)

    def _encode(self, text: str, add_special_tokens: bool) -> list[int]:
        # encode() keeps the GIL and tracks offsets; this one does neither.
        [encoding] = self._backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        ids: list[int] = encoding.ids
        return ids

    def _render(self, messages: Messages, ending: Ending = "answer") -> str:
        if self._template is None:
            raise BadRequest(
                "this model has no chat template: use /v1/completions", param="messages"
            )
        try:
            text: str = self._loaded.apply_chat_template(
                messages, chat_template=self._template, tokenize=False, **_ENDINGS[ending]
            )
        except Exception as error:  # template code can raise any exception
            raise BadRequest(_template_refusal(error, ending), param="messages") from error
        most = sum(len(m["content"]) for m in messages) * _MAX_GROWTH + _MAX_GROWTH_CHARS
        if len(text) > most:
            raise BadRequest(
                f"the model's chat template makes {len(text)} characters of these messages, more "
                f"than the limit of {most}",
                param="messages",
            )
        return text

    def _try_template(self) -> str:
        """A short conversation rendered by the template, "" if it cannot render one."""
        if self._template is None:
            return ""
        for messages in _PROBES:
            try:
                return self._render(messages, "closed")
            except BadRequest as refusal:
                if isinstance(cause := refusal.__cause__, TemplateSyntaxError):
                    raise ModelRefused(
                        f"the chat template does not compile: {first_line(cause)}"
                    ) from cause
                # The template refuses this conversation; a request's messages may still be
                # accepted.
        return ""


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


def _template_of(loaded: PreTrainedTokenizerFast) -> str | None:
    """The model's own template; None if it has none."""
    try:
        template: str = loaded.get_chat_template()
    except ValueError:
        return None
    return template


def _template_refusal(error: Exception, ending: Ending) -> str:
    if type(error) is TemplateError:  # raised by the template itself, through raise_exception()
        return f"the model's chat template refuses these messages: {first_line(error)}"
    if ending == "open" and type(error) is ValueError:  # its text was not found
        return "the model's chat template changes the last message, so it cannot be continued"
    return f"the model's chat template cannot render these messages ({type(error).__name__})"


@contextmanager
def _refusals(param: str | None) -> Generator[None]:
    """Turn exceptions of the tokenizer into a refusal of this one request."""
    try:
        yield
    except BadRequest as refusal:
        refusal.param, refusal.code = param, _CODE
        raise
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
