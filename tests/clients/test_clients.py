"""Every client and framework that docs/clients.md names, with the lines that are printed there,
against one real server.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from tests.clients import examples
from tests.e2e.server import Server

ANSWER = "The capital of France is Paris."

SCRIPTS = sorted(path.name for path in examples.EXAMPLES.iterdir() if path.suffix != ".yaml")
LABELLED = [name for name in SCRIPTS if not name.endswith(".sh")]


def labelled(output: str) -> dict[str, str]:
    """`chat: Paris` becomes {"chat": "Paris"}; lines without a label are left out."""
    matches = re.findall(r"^(\w+): (.*)$", output, re.MULTILINE)
    return dict(matches)


@pytest.mark.parametrize("name", LABELLED)
def test_a_client_chats(name: str, server: Server, tmp_path: Path) -> None:
    said = labelled(examples.run(name, server.url, tmp_path))
    assert said["chat"] == ANSWER
    if "stream" in said:
        parts = said["stream"].split("|")
        assert "".join(parts) == ANSWER
        assert len([part for part in parts if part]) > 3, "the stream came in one piece"
    if "cached" in said:
        assert int(said["cached"]) > 0


def test_the_command_llm_answers_twice(server: Server, tmp_path: Path) -> None:
    lines = examples.run("llm_command.sh", server.url, tmp_path).splitlines()
    assert lines == [ANSWER, ANSWER]


def test_aider_answers(server: Server, tmp_path: Path) -> None:
    assert ANSWER in examples.run("aider.sh", server.url, tmp_path).splitlines()


def test_the_openai_client_that_the_project_tests_with_is_served_too(
    server: Server, tmp_path: Path
) -> None:
    packages = Path(sys.prefix)
    said = labelled(examples.run("openai_python.py", server.url, tmp_path, packages))
    assert said["chat"] == ANSWER
