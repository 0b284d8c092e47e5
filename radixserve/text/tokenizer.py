"""The model's tokenizer and chat template, as the front uses them.

Loads whatever transformers can load as a fast tokenizer, by folder or hub name, without importing
torch: transformers' `PreTrainedTokenizerFast` reads tokenizer.json as it stands, while
`AutoTokenizer` imports torch to look at the model's configuration first. Every method may be called
from any thread. Knows nothing of requests and HTTP.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import tokenizers
from jinja2.exceptions import TemplateError, TemplateSyntaxError
from transformers import PreTrainedTokenizerFast

from radixserve.errors import BadRequest, ModelRefused, ServerError
from radixserve.text.offsets import text_offsets
from radixserve.text.pieces import Pieces
from radixserve.text.stream import TextStream

_MAX_REASON_CHARS = 300

Ending = Literal["answer", "closed", "open"]
"""Where a rendered conversation ends: where the assistant's answer begins, after the last message,
or within the last message, right after its text.
"""

_ENDINGS: dict[Ending, dict[str, bool]] = {
    "answer": {"add_generation_prompt": True},
    "closed": {"add_generation_prompt": False},
    "open": {"add_generation_prompt": False, "continue_final_message": True},
}
_REASONING = ("reasoning_effort", "enable_thinking", "<think>")  # in templates of such models


class Tokenizer:
    """Text to token ids and back; see `TextStream` for text that arrives token by token."""

    def __init__(self, loaded: PreTrainedTokenizerFast) -> None:
        self._loaded = loaded
        self._backend: tokenizers.Tokenizer = loaded.backend_tokenizer
        # Files saved after training may still ask for fixed lengths; a server never cuts or pads a
        # prompt.
        self._backend.no_truncation()
        self._backend.no_padding()
        self._pieces = Pieces(self._backend)
        self._template = _chat_template(loaded)

    @classmethod
    def load(cls, folder_or_name: str) -> Tokenizer:
        """Load from a folder or by hub name; about a second, most of it importing transformers.

        Raises:
            ModelRefused: there is no usable fast tokenizer, or its chat template does not compile.
        """
        is_local = Path(folder_or_name).is_dir()
        if not is_local and folder_or_name.startswith(("/", ".", "~")):
            raise ModelRefused(f"there is no folder {folder_or_name!r}")
        try:
            return cls(
                PreTrainedTokenizerFast.from_pretrained(folder_or_name, local_files_only=is_local)
            )
        except ModelRefused:
            raise
        except Exception as error:  # the libraries below raise bare Exception for a malformed file
            reason = _first_line(error)
            hint = (
                "a folder needs tokenizer.json, which "
                "AutoTokenizer.from_pretrained(...).save_pretrained(...) writes"
            )
            raise ModelRefused(
                f"cannot load the tokenizer of {folder_or_name!r}: {reason} ({hint})"
            ) from error

    @property
    def vocab_size(self) -> int:
        """Token ids run from 0 to `vocab_size` - 1, added tokens included; the model's own table
        may be larger.
        """
        return self._pieces.vocab_size

    @property
    def has_chat_template(self) -> bool:
        """Whether `encode_chat` can work at all."""
        return self._template is not None

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Token ids of `text`, some 0.7 us per character, with the GIL released meanwhile.

        Special tokens spelled out in `text` become those tokens.

        Raises:
            BadRequest: `text` is not valid Unicode (a lone surrogate).
        """
        with _refusals(param=None):
            return self._encode(text, add_special_tokens)

    @property
    def has_reasoning(self) -> bool:
        """Whether the chat template speaks of reasoning, so that a wish for more or less would
        mean something to this model.
        """
        return any(word in (self._template or "") for word in _REASONING)

    def encode_chat(self, messages: list[dict[str, str]], ending: Ending = "answer") -> list[int]:
        """Token ids of `messages` in the model's chat template, up to `ending`.

        Raises:
            BadRequest: param "messages"; there is no template, or it refuses these messages.
        """
        with _refusals(param="messages"):
            return self._encode(self._render(messages, ending), add_special_tokens=False)

    def _encode(self, text: str, add_special_tokens: bool) -> list[int]:
        # encode() keeps the GIL and tracks offsets; this one does neither.
        [encoding] = self._backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        ids: list[int] = encoding.ids
        return ids

    def _render(self, messages: list[dict[str, str]], ending: Ending) -> str:
        if self._template is None:
            raise BadRequest(
                "this model has no chat template: use /v1/completions", param="messages"
            )
        try:
            text: str = self._loaded.apply_chat_template(
                messages, chat_template=self._template, tokenize=False, **_ENDINGS[ending]
            )
        except Exception as error:  # template code of the model's author can fail in any way
            raise BadRequest(_template_refusal(error, ending), param="messages") from error
        return text

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of `token_ids`, U+FFFD for bytes that are not UTF-8; ids without a token add
        nothing.
        """
        if skip_special_tokens:
            stream = self.stream()
            return stream.push(token_ids) + stream.finish()
        pieces = self._pieces
        data = b"".join(
            pieces.exact(i) if at else pieces.leading(i) for at, i in enumerate(token_ids)
        )
        return data.decode(errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes the token adds in the middle of a text, its name for a special token; b"" for
        an id without one.
        """
        return self._pieces.exact(token_id)

    def token_text(self, token_id: int) -> str:
        """`token_bytes` as text, U+FFFD for what is no whole character."""
        return self._pieces.exact(token_id).decode(errors="replace")

    def offsets(self, token_ids: Sequence[int], text: str) -> list[int]:
        """Where each of `token_ids` stands in `text`, in characters; see `text_offsets`."""
        return text_offsets(self._pieces, token_ids, text)

    def stream(
        self, stops: Sequence[str] = (), *, continues: bool = False, min_tokens: int = 0
    ) -> TextStream:
        """A `TextStream` for one sequence, special tokens left out."""
        return TextStream(self._pieces, stops, continues=continues, min_tokens=min_tokens)


def _chat_template(loaded: PreTrainedTokenizerFast) -> str | None:
    """The template, rendered once to see whether it compiles; None where the model has none."""
    try:
        template: str = loaded.get_chat_template()
    except ValueError:
        return None
    try:
        loaded.apply_chat_template(
            [{"role": "user", "content": "?"}], chat_template=template, tokenize=False
        )
    except TemplateSyntaxError as error:
        raise ModelRefused(
            f"the model's chat template does not compile: {_first_line(error)}"
        ) from error
    except Exception:  # not this conversation: each request's own messages are refused or not
        pass
    return template


def _template_refusal(error: Exception, ending: Ending) -> str:
    if type(error) is TemplateError:  # what a template says itself, through raise_exception()
        return f"the model's chat template refuses these messages: {_first_line(error)}"
    if ending == "open" and type(error) is ValueError:  # transformers did not find it again
        return "the model's chat template changes the last message, so it cannot be continued"
    return f"the model's chat template cannot render these messages ({type(error).__name__})"


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:_MAX_REASON_CHARS]


@contextmanager
def _refusals(param: str | None) -> Generator[None]:
    """Turn what the tokenizer raises into a refusal of this one request."""
    try:
        yield
    except (TypeError, UnicodeEncodeError) as error:
        raise BadRequest(
            "the text is not valid Unicode (a lone surrogate?)", param=param
        ) from error
    except BaseException as error:
        # A panic in the tokenizer's Rust code arrives as a BaseException, which would end more than
        # this request.
        if type(error).__name__ == "PanicException":
            raise ServerError("the tokenizer failed on this text") from error
        raise
