"""The token behind an assistant's turn, in templates of several kinds."""

from __future__ import annotations

from pathlib import Path

import pytest
import tokenizers

from radixserve.text.tokenizer import Tokenizer
from radixserve.text.turns import CLOSED, OPEN, turn_end
from tests.text.conftest import load_saved

_TURNS = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}TAIL{% endfor %}"


def end_of(tokenizer: Tokenizer) -> int | None:
    return turn_end(tokenizer.encode_chat(OPEN).ids, tokenizer.encode_chat(CLOSED).ids)


def test_the_embedded_models_turns_end_with_its_end_of_text(smollm2: Tokenizer) -> None:
    assert end_of(smollm2) == smollm2.eos_token_id == 2


@pytest.mark.parametrize(
    ("tail", "expected"),
    [("<|im_end|>\n", "<|im_end|>"), ("<|endoftext|>", "<|endoftext|>"), ("", None)],
)
def test_the_token_is_the_one_behind_the_text(
    smollm2_folder: Path, tmp_path: Path, tail: str, expected: str | None
) -> None:
    backend = tokenizers.Tokenizer.from_file(str(smollm2_folder / "tokenizer.json"))
    tokenizer = load_saved(backend, tmp_path, chat_template=_TURNS.replace("TAIL", tail))
    assert tokenizer.eos_token_id is None
    end = end_of(tokenizer)
    assert (None if end is None else tokenizer.token_text(end)) == expected


def test_texts_that_differ_before_the_end_name_no_token() -> None:
    assert turn_end([1, 2, 3], [1, 9, 3, 4]) is None
    assert turn_end([1, 2], [1, 2]) is None
    assert turn_end([1, 2], [1, 2, 7, 8]) == 7
