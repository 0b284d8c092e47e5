"""Tokenizers of the kinds that decoder-only models use, saved as folders that `Tokenizer.load`
reads.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from radixserve.checkpoints.embedded import embedded_model
from radixserve.text.conversation import Conversation, Ending
from radixserve.text.tokenizer import Tokenizer

CORPUS = [
    "The quick brown fox jumps over the lazy dog, twice a day.",
    "A prefix tree shares what two prompts have in common; 3.14 and 2026 are numbers.",
    "Straße, naïve café, żółć, Ελληνικά, русский текст, 日本語の文章, 한국어, हिन्दी, العربية",
]


@pytest.fixture(scope="session")
def smollm2_folder() -> Path:
    """The embedded default model: byte-level BPE with a chat template."""
    return embedded_model(progress=False)


@pytest.fixture(scope="session")
def smollm2(smollm2_folder: Path) -> Tokenizer:
    return Tokenizer.load(str(smollm2_folder))


@pytest.fixture(scope="session")
def byte_fallback(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Llama 2's kind: spaces as U+2581, unknown characters as byte tokens, one leading space
    stripped.
    """
    backend = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=special, show_progress=False)
    backend.train_from_iterator(CORPUS[:2], trainer)
    return load_saved(
        with_special(backend, ["<unk>", "<s>", "</s>"]), tmp_path_factory.mktemp("byte_fallback")
    )


@pytest.fixture(scope="session")
def metaspace(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """T5's and XLNet's kind: unigram pieces, spaces as U+2581, nothing for unknown characters."""
    backend = tokenizers.Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=300, special_tokens=["<unk>", "</s>"], unk_token="<unk>", show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    return load_saved(
        with_special(backend, ["<unk>", "</s>"]), tmp_path_factory.mktemp("metaspace")
    )


@pytest.fixture(scope="session")
def wordpiece(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    backend = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=300, special_tokens=["[UNK]", "[SEP]"], show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    return load_saved(
        with_special(backend, ["[UNK]", "[SEP]"]), tmp_path_factory.mktemp("wordpiece")
    )


def with_special(backend: tokenizers.Tokenizer, names: list[str]) -> tokenizers.Tokenizer:
    """The same tokenizer with only `names` as special tokens (trainers mark byte tokens too)."""
    state = json.loads(backend.to_str())
    state["added_tokens"] = []
    fresh = tokenizers.Tokenizer.from_str(json.dumps(state))
    fresh.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    return fresh


@pytest.fixture(scope="session", params=["smollm2", "byte_fallback", "metaspace", "wordpiece"])
def any_tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    loaded: Tokenizer = request.getfixturevalue(request.param)
    return loaded


def chat_ids(
    tokenizer: Tokenizer, messages: list[dict[str, Any]], ending: Ending = "answer"
) -> list[int]:
    """The prompt of plain messages."""
    return tokenizer.encode_chat(Conversation(messages, ending=ending)).ids


def load_saved(backend: tokenizers.Tokenizer, folder: Path, **config: Any) -> Tokenizer:
    """`backend` written as a model folder and loaded as the server does."""
    PreTrainedTokenizerFast(tokenizer_object=backend, **config).save_pretrained(folder)
    return Tokenizer.load(str(folder))
