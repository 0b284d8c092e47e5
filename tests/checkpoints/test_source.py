"""Which folder and which names a setting stands for, and what is said where there is none."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from radixserve.checkpoints import source
from radixserve.checkpoints.source import find_model
from radixserve.config import Settings
from radixserve.errors import ModelRefused
from tests.checkpoints.hub import COMMIT, NAME, running_hub
from tests.signals import usual_signals

OTHER = "f" * 40


def model_folder(path: Path) -> Path:
    path.mkdir(parents=True)
    (path / "config.json").write_text("{}")
    return path


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder of its own, and a hub's cache of its own."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    for variable in ("HF_HUB_OFFLINE", "HF_HUB_CACHE", "HF_TOKEN"):
        monkeypatch.delenv(variable, raising=False)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def hub_cache(folder: Path, *commits: str) -> Path:
    for commit in commits:
        model_folder(folder / "snapshots" / commit)
        (folder / "snapshots" / commit / "model.safetensors").touch()
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(commits[-1])
    return folder


@pytest.mark.parametrize(
    ("typed", "names"),
    [
        ("org/name", ("org/name", "name")),
        ("org/name/", ("org/name", "name")),
        ("./org/name/", ("name",)),
        ("org", ("org",)),
        ("org/../org/name", ("name",)),
        ("deep/org/name", ("name",)),
    ],
)
def test_a_folder_is_called_by_its_name(typed: str, names: tuple[str, ...], here: Path) -> None:
    for folder in ("org", "org/name", "deep/org/name"):
        (here / folder).mkdir(parents=True, exist_ok=True)
        (here / folder / "config.json").write_text("{}")
    found = find_model(Settings(model=(typed,)))
    assert (found.folder, found.names) == (Path(typed), names)


def test_the_working_folder_has_a_name(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(model_folder(here / "tiny"))
    for typed in (".", "./", "../tiny"):
        assert find_model(Settings(model=(typed,))).names == ("tiny",)


def test_chosen_names_stand_for_all_others_and_the_first_is_shown(here: Path) -> None:
    model_folder(here / "tiny")
    settings = Settings(model=("tiny",), served_model_name=("a", "b/c", "a"))
    assert find_model(settings).names == ("a", "b/c")


def test_names_with_a_star_come_last_because_answers_carry_the_first(here: Path) -> None:
    model_folder(here / "tiny")
    settings = Settings(model=("tiny",), served_model_name=("x-*", "a", "*"))
    assert find_model(settings).names == ("a", "x-*", "*")
    settings = Settings(model=("tiny",), served_model_name=("x-*",))
    assert find_model(settings).names == ("tiny", "x-*")


@pytest.mark.parametrize("revision", [None, "main", OTHER])
def test_a_folder_of_the_hubs_cache_is_a_model_by_its_full_name(
    revision: str | None, here: Path
) -> None:
    folder = hub_cache(here / "models--org--two--parts", COMMIT, OTHER)
    found = find_model(Settings(model=(str(folder),), revision=revision))
    assert found.folder == folder / "snapshots" / OTHER
    assert found.names == ("org/two--parts", "two--parts")


def test_another_revision_in_the_hubs_cache_is_found_and_a_missing_one_refused(here: Path) -> None:
    folder = hub_cache(here / "models--org--name", COMMIT, OTHER)
    found = find_model(Settings(model=(str(folder),), revision=COMMIT))
    assert found.folder == folder / "snapshots" / COMMIT
    with pytest.raises(ModelRefused, match=r"of the hub's cache has no revision 'v2'"):
        find_model(Settings(model=(str(folder),), revision="v2"))


def test_a_snapshot_is_called_by_its_models_name_and_not_by_its_hash(here: Path) -> None:
    folder = hub_cache(here / "models--org--name", COMMIT) / "snapshots" / COMMIT
    assert find_model(Settings(model=(str(folder),))).names == ("org/name", "name")


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("./none", "there is no folder './none'"),
        ("a b", "there is no folder 'a b'"),
        ("a/b/c", "there is no folder 'a/b/c'"),
        ("../none.gguf", "there is no folder '../none.gguf'"),
        ("tiny/config.json", r"tiny/config.json is a file: give the folder it lies in, /.*/tiny"),
        ("empty", "the folder empty holds no model: config.json is missing"),
        ("gguf", "holds no model: config.json is missing; it has x.gguf: give that file"),
    ],
)
def test_what_is_no_model_is_refused_in_one_sentence(typed: str, told: str, here: Path) -> None:
    model_folder(here / "tiny")
    (here / "empty").mkdir()
    (here / "gguf").mkdir()
    (here / "gguf" / "x.gguf").touch()
    with pytest.raises(ModelRefused, match=told):
        find_model(Settings(model=(typed,)))


def test_a_plain_folder_has_no_revisions(here: Path) -> None:
    model_folder(here / "tiny")
    with pytest.raises(ModelRefused, match="tiny is a folder, which has no revision 'v2'"):
        find_model(Settings(model=("tiny",), revision="v2"))
    with pytest.raises(ModelRefused, match="revision 'v2' needs a model from the hub"):
        find_model(Settings(revision="v2"))


def test_a_gguf_file_is_converted_and_once_more_when_it_changes(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[Path, str]] = []

    def note(find: Callable[[], Path], name: str) -> Path:
        made.append((find(), name))
        return here / name

    monkeypatch.setattr(source, "converted", note)
    (here / "tiny.Q4_1.gguf").write_bytes(b"GGUF")
    first = find_model(Settings(model=("tiny.Q4_1.gguf",)))
    assert first == find_model(Settings(model=(str(here / "tiny.Q4_1.gguf"),)))
    assert first.names == ("tiny.Q4_1",)
    assert [file.name for file, _ in made] == ["tiny.Q4_1.gguf"] * 2
    os.utime(here / "tiny.Q4_1.gguf", (0, 0))
    assert find_model(Settings(model=("tiny.Q4_1.gguf",))).folder != first.folder
    with pytest.raises(ModelRefused, match="is a file, which has no revision 'v2'"):
        find_model(Settings(model=("tiny.Q4_1.gguf",), revision="v2"))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with running_hub() as url:
        monkeypatch.setenv("HF_ENDPOINT", url)
        monkeypatch.setattr(source, "_CONTACT_SECONDS", 60.0)
        yield url


@pytest.fixture
def silent_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        yield


def test_a_model_comes_from_the_hub_and_then_from_its_cache(
    hub: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    found = find_model(Settings(model=(NAME,)))
    assert found.names == ("org/tiny", "tiny")
    assert sorted(file.name for file in found.folder.iterdir()) == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    assert find_model(Settings(model=(NAME,))) == found
    assert "the hub cannot be reached" in caplog.text
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert find_model(Settings(model=(NAME,))) == found


@pytest.mark.parametrize(
    ("name", "revision", "told"),
    [
        ("org/none", None, "there is no folder 'org/none' here, and the hub has no model of that"),
        ("org/gated", None, r"org/gated is gated: accept its terms at http://.*/org/gated, then"),
        (NAME, "v2", "org/tiny has no revision 'v2'"),
    ],
)
def test_what_the_hub_does_not_give_is_one_sentence(
    name: str, revision: str | None, told: str, hub: str
) -> None:
    with pytest.raises(ModelRefused, match=told):
        find_model(Settings(model=(name,), revision=revision))


def test_a_hub_that_is_silent_is_given_up_and_the_cache_is_named(
    silent_hub: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "_CONTACT_SECONDS", 0.5)
    told = (
        f"there is no folder 'org/tiny' here, and no whole copy of it in the hub's cache "
        f"{tmp_path}/hub/hub; the hub cannot be reached \\(no answer within 0.5 s\\)"
    )
    with pytest.raises(ModelRefused, match=told):
        find_model(Settings(model=(NAME,)))


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_wait_for_a_hub(
    number: int, status: int, silent_hub: None, here: Path
) -> None:
    command = [sys.executable, "-m", "radixserve", "serve", NAME, "--port", "0"]
    environment = os.environ | {"PYTHONPATH": str(Path(source.__file__).parents[2])}
    with (
        usual_signals(),
        subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as server,
    ):
        assert server.stderr is not None
        while "looking for org/tiny" not in server.stderr.readline():
            assert server.poll() is None
        time.sleep(0.2)
        server.send_signal(number)
        begun = time.monotonic()
        assert server.wait(timeout=30) == status
        assert time.monotonic() - begun < 4
        assert "Traceback" not in server.stderr.read()
