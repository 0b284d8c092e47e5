"""`radixserve serve --model FOLDER`: what passes the load check is served exactly, the rest refused
in a sentence.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

import openai
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    MambaConfig,
    PretrainedConfig,
    Qwen2Config,
    T5Config,
)

from radixserve.checkpoints.embedded import embedded_model
from tests.e2e.server import running

SIZE = {
    "vocab_size": 49152,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
pytestmark = pytest.mark.model  # the tokenizer is the embedded model's


def with_tokenizer(folder: Path) -> Path:
    for name in (
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "chat_template.jinja",
    ):
        if (embedded_model() / name).exists():
            shutil.copy(embedded_model() / name, folder)
    return folder


def test_a_local_folder_is_served_under_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "tiny-qwen"
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(Qwen2Config(**SIZE)).save_pretrained(folder)
    with running("--model", str(with_tokenizer(folder)), "--kv-budget", "1MiB") as server:
        with urllib.request.urlopen(server.url + "/version", timeout=30) as response:
            assert json.loads(response.read())["engine"]["exact"] is True
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            assert [model.id for model in client.models.list()] == ["tiny-qwen"]
            texts = {
                client.completions.create(
                    model="tiny-qwen",
                    prompt="one two three",
                    max_tokens=8,
                    temperature=0,
                    extra_body={"ignore_eos": True},
                )
                .choices[0]
                .text
                for _ in range(3)
            }
            assert len(texts) == 1
            with pytest.raises(openai.BadRequestError) as refusal:
                client.completions.create(model="tiny-qwen", prompt="word " * 300, max_tokens=1)
            assert refusal.value.code == "context_length_exceeded"


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (MambaConfig(vocab_size=100, hidden_size=16, num_hidden_layers=1), "layers with a state"),
        (
            T5Config(vocab_size=100, d_model=16, d_ff=16, num_layers=1, num_heads=2, d_kv=8),
            "encoder-decoder",
        ),
    ],
    ids=["state-space", "encoder-decoder"],
)
def test_a_model_that_cannot_be_served_exactly_is_refused_in_a_sentence(
    config: PretrainedConfig, reason: str, tmp_path: Path
) -> None:
    config.save_pretrained(tmp_path)
    assert reason in refused(with_tokenizer(tmp_path)).lower()


def refused(folder: Path, *settings: str) -> str:
    """The last line of a server that does not start."""
    command = [sys.executable, "-m", "radixserve", "serve", "--port", "0", "--model", str(folder)]
    ended = subprocess.run([*command, *settings], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 2
    assert "Traceback" not in ended.stderr
    last = ended.stderr.strip().splitlines()[-1]
    assert last.startswith("radixserve: ")
    return last


def test_a_budget_that_cannot_fit_is_refused_before_loading_with_the_numbers() -> None:
    last = refused(embedded_model(), "--kv-budget", "100TiB")
    assert "The model takes 0.50 GiB and kv_budget 102,400.00 GiB, but only" in last
