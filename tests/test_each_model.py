"""The settings of each of several models, and what is refused with several."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from radixserve.assembly import find_each
from radixserve.config import Settings
from radixserve.each_model import each_model
from radixserve.errors import ConfigError, StartupError

MIB = 1 << 20


def test_one_model_has_the_settings_of_the_server(tmp_path: Path) -> None:
    settings = Settings(kv_budget=100 * MIB, disk_path="kv", served_model_name=("a",))
    assert each_model(settings) == [settings]
    (named,) = each_model(Settings(model=("a=org/x",)))
    assert named == Settings(model=("org/x",), served_model_name=("a",))
    (tmp_path / "a=b").mkdir()
    typed = (str(tmp_path / "a=b"),)
    assert each_model(Settings(model=typed)) == [Settings(model=typed)]
    assert each_model(Settings(model=("auto",))) == [Settings()]


def test_several_models_share_a_budget_and_divide_the_rest() -> None:
    settings = Settings(
        model=("org/x", "b=~/y", "c=auto"),
        kv_budget=1200 * MIB,
        host_budget=300 * MIB,
        disk_path="kv",
        disk_budget=600 * MIB,
        max_running=7,
    )
    each = each_model(settings)
    assert [one.model for one in each] == [("org/x",), (f"{Path.home()}/y",), ()]
    assert [one.served_model_name for one in each] == [(), ("b",), ("c",)]
    assert [one.disk_path for one in each] == ["kv/org%2Fx", "kv/b", "kv/c"]
    for one in each:
        assert (one.kv_budget, one.kv_budget_max) == (100 * MIB, 1200 * MIB)
        assert (one.host_budget, one.disk_budget) == (100 * MIB, 200 * MIB)
        assert one.max_running == 7


def test_the_smallest_part_can_be_given() -> None:
    two = Settings(model=("a", "b"), kv_budget=100 * MIB, kv_budget_min=50 * MIB)
    assert each_model(two)[1].kv_budget == 50 * MIB
    with pytest.raises(ConfigError, match=r"kv_budget_min of .* for each of 2 models is more"):
        each_model(msgspec.structs.replace(two, kv_budget_min=51 * MIB))


def test_without_a_budget_models_share_a_part_of_the_free_memory() -> None:
    one, other = each_model(Settings(model=("a", "b")))
    assert one.kv_budget_max == other.kv_budget_max
    assert 8 * one.kv_budget <= one.kv_budget_max <= 4 << 30


@pytest.mark.parametrize(
    "setting",
    [
        {"served_model_name": ("x",)},
        {"revision": "v2"},
        {"chat_template": "t.jinja"},
        {"generation_config": "g.json"},
        {"lora": ("x=p",)},
        {"lora_dir": "p"},
        {"kv_budget_max": 1 << 30},
        {"host_budget_max": 1 << 30},
        {"warm": "w.jsonl"},
        {"public_prefix": "p.jsonl"},
        {"record": "r.jsonl"},
        {"kv_events": "tcp://127.0.0.1:5557"},
    ],
)
def test_what_is_for_one_model_is_refused_by_name_with_several(setting: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"^{next(iter(setting))} is for one model"):
        each_model(Settings(model=("a", "b"), **setting))


def test_two_names_of_one_model_are_refused() -> None:
    with pytest.raises(ConfigError, match="served_model_name contradicts NAME=MODEL"):
        each_model(Settings(model=("a=x",), served_model_name=("b",)))


def test_models_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"called 'SmolLM2.*give each a name"):
        find_each(each_model(Settings(model=("auto", "auto"))))


def test_a_model_that_is_not_there_is_named() -> None:
    with pytest.raises(StartupError, match=r"^/no/model: there is no folder '/no/model'"):
        find_each(each_model(Settings(model=("a=auto", "b=/no/model"))))
