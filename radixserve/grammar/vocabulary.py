"""The tokenizer as the grammar library sees it: the bytes of every token, and which are control
tokens.

Built from the JSON of the `tokenizers` library. Control tokens get secret names in the library's
copy: it would otherwise take a name such as `<|im_end|>` inside a forced string for the token.
Sources name control tokens by their ids instead (`grammar.source`).
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from typing import Any

from llguidance import LLTokenizer

from radixserve.errors import BadRequest, first_line
from radixserve.token_names import control_tokens, rename_tokens


class Vocabulary:
    """The tokens of one tokenizer. Building it takes about 0.5 s for 50,000 tokens, in which no
    other thread runs Python code.
    """

    def __init__(self, tokenizer_json: str) -> None:
        """Raises BadRequest if the library cannot tell the bytes of this tokenizer's tokens."""
        state = json.loads(tokenizer_json)
        state["truncation"] = state["padding"] = None
        self.token_ids: Mapping[str, int] = {
            token["content"]: token["id"] for token in state["added_tokens"]
        }
        self.size = _size(state)
        control = control_tokens(state)
        self.control_ids = frozenset(control.values())
        secret = secrets.token_hex(16)
        rename_tokens(state, {name: f"<{secret}-{i}>" for name, i in control_tokens(state).items()})
        _add_end(state, f"<{secret}-end>", self.size)
        try:
            self.library = LLTokenizer(json.dumps(state), eos_token=self.size)
        except BaseException as error:
            raise refusal_of(
                error, "this model's tokenizer cannot be constrained by a grammar"
            ) from error

    @property
    def num_words(self) -> int:
        """Words of 32 bits in a mask over all tokens."""
        return (self.size + 32) // 32


def refusal_of(error: BaseException, what: str) -> BadRequest:
    """The refusal for an exception of the library. Its panics are no `Exception`; whatever else is
    none is raised.
    """
    if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
        raise error
    return BadRequest(f"{what}: {first_line(error)}", code="invalid_value")


def _add_end(state: dict[str, Any], name: str, token_id: int) -> None:
    """Add a token that ends the output, because the library wants one. Which of the real tokens do
    is known per request only, so the library gets one that is never drawn.
    """
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    state["added_tokens"].append({"id": token_id, "content": name, "special": True, **flags})
    if isinstance(vocab := state["model"]["vocab"], dict):
        vocab[name] = token_id
    else:
        vocab.append([name, 0.0])


def _size(state: dict[str, Any]) -> int:
    """One more than the highest id of a token."""
    vocab = state["model"]["vocab"]
    ids = vocab.values() if isinstance(vocab, dict) else range(len(vocab))
    return 1 + max([*ids, *(token["id"] for token in state["added_tokens"])], default=0)
