"""Incremental detokenising and stop strings for one sequence: tokens in, text out.

A `TextStream` appends the bytes of each token, decodes complete characters, and holds back two
things: the bytes of an unfinished UTF-8 character, and text that may still become a stop string. It
never decodes earlier tokens again, so a model that repeats half a character costs no more than
another. The `DecodeStream` of the tokenizers library is faster on ordinary text, but quadratic in
that case (8,000 such tokens: 9 s against 18 ms).
"""

from __future__ import annotations

from codecs import utf_8_decode
from collections.abc import Sequence

from radixserve.text.pieces import Pieces
from radixserve.text.stops import StopMatch, StopMatcher


class TextStream:
    """The text of one sequence; `"".join(every push) + finish()` is the whole text, which ends
    before the stop string, or with it.

    Attributes:
        stopped: the stop string that ended the text, or None.
        num_tokens: tokens pushed, up to and including the one that completed the stop string.
        offsets: for each of these tokens, the number of characters that were complete before it.
        num_chars: characters of text that are complete now.
    """

    def __init__(
        self,
        pieces: Pieces,
        stops: Sequence[str] = (),
        *,
        continues: bool = False,
        min_tokens: int = 0,
        shown: frozenset[int] | None = frozenset(),
        include_stop: bool = False,
    ) -> None:
        """`continues`: the text continues other text, so the first token keeps its leading space.

        Stop strings that are complete within the first `min_tokens` tokens are ordinary text.
        `shown` are the special tokens that are spelled out instead of left out; None is all.
        `include_stop`: the text ends with the stop string instead of before it.
        """
        self.stopped: str | None = None
        self.num_tokens = 0
        self.offsets: list[int] = []
        self.num_chars = 0
        self._pieces = pieces
        self._matcher = StopMatcher(stops)
        self._min_tokens = min_tokens
        self._shown = shown
        self._include_stop = include_stop
        self._at_start = not continues
        self._partial = b""  # bytes of an unfinished character, at most 3
        self._held = ""  # text that begins a stop string

    def push(self, token_ids: Sequence[int]) -> str:
        """Add tokens and return the text that may be sent now, nothing after a stop string.
        Amortised O(1) per token.
        """
        parts = []
        for token_id in token_ids:
            if self.stopped is not None:
                break
            self.num_tokens += 1
            self.offsets.append(self.num_chars)
            text, num_read = utf_8_decode(
                data := self._partial + self._bytes(token_id), "replace", False
            )
            self._partial = data[num_read:]
            if text:
                parts.append(self._release(text))
        return "".join(parts)

    def finish(self) -> str:
        """Return the text that was held back: the beginning of an incomplete stop string, and
        U+FFFD for an unfinished character.
        """
        if self.stopped is not None:
            return ""
        text = self._release(self._partial.decode(errors="replace"))
        self._partial = b""
        if self.stopped is None:
            text, self._held = text + self._held, ""
        return text

    def _bytes(self, token_id: int) -> bytes:
        pieces = self._pieces
        if pieces.is_skipped(token_id) and not self._is_shown(token_id):
            return b""
        if self._at_start:
            self._at_start = False
            return pieces.leading(token_id)
        return pieces.exact(token_id)

    def _is_shown(self, token_id: int) -> bool:
        return self._shown is None or token_id in self._shown

    def _release(self, text: str) -> str:
        """Add `text` and return the part that can no longer belong to a stop string."""
        self.num_chars += len(text)
        match = self._next_match(text)
        text, num_before = self._held + text, len(self._held)
        if match is not None:
            self.stopped, self._held = match.stop, ""
            num_cut = 0 if self._include_stop else len(match.stop)
            return text[: num_before + match.end - num_cut]
        num_sure = len(text) - self._matcher.num_held
        self._held = text[num_sure:]
        return text[:num_sure]

    def _next_match(self, text: str) -> StopMatch | None:
        end = 0
        while (match := self._matcher.feed(text[end:])) is not None:
            end += match.end
            if self.num_tokens > self._min_tokens:
                return match._replace(end=end)
        return None
