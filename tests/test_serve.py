"""What a started server tells a person to try."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from radixserve import serve


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
    serve._announce("http://127.0.0.1:8001", "tiny")
    first, curl, chat = capsys.readouterr().out.splitlines()
    assert first == "radixserve: tiny listening on http://127.0.0.1:8001"
    assert curl.startswith("try: curl -s http://127.0.0.1:8001/v1/chat/completions ")
    assert chat == f"or, in another terminal: {told} chat --url http://127.0.0.1:8001"
