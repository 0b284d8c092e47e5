"""The positions of a prompt's tokens in its text.

The counterpart of `TextStream.offsets` for text that is known already. Knows nothing of requests.
"""

from __future__ import annotations

from codecs import utf_8_decode
from collections.abc import Sequence

from radixserve.text.pieces import Pieces


def text_offsets(pieces: Pieces, token_ids: Sequence[int], text: str) -> list[int]:
    """For each token, the number of characters of `text` that are complete before it.

    `text` is the text that was tokenised, or the ids decoded with special tokens spelled out.
    Tokens that share a character have the same offset. A special token that `text` does not spell
    out, because the tokenizer added it, has no characters. If the tokenizer changes the text (to
    lower case, for example), offsets are approximate, but never beyond its end. O(n).
    """
    offsets: list[int] = []
    num_chars, partial, at_start = 0, b"", True
    for token_id in token_ids:
        offsets.append(min(num_chars, len(text)))
        piece = pieces.leading(token_id) if at_start else pieces.exact(token_id)
        if pieces.is_skipped(token_id):
            piece = pieces.exact(token_id)
            spelled_at = num_chars + len(partial.decode(errors="replace"))
            if not text.startswith(piece.decode(errors="replace"), spelled_at):
                continue
        at_start = False
        complete, num_read = utf_8_decode(data := partial + piece, "replace", False)
        partial = data[num_read:]
        num_chars += len(complete)
    return offsets
