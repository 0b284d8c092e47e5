"""The command line: what reaches the server, what is refused, exit statuses, and a help that a
person can read.
"""

from __future__ import annotations

import argparse
import logging
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

import radixserve
from radixserve import cli, explain
from radixserve.config import SECTIONS, Settings
from radixserve.config_table import TABLE
from radixserve.errors import ConfigError, ModelRefused, StartupError


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    """The settings with which `radixserve serve` would have served; nothing is served."""
    calls: list[Settings] = []
    stub = types.ModuleType("radixserve.launch")
    stub.launch = lambda settings: calls.append(settings) or 0  # type: ignore[attr-defined, func-returns-value]
    monkeypatch.setitem(sys.modules, "radixserve.launch", stub)
    monkeypatch.setattr(cli, "configure_logging", lambda level: None)
    for row in TABLE:
        monkeypatch.delenv(row.variable, raising=False)
    monkeypatch.delenv("RADIXSERVE_CONFIG", raising=False)
    return calls


def test_serve_without_arguments_uses_the_defaults(served: list[Settings]) -> None:
    assert cli.main(["serve"]) == 0
    assert served == [Settings()]


def test_flags_reach_the_server(served: list[Settings]) -> None:
    flags = [
        "--model",
        "a/b",
        "--host",
        "::1",
        "--port",
        "0",
        "--device",
        "cpu",
        "--kv-budget",
        "512MiB",
        "--no-cache",
    ]
    assert cli.main(["serve", *flags]) == 0
    assert served == [
        Settings(model=("a/b",), host="::1", port=0, device="cpu", kv_budget=512 << 20, cache=False)
    ]


@pytest.mark.parametrize(
    "arguments", [["org/name"], ["--model", "org/name"], ["org/name", "--model", "org/name"]]
)
def test_the_model_can_be_given_without_its_flag(
    arguments: list[str], served: list[Settings]
) -> None:
    assert cli.main(["serve", *arguments, "--port", "0"]) == 0
    assert served == [Settings(model=("org/name",), port=0)]


def test_two_models_are_refused(served: list[Settings], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["serve", "a/b", "--model", "c/d"]) == 2
    assert capsys.readouterr().err == (
        "radixserve: two models are given: a/b and --model c/d; to serve several write --model "
        "before each\n"
    )
    assert served == []


