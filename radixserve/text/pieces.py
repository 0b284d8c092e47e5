"""The bytes that each token adds to a text.

Detokenising is then appending bytes, with no window of earlier tokens to decode again. Byte-level
vocabularies spell bytes as printable characters, sentencepiece ones have `<0xE2>` tokens for single
bytes; for every other token the tokenizer's own decoder is called once. Knows nothing of sequences
or stop strings (`stream.py`).
"""

from __future__ import annotations

import json
import random
import re
from typing import Any

import tokenizers
from tokenizers.pre_tokenizers import ByteLevel

from radixserve.errors import ModelRefused

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Pieces:
    """Maps token ids to bytes, computed on first use and kept. Any thread may call it."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        self._backend = backend
        kinds = _decoder_kinds(backend)
        self._byte_of_char = _byte_of_char() if "ByteLevel" in kinds else None
        self._has_byte_tokens = "ByteFallback" in kinds
        added = backend.get_added_tokens_decoder()
        self.added = {token.content: token_id for token_id, token in added.items()}
        """The ids of the added tokens, by name."""
        self._special = frozenset(token_id for token_id, token in added.items() if token.special)
        self.vocab_size: int = max(
            [backend.get_vocab_size(with_added_tokens=True), *(i + 1 for i in added)]
        )
        self._exact: dict[int, bytes] = {}
        self._anchor = self._find_anchor()
        self._anchor_text: str = backend.decode([self._anchor], skip_special_tokens=False)
        self._check_against_decoder()

    def exact(self, token_id: int) -> bytes:
        """The bytes that `token_id` adds in the middle of a text, special tokens spelled out; b""
        for an id without a token.
        """
        piece = self._exact.get(token_id)
        if piece is None:
            token = self._token(token_id)
            if token is None:
                return b""  # not kept, because the number of such ids has no bound
            piece = self._exact[token_id] = self._spell(token_id, token)
        return piece

    def leading(self, token_id: int) -> bytes:
        """The bytes of `token_id` as the first token of a text, where sentencepiece drops one
        leading space.
        """
        if self._byte_of_char is not None:
            return self.exact(token_id)
        if (piece := self._byte_token(self._token(token_id) or "")) is not None:
            return b"" if piece == b" " and self._decode(token_id) == "" else piece
        return self._decode(token_id).encode()

    def is_skipped(self, token_id: int) -> bool:
        """Whether the token is left out of an answer's text: special tokens and ids without a
        token.
        """
        return token_id in self._special or (
            token_id not in self._exact and self._token(token_id) is None
        )

    def _token(self, token_id: int) -> str | None:
        if not 0 <= token_id < self.vocab_size:
            return None
        token: str | None = self._backend.id_to_token(token_id)
        return token

    def _decode(self, *token_ids: int) -> str:
        text: str = self._backend.decode(list(token_ids), skip_special_tokens=False)
        return text

    def _spell(self, token_id: int, token: str) -> bytes:
        if self._byte_of_char is not None:
            codes = [self._byte_of_char.get(char) for char in token]
            return (
                token.encode()
                if None in codes
                else bytes(code for code in codes if code is not None)
            )
        if (piece := self._byte_token(token)) is not None:
            return piece
        return self._decode(self._anchor, token_id).removeprefix(self._anchor_text).encode()

    def _byte_token(self, token: str) -> bytes | None:
        match = _BYTE_TOKEN.fullmatch(token) if self._has_byte_tokens else None
        return bytes([int(match[1], 16)]) if match else None

    def _find_anchor(self) -> int:
        """Find a token with visible text. It is put before another token, so that the other is not
        the first of its text.
        """
        for token_id in range(self.vocab_size):
            token = self._token(token_id)
            if token is None or token_id in self._special or self._byte_token(token) is not None:
                continue
            if self._decode(token_id):
                return token_id
        raise ModelRefused("the tokenizer has no token with any text")

    def _check_against_decoder(self) -> None:
        """Compare with the tokenizer's decoder on a fixed sample of tokens.

        Byte tokens are left out. If they form no valid UTF-8, the decoder drops a whole run of
        them, complete characters included; a stream could do the same only by holding every such
        character back.
        """
        sample = random.Random(0).sample(range(self.vocab_size), min(self.vocab_size, 512))
        plain = [
            i
            for i in sample
            if not self.is_skipped(i) and self._byte_token(self._token(i) or "") is None
        ]
        for start in range(0, len(plain), 16):
            first, *rest = plain[start : start + 16]
            data = self.leading(first) + b"".join(map(self.exact, rest))
            if data.decode(errors="replace") != self._decode(first, *rest):
                raise ModelRefused(
                    "the tokenizer's decoder joins tokens in a way that cannot be streamed"
                )


def _decoder_kinds(backend: tokenizers.Tokenizer) -> list[str]:
    if backend.decoder is None:
        return []
    return list(_kinds(json.loads(backend.decoder.__getstate__())))


def _kinds(state: dict[str, Any]) -> list[str]:
    return [state["type"], *(kind for part in state.get("decoders", ()) for kind in _kinds(part))]


def _byte_of_char() -> dict[str, int]:
    """The byte-level alphabet: printable bytes are mapped to themselves, the others to chr(256) and
    up, in order.
    """
    alphabet = frozenset(ByteLevel.alphabet())
    moved = [byte for byte in range(256) if chr(byte) not in alphabet]
    kept = {chr(byte): byte for byte in range(256) if chr(byte) in alphabet}
    return kept | {chr(256 + rank): byte for rank, byte in enumerate(moved)}
