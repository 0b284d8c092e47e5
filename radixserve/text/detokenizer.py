"""Token ids to text. Knows no chat templates and no processes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

import tokenizers

from radixserve.text.offsets import text_offsets
from radixserve.text.pieces import Pieces
from radixserve.text.stream import TextStream
from radixserve.token_names import control_tokens


class Detokenizer:
    """Turns token ids into text; see `TextStream` for text that arrives token by token.

    Any thread may call it.
    """

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        """Raises ModelRefused if tokens cannot be turned into text one by one."""
        self._pieces = Pieces(backend)
        self._json: Callable[[], str] = backend.to_str

    @property
    def vocab_size(self) -> int:
        """Token ids run from 0 to `vocab_size` - 1, added tokens included; the model's own table
        may be larger.
        """
        return self._pieces.vocab_size

    @cached_property
    def control_tokens(self) -> Mapping[str, int]:
        """See `token_names.control_tokens`. The first use takes 0.1 s for 50,000 tokens."""
        return control_tokens(json.loads(self._json()))

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of `token_ids`, with U+FFFD for bytes that are not UTF-8. Ids without a token
        add nothing.
        """
        stream = self.stream(skip_special_tokens=skip_special_tokens)
        return stream.push(token_ids) + stream.finish()

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that the token adds in the middle of a text. For a special token, its name; for
        an id without a token, b"".
        """
        return self._pieces.exact(token_id)

    def token_text(self, token_id: int) -> str:
        """`token_bytes` as text, with U+FFFD for incomplete characters."""
        return self._pieces.exact(token_id).decode(errors="replace")

    def offsets(self, token_ids: Sequence[int], text: str) -> list[int]:
        """The position of each of `token_ids` in `text`, in characters; see `text_offsets`."""
        return text_offsets(self._pieces, token_ids, text)

    def token_id(self, text: str) -> int | None:
        """The added token that `text` always becomes, such as `<tool_call>`; None if there is no
        such token.
        """
        return self._pieces.added.get(text)

    def stream(
        self,
        stops: Sequence[str] = (),
        *,
        continues: bool = False,
        min_tokens: int = 0,
        shown: frozenset[int] = frozenset(),
        skip_special_tokens: bool = True,
        include_stop: bool = False,
    ) -> TextStream:
        """A `TextStream` for one sequence.

        Special tokens are left out of its text, except for those that are `shown`; without
        `skip_special_tokens` all are spelled out.
        """
        return TextStream(
            self._pieces,
            stops,
            continues=continues,
            min_tokens=min_tokens,
            shown=shown if skip_special_tokens else None,
            include_stop=include_stop,
        )
