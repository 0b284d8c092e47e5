"""`radixserve serve` with folders that are damaged, or prepared to harm: the start ends with exit
code 2 and one sentence that names the trouble. Nothing was announced, and no process is left.

A start takes three seconds, so there is one for each stage at which a folder is refused. All kinds
of damage are in tests/checkpoints; chat templates that never end in tests/text/test_processes.py.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from tests.checkpoints.damage import WEIGHTS, add_names, change_config, change_weights
from tests.e2e.test_other_models import SIZE, with_tokenizer

pytestmark = pytest.mark.model  # the tokenizer is the embedded model's

MOST_SECONDS = 60.0  # three to five on a machine of two cores


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "sound"
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(LlamaConfig(**SIZE)).save_pretrained(folder)
    return with_tokenizer(folder)


def link_in_a_circle(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to("config.json")


def other_vocabulary(folder: Path) -> None:
    change_config(folder, vocab_size=100)


def half_a_million_names(folder: Path) -> None:
    add_names(folder, 500_000)


def no_numbers(folder: Path) -> None:
    change_weights(folder, lambda tensors: tensors["model.norm.weight"].fill_(float("nan")))


def other_tensors(folder: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["adapter.weight"] = tensors.pop("lm_head.weight")
        tensors["model.norm.weight"] = tensors["model.norm.weight"][:32].clone()

    change_weights(folder, change)


SENTENCES: dict[Callable[[Path], None], str] = {
    link_in_a_circle: "FOLDER/config.json cannot be read: too many levels of symbolic links.",
    other_vocabulary: "FOLDER/tokenizer.json and config.json do not belong together: the tokenizer "
    "makes tokens up to 49,151, the model has 100.",
    half_a_million_names: f"FOLDER/{WEIGHTS} holds 500,021 tensors; of one model at most 300,000 "
    "are read.",
    no_numbers: f"FOLDER/{WEIGHTS} is damaged: model.norm.weight holds NaN.",
    other_tensors: "The tensors in FOLDER are not those of this llama model: 1 missing "
    "(lm_head.weight), 1 of another shape (model.norm.weight is [32] and not [64]), 1 unexpected "
    "(adapter.weight).",
}


@pytest.mark.parametrize("damage", SENTENCES, ids=lambda damage: damage.__name__)
def test_a_damaged_folder_ends_the_start_with_one_sentence_and_leaves_nothing(
    damage: Callable[[Path], None], sound: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(sound, tmp_path / "model")
    damage(folder)
    files = sorted(os.listdir(folder))
    command = [sys.executable, "-m", "radixserve", "serve", "--port", "0", "--log-level", "error"]
    starting = subprocess.Popen(
        [*command, "--model", str(folder)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        stdout, stderr = starting.communicate(timeout=MOST_SECONDS)
        assert not processes_of_session(starting.pid)
    finally:
        starting.kill()
        starting.communicate()
    assert (starting.returncode, stdout) == (2, "")
    assert stderr.replace(str(folder), "FOLDER") == f"radixserve: {SENTENCES[damage]}\n"
    assert sorted(os.listdir(folder)) == files


def processes_of_session(session: int) -> list[str]:
    """The command lines of its processes; those that have ended and wait for their parent count,
    too.
    """
    listed = subprocess.run(
        ["ps", "-wwo", "args=", "-s", str(session)], capture_output=True, text=True
    )
    return listed.stdout.splitlines()
