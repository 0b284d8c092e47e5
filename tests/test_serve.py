"""What is refused before anything starts, and what a started server tells a person to try."""

from __future__ import annotations

import asyncio
import shutil
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock

import pytest

from radixserve import launch, serve
from radixserve.api.address import take_address
from radixserve.api.context import Api
from radixserve.api.keys import Keys
from radixserve.api.settings import ApiSettings
from radixserve.checkpoints import source
from radixserve.config import Settings
from radixserve.errors import StartupError
from radixserve.metrics import Metrics
from radixserve.text.conversation import Conversation
from radixserve.text.messages import Encoded
from tests.fakes import INFO, FakeEngine, LocalTokenizer, byte_tokenizer
from tests.store.parts import opened


@pytest.mark.parametrize(
    ("on_path", "installed", "told"),
    [
        (True, True, "radixserve"),
        (False, True, ".venv/bin/radixserve"),
        (False, False, "radixserve"),
    ],
)
def test_the_command_for_another_terminal_can_be_typed_there(
    on_path: bool,
    installed: bool,
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / ".venv" / "bin"
    folder.mkdir(parents=True)
    if installed:
        (folder / "radixserve").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", str(folder / "python"))
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/radixserve" if on_path else None)
    serve._announce("http://127.0.0.1:8001", ["tiny"], with_key=False)
    first, curl, chat = capsys.readouterr().out.splitlines()
    assert first == "radixserve: tiny listening on http://127.0.0.1:8001"
    assert curl.startswith("try: curl -s http://127.0.0.1:8001/v1/chat/completions ")
    assert chat == f"or, in another terminal: {told} chat --url http://127.0.0.1:8001"


@pytest.mark.parametrize(("floor", "warned"), [('"1KiB"', False), ("0.6", True)])
def test_more_floors_than_there_is_are_warned_of(
    floor: str, warned: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "keys.toml"
    path.write_text(f"[tenants.a]\nkeys=[]\nkv_floor={floor}\n[tenants.b]\nkeys=[]\nkv_floor=0.6")
    engine, keys = SimpleNamespace(info=INFO), Keys(file=str(path))
    api = SimpleNamespace(engine=engine, keys=keys, shared_budget=None)
    serve._warn_of_floors(api)  # type: ignore[arg-type]
    assert ("cannot be kept for all" in caplog.text) == warned


def test_where_keys_are_needed_the_commands_name_one(capsys: pytest.CaptureFixture[str]) -> None:
    serve._announce("http://127.0.0.1:8001", ["tiny"], with_key=True)
    _, curl, chat = capsys.readouterr().out.splitlines()
    assert "-H 'Authorization: Bearer KEY'" in curl
    assert chat.endswith("--key KEY")


@pytest.fixture
def nothing_starts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Any look at the model fails the test; the handler of SIGTERM is put back."""
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(source, "find_model", lambda settings: pytest.fail("looked for a model"))
    monkeypatch.setattr(launch, "Child", lambda: pytest.fail("started a process"))
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("nothing_starts")
def test_a_busy_port_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(StartupError, match=f"127.0.0.1:{port}: Address already in use"):
            launch.launch(Settings(port=port, disk_path=str(tmp_path / "s")))
    assert not (tmp_path / "s").exists()


@pytest.mark.usefixtures("nothing_starts")
@pytest.mark.parametrize("fault", ["not empty", "a file", "in use", "for all", "below a file"])
def test_an_unusable_folder_is_refused_before_anything_starts(fault: str, tmp_path: Path) -> None:
    folder, held = tmp_path / "s", None
    if fault == "not empty":
        folder.mkdir()
        (folder / "precious").touch()
    elif fault == "a file":
        folder.touch()
    elif fault == "in use":
        held = opened(folder)
    elif fault == "for all":
        folder.mkdir()
        folder.chmod(0o777)
    else:
        (tmp_path / "t").touch()
        folder = tmp_path / "t" / "s"
    with pytest.raises(StartupError, match=str(folder)) as refused:
        launch.launch(Settings(port=0, disk_path=str(folder)))
    assert "\n" not in str(refused.value)
    assert fault != "not empty" or [path.name for path in folder.iterdir()] == ["precious"]
    if held is not None:
        assert "in use by another process" in str(refused.value)
        held.close()


@pytest.mark.usefixtures("nothing_starts")
def test_a_refused_start_gives_the_socket_file_back(tmp_path: Path) -> None:
    (tmp_path / "s").touch()
    settings = Settings(uds=str(tmp_path / "socket"), disk_path=str(tmp_path / "s"))
    with pytest.raises(StartupError, match="s: "):
        launch.launch(settings)
    take_address(settings).close()


@pytest.mark.usefixtures("nothing_starts")
def test_a_file_of_prompts_that_cannot_be_used_is_refused_before_anything_starts(
    tmp_path: Path,
) -> None:
    path = tmp_path / "warm.jsonl"
    path.write_text('{"prompt": "a"}\nnot JSON\n')
    with pytest.raises(StartupError, match=r"warm\.jsonl cannot be used: line 2 is no JSON"):
        launch.launch(Settings(port=0, warm=str(path)))


class SlowTokenizer(LocalTokenizer):
    """Its chat template never ends."""

    async def encode_chat(self, conversation: Conversation) -> Encoded:
        await asyncio.Event().wait()
        raise AssertionError("nothing sets the event")


@pytest.mark.parametrize("is_slow", [False, True])
async def test_a_template_without_an_end_of_turn_is_warned_of_unless_that_takes_long(
    is_slow: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(serve, "_TURN_END_SECONDS", 0.01 if is_slow else 60.0)
    tokenizer = byte_tokenizer()
    tokenizer.__class__ = SlowTokenizer if is_slow else LocalTokenizer
    api = Api.of(FakeEngine(), tokenizer, Metrics(), ApiSettings(), ("fake",))
    try:
        await serve._check_turn_end(api)
    finally:
        api.threads.close()
    assert ("is no stop token" in caplog.text) == (not is_slow)


@pytest.fixture
def api() -> Iterator[Api]:
    made = Api.of(FakeEngine(), byte_tokenizer(), Metrics(), ApiSettings(), ("fake",))
    yield made
    made.threads.close()


async def test_it_is_ready_when_its_public_prefixes_are_read(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, read, stopping = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def share(*_: object) -> None:
        reading.set()
        await read.wait()

    monkeypatch.setattr(serve, "_share", share)
    settings = Settings(port=0, public_prefix="public.jsonl")
    loading: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    loading.set_result(FakeEngine().info)
    assembly: Any = SimpleNamespace(settings=settings, engine=AsyncMock(), loading=loading)
    answering = asyncio.create_task(
        serve._answer([api], [assembly], take_address(settings), stopping)
    )
    async with asyncio.timeout(10):
        await reading.wait()
        assert api.unready_reason == "sharing"
        read.set()
        while api.unready_reason is not None:
            await asyncio.sleep(0)
        stopping.set()
        await answering


async def test_files_are_read_again_after_an_error(
    api: Api, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hangup, reads = asyncio.Event(), asyncio.Queue[str]()

    async def share_again(api: Api, path: str) -> None:
        reads.put_nowait(path)
        raise RuntimeError("boom")

    monkeypatch.setattr(serve, "share_again", share_again)
    async with serve._reloading(api, "public.jsonl", hangup), asyncio.timeout(10):
        for _ in range(2):
            hangup.set()
            assert await reads.get() == "public.jsonl"
    assert "RuntimeError: boom" in caplog.text


async def test_a_reading_that_waits_for_the_engine_gives_way_to_the_next(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    hangup, reads = asyncio.Event(), asyncio.Queue[str]()

    async def share_again(api: Api, path: str) -> None:
        reads.put_nowait(path)
        await asyncio.Event().wait()

    monkeypatch.setattr(serve, "share_again", share_again)
    async with serve._reloading(api, "public.jsonl", hangup), asyncio.timeout(10):
        for _ in range(2):
            hangup.set()
            assert await reads.get() == "public.jsonl"