@pytest.mark.parametrize("given", ["flags", "variable", "file"])
def test_several_models_can_be_given_and_their_paths_may_have_spaces(
    given: str, served: list[Settings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags: list[str] = []
    if given == "flags":
        flags = ["--model", "/m/a b", "--model", "x=/c"]
    elif given == "variable":
        monkeypatch.setenv("RADIXSERVE_MODEL", "/m/a b, x=/c")
    else:
        (tmp_path / "f.toml").write_text('[model]\nmodel = ["/m/a b", "x=/c"]')
        flags = ["--config", str(tmp_path / "f.toml")]
    assert cli.main(["serve", *flags]) == 0
    assert served == [Settings(model=("/m/a b", "x=/c"))]


@pytest.mark.parametrize("given", ["flag", "variable", "file"])
def test_the_home_folder_can_be_spelled_as_a_tilde_wherever_a_path_is_given(
    given: str, served: list[Settings], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "settings.toml").write_text(
        "[model]\nmodel = '~/m'\n[cache]\ndisk_path = '~/kv'\n" if given == "file" else ""
    )
    flags = ["--model=~/m", "--disk-path=~/kv"] if given == "flag" else []
    if given == "variable":
        monkeypatch.setenv("RADIXSERVE_MODEL", "~/m")
        monkeypatch.setenv("RADIXSERVE_DISK_PATH", "~/kv")
    assert cli.main(["serve", "--config=~/settings.toml", *flags]) == 0
    assert served == [Settings(model=(f"{tmp_path}/m",), disk_path=f"{tmp_path}/kv")]


def test_a_flag_wins_over_a_variable_and_a_variable_over_the_file(
    served: list[Settings], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(
        "[server]\nport = 1\nhost = 'file'\n[cache]\nkv_budget = '1GiB'\ncache = false\n"
    )
    monkeypatch.setenv("RADIXSERVE_PORT", "2")
    monkeypatch.setenv("RADIXSERVE_HOST", "variable")
    assert cli.main(["serve", "--config", str(file), "--port", "3", "--cache"]) == 0
    assert served == [Settings(port=3, host="variable", kv_budget=1 << 30, cache=True)]


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_every_setting_has_a_flag(row: object, served: list[Settings]) -> None:
    assert isinstance(row, type(TABLE[0]))
    default = "auto" if row.doc.zero else row.show(row.default)
    flags = [row.flag] if row.plain is bool else [row.flag, default]
    assert cli.main(["serve", *flags]) == 0
    assert getattr(served[0], row.name) == (True if row.plain is bool else row.default)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (
            ["--port", "http"],
            "radixserve: --port: server.port = 'http' is not valid: Expected `int`, got `str`\n",
        ),
        (
            ["--kv-budget", "-1"],
            "radixserve: --kv-budget: cache.kv_budget = '-1' is not valid: expected a size",
        ),
        (
            ["--device", "tpu"],
            "radixserve: --device: model.device = 'tpu' is not valid: one of auto, cpu, cuda\n",
        ),
        (
            ["--tool-parser", "xml"],
            "radixserve: --tool-parser: model.tool_parser = 'xml' is not valid: one of auto, "
            "hermes, qwen3_coder, seed_oss, llama3_json,",
        ),
        (
            ["--reasoning-parser", "xml"],
            "radixserve: --reasoning-parser: model.reasoning_parser = 'xml' is not valid: one of "
            "auto, none, harmony,",
        ),
        (["--config", "/absent.toml"], "radixserve: cannot read the settings in /absent.toml: "),
    ],
)
def test_a_wrong_setting_is_one_line_and_status_2(
    arguments: list[str], told: str, served: list[Settings], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["serve", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith(told)
    assert error.count("\n") == 1
    assert served == []


@pytest.mark.parametrize(
    "error", [StartupError("no port"), ConfigError("bad"), ModelRefused("sliding window")]
)
def test_what_prevents_the_start_is_one_line_and_status_2(
    error: StartupError,
    served: list[Settings],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refuse(settings: Settings) -> int:
        raise error

    monkeypatch.setattr(sys.modules["radixserve.launch"], "launch", refuse)
    assert cli.main(["serve"]) == 2
    assert capsys.readouterr().err == f"radixserve: {error}\n"


def test_the_status_of_the_server_is_the_status_of_the_command(
    served: list[Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["radixserve.launch"], "launch", lambda settings: 7)
    assert cli.main(["serve"]) == 7


def test_interrupting_is_status_130(
    served: list[Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(settings: Settings) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["radixserve.launch"], "launch", interrupt)
    assert cli.main(["serve"]) == 130


@pytest.mark.parametrize(
    "arguments", [[], ["fly"], ["serve", "--fly"], ["serve", "model", "extra"], ["serve", "--port"]]
)
def test_wrong_arguments_are_status_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("usage: radixserve")


def test_a_shortened_flag_is_not_guessed(
    served: list[Settings], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        cli.main(["serve", "--kv", "1GiB"])
    assert "unrecognized arguments: --kv\n" in capsys.readouterr().err


def test_a_mistyped_flag_is_answered_with_the_one_that_is_meant(
    served: list[Settings], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["serve", "--modle", "x"])
    told = capsys.readouterr().err
    assert ended.value.code == 2
    assert told.startswith("usage: radixserve serve")
    assert told.endswith("unrecognized arguments: --modle; is --model meant?\n")


def test_the_settings_are_logged_once(
    served: list[Settings], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "radixserve"):
        cli.main(["serve", "--kv-budget", "2048MiB"])
    told = [
        record.getMessage()
        for record in caplog.records
        if "kv_budget=2GiB (--kv-budget)" in record.getMessage()
    ]
    assert len(told) == 1


def helped(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 0
    return capsys.readouterr().out


def test_the_help_names_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    text = helped(["--help"], capsys)
    for command in ("serve", "chat"):
        assert f"\n    {command} " in text


def test_the_help_of_serve_groups_every_setting_by_section(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    text = helped(["serve", "--help"], capsys)
    starts = [text.index(f"\n[{section}] {title}:\n") for section, title in SECTIONS.items()]
    assert starts == sorted(starts)
    for row in TABLE:
        assert text.index(f"\n  {row.flag}") > starts[list(SECTIONS).index(row.doc.section)]
    assert (
        "memory for keys and values, in bytes; auto: a share of the free memory [auto]"
        in " ".join(text.split())
    )
    assert max(len(line) for line in text.splitlines()) <= 100


def test_chat_runs_the_terminal_client(monkeypatch: pytest.MonkeyPatch) -> None:
    from radixserve import chat

    calls: list[argparse.Namespace] = []
    monkeypatch.setattr(chat, "main", lambda arguments: calls.append(arguments) or 0)  # type: ignore[func-returns-value]
    assert cli.main(["chat"]) == 0
    assert len(calls) == 1


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    root = Path(__file__).parent.parent
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("radixserve comp", {"completion"}),
        ("radixserve cache c", {"check", "clear"}),
        ("radixserve serve --dr", {"--drain-seconds"}),
        ("radixserve serve --device ", {"auto", "cpu", "cuda"}),
        ("radixserve completion ", {"bash", "zsh", "fish"}),
    ],
)
def test_a_shell_is_told_what_may_come_next(line: str, words: set[str], tmp_path: Path) -> None:
    asked = {
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_IFS": "\n",
        "_ARGCOMPLETE_SUPPRESS_SPACE": "1",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(tmp_path / "words"),
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
    }
    command = [sys.executable, "-m", "radixserve"]
    assert subprocess.run(command, env=os.environ | asked, check=False).returncode == 0
    assert words <= set((tmp_path / "words").read_text().split("\n"))


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_code_for_the_shell(
    shell: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["completion", shell]) == 0
    code = capsys.readouterr().out
    assert "complete --command radixserve" in code if shell == "fish" else "#compdef" in code


def test_the_package_runs_as_a_module() -> None:
    result = run("-m", "radixserve", "--version")
    assert (result.returncode, result.stdout, result.stderr) == (
        0,
        f"radixserve {radixserve.__version__}\n",
        "",
    )


def test_help_and_settings_need_neither_torch_nor_transformers() -> None:
    heavy = "{'torch', 'transformers', 'numba', 'aiohttp'}"
    code = (
        f"import sys\nfrom radixserve import cli\ncli._parser()\nprint(sorted({heavy} & "
        "set(sys.modules)))"
    )
    assert run("-c", code).stdout == "[]\n"


def test_log_lines_name_level_and_module_and_keep_libraries_quiet() -> None:
    code = (
        "import logging\nfrom radixserve.logs import configure_logging\nconfigure_logging('info')\n"
        "logging.getLogger('radixserve.x').info('hello')\nlogging.getLogger('radixserve.x').debug('no')\n"
        "logging.getLogger('other').info('no')\nlogging.getLogger('other').warning('beware')\n"
    )
    lines = run("-c", code).stderr.splitlines()
    assert [line.split(" ", 2)[2].split() for line in lines] == [
        ["INFO", "front", "radixserve.x:", "hello"],
        ["WARNING", "front", "other:", "beware"],
    ]


def test_an_explanation_is_told_in_some_lines() -> None:
    text = explain.told(
        {
            "matched_tokens": 2,
            "prompt_tokens": 5,
            "matched": {"device": 2},
            "cause": "prefix_changed",
            "why": "An earlier prompt goes on otherwise.",
            "gone": {"seconds_ago": 3.0, "room_for_tokens": 7},
            "compared_with": {"kind": "recent", "tokens": 9, "age_seconds": 4.0, "shared": 2},
            "first_difference": {
                "position": 2,
                "region": {"kind": "system", "words": "the system prompt"},
                "before": [{"id": 1, "text": "is "}],
                "prompt": [{"id": 2, "text": "Mon"}],
                "earlier": [{"id": 3, "text": "Tue"}],
            },
            "hints": ["There is a date here."],
        }
    )
    assert "2 of 5 tokens are cached (2 device)" in text
    assert "when room was made for 7 tokens" in text
    assert "token 2, in the system prompt" in text
    assert "'is Mon'" in text
    assert "Hint: There is a date here." in text


def test_explain_without_a_server_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "body.json").write_text("{}")
    arguments = ["cache", "explain", str(tmp_path / "body.json"), "--url", "http://127.0.0.1:9"]
    assert cli.main(arguments) == 1
    assert capsys.readouterr().err.startswith("radixserve: ")
