"""The table of settings: parsing, precedence, refusals that name key and source, and the way over
the socket.
"""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from radixserve import config_sources
from radixserve.config import SECTIONS, Settings
from radixserve.config_sources import OTHER_VARIABLES, resolve
from radixserve.config_table import TABLE, Setting
from radixserve.errors import ConfigError

ROWS = {row.name: row for row in TABLE}
CONFIGS = Path(__file__).parent.parent / "configs"


def toml(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "settings.toml"
    path.write_text(text)
    return path


def other_than_default(row: Setting) -> str:
    """Some valid text that is not the default."""
    if row.plain is bool:
        return "false" if row.default else "true"
    if row.choices:
        return next(each for each in row.choices if each != row.default)
    if row.plain is float:
        return "0.5"
    return (
        "some=name"
        if row.plain is str or row.several
        else "2097152"
        if row.doc.unit == "bytes"
        else "1024"
    )


def test_every_setting_belongs_to_a_section_and_has_help() -> None:
    assert [row.name for row in TABLE if row.doc.section not in SECTIONS or not row.doc.help] == []
    assert {row.doc.section for row in TABLE} == set(SECTIONS)


def test_every_default_is_valid_and_survives_being_written_and_read() -> None:
    for row in TABLE:
        assert msgspec.convert(row.default, row.type) == row.default
        assert row.parse_text(row.show(row.default), "test") == row.default


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_flag_beats_variable_beats_file_beats_default(
    row: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = other_than_default(row)
    if row.name in ("kv_budget_min", "host_budget_max"):  # have no effect alone
        monkeypatch.setattr(config_sources, "_refuse_contradictions", lambda *_: None)
    value = row.parse_text(text, "test")
    literal = text if row.plain in (int, float, bool) else f'"{text}"'
    file = toml(tmp_path, f"[{row.doc.section}]\n{row.name} = {literal}\n")
    default = "auto" if row.doc.zero else row.show(row.default)

    assert value != row.default
    assert getattr(resolve({}, {}).settings, row.name) == row.default
    assert getattr(resolve({}, {}, file).settings, row.name) == value
    assert getattr(resolve({}, {row.variable: text}).settings, row.name) == value
    assert getattr(resolve({}, {row.variable: default}, file).settings, row.name) == row.default
    assert getattr(resolve({row.name: text}, {row.variable: default}).settings, row.name) == value
    assert resolve({row.name: text}, {row.variable: text}, file).sources == {row.name: row.flag}


def test_settings_reach_the_engine_process_unchanged() -> None:
    settings = Settings(model=("some/model",), kv_budget=3 << 30, cache=False, drain_seconds=1.5)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(settings), type=Settings) == settings


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("port", "http"),
        ("port", "65536"),
        ("port", "-1"),
        ("port", "80.5"),
        ("port", ""),
        ("kv_budget", "lots"),
        ("cache", "maybe"),
        ("device", "tpu"),
        ("model", ""),
        ("model", "   "),
        ("max_running", "0"),
        ("max_running", "auto"),
        ("drain_seconds", "nan"),
        ("drain_seconds", "inf"),
        ("log_level", "loud"),
    ],
)
def test_a_malformed_value_is_refused_with_key_and_source(name: str, text: str) -> None:
    row = ROWS[name]
    with pytest.raises(ConfigError, match=rf"^{row.flag}: {row.key} = "):
        resolve({name: text}, {})
    with pytest.raises(ConfigError, match=rf"^{row.variable}: {row.key} = "):
        resolve({}, {row.variable: text})


