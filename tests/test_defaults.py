"""Where the defaults of requests come from, and which source wins."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from radixserve.config import Settings
from radixserve.defaults import OPENAI, Defaults, load_defaults
from radixserve.errors import ConfigError

FILE = "generation_config.json"


def folder_with(folder: Path, config: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / FILE).write_text(config if isinstance(config, str) else json.dumps(config))
    return folder


def plain(defaults: Defaults) -> dict[str, Any]:
    """What differs from OpenAI's values, the source left out."""
    return {
        name: getattr(defaults, name)
        for name in Defaults.__struct_fields__
        if name != "source" and getattr(defaults, name) != getattr(OPENAI, name)
    }


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (
            {"temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.05},
            {"temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.05},
        ),
        ({"min_p": 0.1, "max_new_tokens": 300}, {"min_p": 0.1, "chat_max_tokens": 300}),
        ({"do_sample": True, "temperature": 0.6}, {"temperature": 0.6}),
        ({"do_sample": True}, {}),
        # As in transformers, greedy is greedy whatever stands beside it.
        ({"do_sample": False, "temperature": 0.6}, {"temperature": 0.0}),
        ({"do_sample": None, "temperature": None, "top_k": None}, {}),
        ({"eos_token_id": 2}, {"stop_token_ids": (2,)}),
        ({"eos_token_id": [2, 7], "max_length": 20}, {"stop_token_ids": (2, 7)}),
    ],
)
def test_the_models_own_file_is_read(
    tmp_path: Path, config: dict[str, Any], expected: dict[str, Any]
) -> None:
    assert plain(load_defaults(Settings(), folder_with(tmp_path, config))) == expected


@pytest.mark.parametrize("config", [None, "{", "[1]", {"eos_token_id": 2, "bos_token_id": 1}])
def test_a_model_without_defaults_gets_those_of_openai_and_the_log_says_so(
    tmp_path: Path, config: Any, caplog: pytest.LogCaptureFixture
) -> None:
    if config is not None:
        folder_with(tmp_path, config)
    with caplog.at_level(logging.INFO, "radixserve"):
        defaults = load_defaults(Settings(), tmp_path)
    assert {**plain(defaults), "stop_token_ids": ()} == {"stop_token_ids": ()}
    assert defaults.source == "OpenAI"
    [record] = caplog.records
    assert record.getMessage().startswith("defaults of requests: OpenAI's")


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": "hot"},
        {"temperature": True},
        {"temperature": 3.5},
        {"top_p": 0},
        {"top_p": 1.5},
        {"top_k": 1.5},
        {"max_new_tokens": 0},
        {"repetition_penalty": 0},
    ],
)
def test_a_wrong_value_of_the_models_is_left_out_and_of_a_named_file_refused(
    tmp_path: Path, wrong: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    folder = folder_with(tmp_path, {"min_p": 0.5, **wrong})
    assert plain(load_defaults(Settings(), folder)) == {"min_p": 0.5}
    assert f"left out of the defaults: {next(iter(wrong))} is " in caplog.text
    with pytest.raises(ConfigError, match=f"generation_config: .*{next(iter(wrong))} is "):
        load_defaults(Settings(generation_config=str(folder)), tmp_path)


def test_a_named_file_or_folder_stands_for_the_models_own(tmp_path: Path) -> None:
    model = folder_with(tmp_path / "model", {"temperature": 0.1})
    other = folder_with(tmp_path / "other", {"top_k": 5, "eos_token_id": 9})
    for named in (other, other / FILE):
        defaults = load_defaults(Settings(generation_config=str(named)), model)
        assert plain(defaults) == {"top_k": 5, "stop_token_ids": (9,)}
        assert defaults.source == str(other / FILE)
    assert load_defaults(Settings(generation_config="none"), model) == OPENAI
    for absent in (tmp_path / "absent.json", folder_with(tmp_path / "broken", "{") / FILE):
        with pytest.raises(ConfigError, match="generation_config: cannot read"):
            load_defaults(Settings(generation_config=str(absent)), model)


def test_settings_win_over_files(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, {"temperature": 0.1, "top_k": 3, "max_new_tokens": 9})
    settings = Settings(
        default_sampling=("temperature=0", "presence_penalty=0.5"), default_max_tokens=77
    )
    assert plain(load_defaults(settings, folder)) == {
        "temperature": 0.0,
        "top_k": 3,
        "presence_penalty": 0.5,
        "chat_max_tokens": 77,
        "completion_max_tokens": 77,
    }


def test_what_comes_with_a_model_stands_for_its_file(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, {"temperature": 0.1})
    assert plain(load_defaults(Settings(), folder, {"do_sample": False})) == {"temperature": 0.0}
    assert load_defaults(Settings(generation_config="none"), folder, {"do_sample": False}) == OPENAI


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("temperature", "no KEY=VALUE"),
        ("heat=1", "keys temperature, top_p"),
        ("max_tokens=5", "use default_max_tokens"),
        ("temperature=hot", "is not valid"),
        ("temperature=9", r"outside of 0\.0 \.\. 2\.0"),
        ("top_k=1.5", "no number that it can have"),
    ],
)
def test_a_wrong_default_is_refused(tmp_path: Path, word: str, told: str) -> None:
    with pytest.raises(ConfigError, match=f"default_sampling: '{word}' .*{told}"):
        load_defaults(Settings(default_sampling=(word,)), tmp_path)
