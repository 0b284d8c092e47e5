from __future__ import annotations

import json
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers
from transformers import AutoTokenizer

from radixserve.errors import BadRequest, ModelRefused
from radixserve.text.tokenizer import Tokenizer
from tests.text.conftest import chat_ids, load_saved

CONVERSATION = [
    {"role": "system", "content": "You answer in one word."},
    {"role": "user", "content": "The capital of France?"},
    {"role": "assistant", "content": "Paris."},
    {"role": "user", "content": "And of Japan — 日本?"},
]


def test_loading_and_using_the_tokenizer_imports_no_torch(smollm2_folder: Path) -> None:
    """In a process of its own: the front must not carry torch."""
    code = """
import sys
from radixserve.text.conversation import Conversation
from radixserve.text.tokenizer import Tokenizer
tokenizer = Tokenizer.load(sys.argv[1])
ids = tokenizer.encode_chat(Conversation([{"role": "user", "content": "hello"}])).ids
assert "hello" in tokenizer.decode(ids)
assert "torch" not in sys.modules, sorted(name for name in sys.modules if name.startswith("torch"))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(smollm2_folder)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_chat_ids_equal_those_of_transformers(smollm2: Tokenizer, smollm2_folder: Path) -> None:
    reference = AutoTokenizer.from_pretrained(smollm2_folder)
    for messages in (CONVERSATION, CONVERSATION[1:2]):
        expected = reference.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=False
        )
        assert chat_ids(smollm2, messages) == expected


def test_the_chat_prompt_ends_where_the_answer_begins(smollm2: Tokenizer) -> None:
    text = smollm2.decode(chat_ids(smollm2, CONVERSATION), skip_special_tokens=False)
    assert text.endswith("日本?<|im_end|>\n<|im_start|>assistant\n")
    assert smollm2.template.text


def test_a_conversation_may_end_after_or_within_its_last_message(smollm2: Tokenizer) -> None:
    begun = [*CONVERSATION, {"role": "assistant", "content": "It is "}]
    closed = smollm2.decode(chat_ids(smollm2, begun, "closed"), skip_special_tokens=False)
    assert closed.endswith("<|im_start|>assistant\nIt is <|im_end|>\n")
    opened = smollm2.decode(chat_ids(smollm2, begun, "open"), skip_special_tokens=False)
    assert opened == closed.removesuffix("<|im_end|>\n")
    begun[-1]["content"] = ""
    assert chat_ids(smollm2, begun, "open") == chat_ids(smollm2, CONVERSATION, "answer")


def test_what_a_template_does_not_keep_as_it_is_cannot_be_continued(
    smollm2: Tokenizer, tmp_path: Path
) -> None:
    tokenizer = load_saved(
        smollm2._backend, tmp_path, chat_template="{{ messages[-1].content | upper }}"
    )
    with pytest.raises(BadRequest, match="changes the last message") as refusal:
        chat_ids(tokenizer, CONVERSATION, "open")
    assert refusal.value.param == "messages"


@pytest.mark.parametrize(
    ("template", "reasons"),
    [
        ("{{ messages[0].content }}", False),
        ("{% if enable_thinking is false %}x{% endif %}", True),
        ("{{ '<think>' }}", True),
        ("{{ reasoning_effort or 'medium' }}", True),
    ],
)
def test_a_template_tells_whether_its_model_reasons(
    smollm2: Tokenizer, tmp_path: Path, template: str, reasons: bool
) -> None:
    tokenizer = load_saved(smollm2._backend, tmp_path, chat_template=template)
    assert tokenizer.template.has_reasoning == reasons


def test_plain_text_ids_equal_those_of_transformers(
    smollm2: Tokenizer, smollm2_folder: Path
) -> None:
    reference = AutoTokenizer.from_pretrained(smollm2_folder)
    for text in ("", "The quick brown fox", "  two  spaces\n\n\ttab", "日本語 🦄", "<|im_ end|>x"):
        assert smollm2.encode(text, add_special_tokens=True) == reference(text)["input_ids"]


def test_special_tokens_are_added_only_when_asked(byte_fallback: Tokenizer, tmp_path: Path) -> None:
    backend = tokenizers.Tokenizer.from_str(byte_fallback._backend.to_str())
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    tokenizer = load_saved(backend, tmp_path, chat_template="<s>{{ messages[0].content }}")
    bare = tokenizer.encode("quick", add_special_tokens=False)
    assert tokenizer.encode("quick", add_special_tokens=True) == [1, *bare]
    chat = chat_ids(tokenizer, [{"role": "user", "content": "quick"}])
    assert chat.count(1) == 1
    assert chat[0] == 1


def test_a_saved_length_limit_or_padding_is_ignored(smollm2_folder: Path, tmp_path: Path) -> None:
    backend = tokenizers.Tokenizer.from_file(str(smollm2_folder / "tokenizer.json"))
    backend.enable_truncation(4)
    backend.enable_padding(length=8)
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.load(str(tmp_path))
    assert len(tokenizer.encode("one two three four five six", add_special_tokens=False)) == 6
    assert len(tokenizer.encode("one", add_special_tokens=False)) == 1


def test_vocab_size_counts_added_tokens(
    smollm2: Tokenizer, smollm2_folder: Path, tmp_path: Path
) -> None:
    assert smollm2.vocab_size == 49152
    backend = tokenizers.Tokenizer.from_file(str(smollm2_folder / "tokenizer.json"))
    backend.add_tokens(["<tool>"])
    backend.save(str(tmp_path / "tokenizer.json"))
    larger = Tokenizer.load(str(tmp_path))
    assert larger.vocab_size == 49153
    assert larger.decode([49152]) == "<tool>"


def test_every_token_has_its_exact_bytes(smollm2: Tokenizer) -> None:
    ids = smollm2.encode("The 🦄", add_special_tokens=False)
    assert b"".join(smollm2.token_bytes(i) for i in ids) == "The 🦄".encode()
    assert smollm2.token_text(ids[0]) == "The"
    assert smollm2.token_text(ids[-1]) == "\ufffd"
    assert smollm2.token_bytes(2) == b"<|im_end|>"
    assert [smollm2.token_bytes(i) for i in (-1, 49152, 10**12)] == [b"", b"", b""]


def test_sentencepiece_tokens_keep_their_space_and_byte_tokens_are_bytes(
    byte_fallback: Tokenizer,
) -> None:
    ids = byte_fallback.encode("quick dog", add_special_tokens=False)
    assert b"".join(byte_fallback.token_bytes(i) for i in ids) == b" quick dog"
    assert byte_fallback.token_bytes(3 + 0xE2) == b"\xe2"
    assert byte_fallback.token_text(3 + 0xE2) == "\ufffd"
    assert byte_fallback.token_text(3 + 0x41) == "A"


def test_special_tokens_can_be_shown(smollm2: Tokenizer, byte_fallback: Tokenizer) -> None:
    ids = [1, *smollm2.encode("Paris", add_special_tokens=False), 2]
    assert smollm2.decode(ids) == "Paris"
    assert smollm2.decode(ids, skip_special_tokens=False) == "<|im_start|>Paris<|im_end|>"
    ids = [1, *byte_fallback.encode("quick", add_special_tokens=False)]
    assert byte_fallback.decode(ids, skip_special_tokens=False) == "<s> quick"


@pytest.mark.parametrize("text", ["\ud800", "fine \udfff not"])
def test_lone_surrogates_are_refused(smollm2: Tokenizer, text: str) -> None:
    with pytest.raises(BadRequest, match="not valid Unicode") as plain:
        smollm2.encode(text, add_special_tokens=False)
    assert plain.value.param is None
    with pytest.raises(BadRequest, match="not valid Unicode") as chat:
        chat_ids(smollm2, [{"role": "user", "content": text}])
    assert chat.value.param == "messages"


def test_what_a_template_refuses_is_told_to_the_client(smollm2: Tokenizer, tmp_path: Path) -> None:
    template = (
        "{{ raise_exception('roles must alternate') if messages|length > 1 else "
        "messages[0].content }}"
    )
    tokenizer = load_saved(smollm2._backend, tmp_path, chat_template=template)
    assert tokenizer.decode(chat_ids(tokenizer, CONVERSATION[1:2])) == "The capital of France?"
    with pytest.raises(
        BadRequest, match=r"refuses these messages: roles must alternate$"
    ) as refusal:
        chat_ids(tokenizer, CONVERSATION)
    assert refusal.value.param == "messages"


@pytest.mark.parametrize(
    ("template", "kind"),
    [
        ("{{ messages[0].absent.field }}", "UndefinedError"),
        ("{{ messages[0].content + 1 }}", "TypeError"),
        ("{{ ''.__class__.__mro__ }}", "SecurityError"),
        ("{{ messages.append(1) }}", "SecurityError"),
    ],
)
def test_a_template_that_fails_is_a_bad_request(
    smollm2: Tokenizer, tmp_path: Path, template: str, kind: str
) -> None:
    tokenizer = load_saved(smollm2._backend, tmp_path, chat_template=template)
    with pytest.raises(BadRequest) as refusal:
        chat_ids(tokenizer, CONVERSATION)
    assert (
        refusal.value.message == f"the model's chat template cannot render these messages ({kind})"
    )
    assert refusal.value.param == "messages"


def test_without_a_template_chat_is_refused_and_completions_work(metaspace: Tokenizer) -> None:
    assert metaspace.template.text is None
    with pytest.raises(BadRequest, match="no chat template") as refusal:
        chat_ids(metaspace, CONVERSATION)
    assert refusal.value.param == "messages"


def test_a_template_that_does_not_compile_refuses_the_model(
    smollm2: Tokenizer, tmp_path: Path
) -> None:
    with pytest.raises(ModelRefused, match="chat template does not compile"):
        load_saved(smollm2._backend, tmp_path, chat_template="{% if %}")


def test_a_missing_folder_and_a_folder_without_tokenizer_refuse_the_model(tmp_path: Path) -> None:
    with pytest.raises(ModelRefused, match="there is no folder"):
        Tokenizer.load(str(tmp_path / "absent"))
    with pytest.raises(ModelRefused, match=r"needs tokenizer\.json"):
        Tokenizer.load(str(tmp_path))


def test_a_malformed_tokenizer_file_refuses_the_model(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(
        json.dumps({"version": "1.0", "model": {"type": "nothing"}})
    )
    with pytest.raises(ModelRefused, match="cannot load the tokenizer"):
        Tokenizer.load(str(tmp_path))


def test_a_decoder_that_cannot_be_streamed_refuses_the_model(tmp_path: Path) -> None:
    vocab = {"<unk>": 0, "hello</w>": 1, "wor": 2, "ld</w>": 3}
    backend = tokenizers.Tokenizer(
        models.BPE(vocab, [], unk_token="<unk>", end_of_word_suffix="</w>")
    )
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.decoder = decoders.BPEDecoder(suffix="</w>")
    with pytest.raises(ModelRefused, match="cannot be streamed"):
        load_saved(backend, tmp_path)


def test_many_threads_encode_at_once(smollm2: Tokenizer) -> None:
    texts = [f"request {n}: " + "the same words again and again. " * (n % 7) for n in range(64)]
    expected = [smollm2.encode(text, add_special_tokens=False) for text in texts]
    with ThreadPoolExecutor(8) as pool:
        assert (
            list(pool.map(lambda text: smollm2.encode(text, add_special_tokens=False), texts))
            == expected
        )
        chats = list(
            pool.map(lambda text: chat_ids(smollm2, [{"role": "user", "content": text}]), texts)
        )
    assert chats == [chat_ids(smollm2, [{"role": "user", "content": text}]) for text in texts]


def test_other_threads_run_while_a_long_text_is_encoded(smollm2: Tokenizer) -> None:
    text = "A long prompt must not stop the event loop. " * 20_000
    ticks, encoded = 0, threading.Event()

    def encode() -> None:
        smollm2.encode(text, add_special_tokens=False)
        encoded.set()

    worker = threading.Thread(target=encode)
    worker.start()
    while not encoded.wait(0.001):
        ticks += 1
    worker.join()
    assert ticks > 10  # with the GIL held throughout: at most one or two


def test_a_panic_of_the_tokenizer_refuses_only_its_request(
    smollm2: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    class PanicException(BaseException):
        """Looks like the one that PyO3 raises."""

    class Panicking:
        def encode_batch_fast(self, *_: Any, **__: Any) -> list[Any]:
            raise PanicException("index out of bounds")

    monkeypatch.setattr(smollm2, "_backend", Panicking())
    with pytest.raises(BadRequest, match=r"the tokenizer failed on this text: index out of"):
        smollm2.encode("anything", add_special_tokens=False)