@pytest.mark.parametrize(
    "line",
    [
        "[server]\nport = '8000'",
        "[server]\nport = true",
        "[server]\nport = 80.5",
        "[server]\ndrain_seconds = nan",
        "[cache]\ncache = 1",
        "[cache]\ncache = 'yes'",
        "[cache]\nkv_budget = -5",
        "[cache]\nkv_budget = 1.5",
        "[model]\nmodel = [1]",
        "[model]\nrevision = ['a']",
        "[model]\ndevice = 'tpu'",
    ],
)
def test_a_file_must_use_the_right_type(line: str, tmp_path: Path) -> None:
    file = toml(tmp_path, line)
    with pytest.raises(ConfigError, match=r"settings\.toml: \w+\.\w+ = .* is not valid"):
        resolve({}, {}, file)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("[cache]\nkv_buget = 1", r"cache\.kv_buget is no setting; did you mean kv_budget\?"),
        ("[cahce]\nkv_budget = 1", r"\[cahce\] is no section; did you mean cache\?"),
        (
            "[zzz]\nkv_budget = 1",
            r"\[zzz\] is no section; known are server, model, cache, scheduler, limits",
        ),
        ("kv_budget = 1", r"\[kv_budget\] is no section"),
        ("[server]\nkv_budget = 1", r"kv_budget belongs in \[cache\], not in \[server\]"),
        ("[server\n", "cannot read the settings in"),
    ],
)
def test_what_a_file_may_not_say(content: str, told: str, tmp_path: Path) -> None:
    file = toml(tmp_path, content)
    with pytest.raises(ConfigError, match=told):
        resolve({}, {}, file)


def test_a_missing_or_unreadable_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.toml: .*No such file"):
        resolve({}, {}, tmp_path / "absent.toml")
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"binary\.toml"):
        resolve({}, {}, binary)


def test_an_unknown_variable_is_refused_and_others_are_ignored() -> None:
    assert (
        resolve({}, {"PATH": "/bin", "PORT": "1", "RADIXSERVE_CACHE_DIR": "/models"}).sources == {}
    )
    with pytest.raises(
        ConfigError, match=r"^RADIXSERVE_KV_BUGDET is no setting; did you mean RADIXSERVE_KV_BUDGET"
    ):
        resolve({}, {"RADIXSERVE_KV_BUGDET": "1GiB"})


def test_the_file_can_be_named_by_a_variable_and_a_flag_names_another(tmp_path: Path) -> None:
    file = toml(tmp_path, "[server]\nport = 1234\n")
    assert resolve({}, {"RADIXSERVE_CONFIG": str(file)}).settings.port == 1234
    (tmp_path / "other").mkdir()
    other = toml(tmp_path / "other", "[server]\nport = 4321\n")
    assert resolve({}, {"RADIXSERVE_CONFIG": str(file)}, other).settings.port == 4321


def test_contradictions_name_both_settings_and_their_sources() -> None:
    with pytest.raises(
        ConfigError,
        match=r"fake_model=True \(--fake-model\) contradicts model=m \(RADIXSERVE_MODEL\)",
    ):
        resolve({"fake_model": True}, {"RADIXSERVE_MODEL": "m"})
    with pytest.raises(
        ConfigError,
        match=r"max_step_tokens=8 \(--max-step-tokens\) contradicts max_running=16 \(default\)",
    ):
        resolve({"max_step_tokens": "8"}, {})
    assert resolve({"max_step_tokens": "8", "max_running": "8"}, {}).settings.max_step_tokens == 8
    with pytest.raises(
        ConfigError, match=r"kv_budget=1024 \(--kv-budget\) contradicts kv_share=0.5 \(--kv-share\)"
    ):
        resolve({"kv_budget": "1KiB", "kv_share": "0.5"}, {})


def test_a_budget_that_moves_begins_within_its_bounds() -> None:
    bounds = {"kv_budget_min": "1MiB", "kv_budget_max": "4MiB"}
    assert resolve(bounds, {}).settings.kv_budget_max == 4 << 20
    for more, match in (
        ({"kv_budget_min": "5MiB"}, r"kv_budget_min=5242880 .* contradicts kv_budget_max=4194304"),
        ({"kv_budget": "5MiB"}, r"kv_budget=5242880 .* contradicts kv_budget_max=4194304"),
        ({"kv_budget": "512KiB"}, r"kv_budget_min=1048576 .* contradicts kv_budget=524288"),
        ({"kv_budget_max": "auto"}, r"kv_budget_min=.* has no effect without kv_budget_max"),
        ({"cache": "no"}, r"kv_budget_max=.* contradicts cache=False"),
    ):
        with pytest.raises(ConfigError, match=match):
            resolve(bounds | more, {})


def test_the_largest_budget_of_host_memory_needs_a_smaller_one_at_start() -> None:
    with pytest.raises(ConfigError, match=r"host_budget_max=1024 .* has no effect without host_bu"):
        resolve({"host_budget_max": "1KiB"}, {})
    budgets = {"host_budget": "2KiB", "host_budget_max": "1KiB"}
    with pytest.raises(ConfigError, match=r"host_budget=2048 .* contradicts host_budget_max=1024"):
        resolve(budgets, {})
    assert resolve(budgets | {"host_budget_max": "2KiB"}, {}).settings.host_budget_max == 2048


def test_the_description_names_every_setting_and_the_source_of_what_was_chosen() -> None:
    told = resolve({"kv_budget": "2048MiB"}, {"RADIXSERVE_CACHE": "no"}).describe()
    assert (
        "kv_budget=2GiB (--kv-budget), kv_share=auto, kv_budget_max=auto, kv_budget_min=auto, "
        "cache=false (RADIXSERVE_CACHE), "
        "eviction_policy=lru, host_budget=auto" in told
    )
    assert [row.name for row in TABLE if f"{row.name}=" not in told] == []


def test_every_variable_that_the_package_reads_is_a_setting_or_declared() -> None:
    known = {row.variable for row in TABLE} | set(OTHER_VARIABLES)
    package = Path(__file__).parent.parent / "radixserve"
    read = {
        name
        for path in package.rglob("*.py")
        for name in re.findall(r"RADIXSERVE_[A-Z]\w*", path.read_text())
    }
    assert read - known == set()


@pytest.mark.parametrize("name", ["cpu-default.toml", "single-gpu.toml"])
def test_the_configurations_in_the_repository_load_and_comment_every_line(name: str) -> None:
    settings = resolve({}, {}, CONFIGS / name).settings
    assert settings.device == {"cpu-default.toml": "cpu", "single-gpu.toml": "cuda"}[name]
    for line in (CONFIGS / name).read_text().splitlines():
        assert not line or line.startswith(("#", "[")) or "#" in line, (
            f"{name}: no comment at {line!r}"
        )


@pytest.mark.parametrize(
    ("value", "names"),
    [
        (["a", "org/b"], ("a", "org/b")),
        (["a,b", "c"], ("a", "b", "c")),
        ("a, b c", ("a", "b", "c")),
    ],
)
def test_a_setting_of_several_words_takes_arguments_and_commas(
    value: list[str] | str, names: tuple[str, ...]
) -> None:
    assert resolve({"served_model_name": value}, {}).settings.served_model_name == names


def test_a_setting_of_several_words_is_a_list_or_one_word_in_the_file(tmp_path: Path) -> None:
    for literal, names in (('["a", "b c"]', ("a", "b c")), ('"a"', ("a",))):
        file = toml(tmp_path, f"[model]\nserved_model_name = {literal}\n")
        assert resolve({}, {}, file).settings.served_model_name == names


def test_a_secret_is_never_shown() -> None:
    told = resolve({}, {"RADIXSERVE_API_KEY": "sk-hidden"})
    assert told.settings.api_key == "sk-hidden"
    assert "api_key=(secret) (RADIXSERVE_API_KEY)" in told.describe()
    assert "sk-hidden" not in told.describe()
    for text in ("sk-hidden with spaces", "sk-hidden\u00e9"):
        with pytest.raises(ConfigError, match="api_key") as refused:
            resolve({"api_key": text}, {})
        assert "sk-hidden" not in str(refused.value)
    with pytest.raises(ConfigError, match=r"RADIXSERVE_API_KEY: server\.api_key"):
        resolve({}, {"RADIXSERVE_API_KEY": ""})
