"""Every client and framework that docs/clients.md names, with the lines that are printed there,
against one real server.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from tests.clients import examples
from tests.e2e.server import Server

ANSWER = "The capital of France is Paris."

SCRIPTS = sorted(path.name for path in examples.EXAMPLES.iterdir() if path.suffix != ".yaml")
LABELLED = [name for name in SCRIPTS if not name.endswith(".sh")]
CHATTING = [name for name in LABELLED if name != "instructor_models.py"]
OBJECT_BY_CALL = {"pydantic_agent.py"}  # the object comes as the arguments of a call


def uses(name: str, label: str) -> bool:
    """Whether a script prints this label."""
    return f'"{label}:' in (examples.EXAMPLES / name).read_text()


def labelled(output: str) -> dict[str, str]:
    """`chat: Paris` becomes {"chat": "Paris"}; lines without a label are left out."""
    matches = re.findall(r"^(\w+): (.*)$", output, re.MULTILINE)
    return dict(matches)


@pytest.mark.parametrize("name", CHATTING)
def test_a_client_chats(name: str, server: Server, tmp_path: Path) -> None:
    said = labelled(examples.run(name, server.url, tmp_path))
    assert said["chat"] == ANSWER
    if "stream" in said:
        parts = said["stream"].split("|")
        assert "".join(parts) == ANSWER
        assert len([part for part in parts if part]) > 3, "the stream came in one piece"
    assert {said.get(label, ANSWER) for label in ("responses", "messages")} == {ANSWER}
    if "cached" in said:
        assert int(said["cached"]) > 0
    if "call" in said and name not in OBJECT_BY_CALL:
        assert said["call"].startswith("get_weather")
        assert "Paris" in said["call"]
    if "agent" in said:
        assert "sunny" in said["agent"]
    if "code" in said:
        assert said["code"] == "It is sunny in Paris."
    for label in ("parsed", "call") if name in OBJECT_BY_CALL else ("parsed",):
        if label not in said:
            continue
        assert all(word in said[label] for word in ("name", "day", "participants", "Alice"))


def test_every_kind_of_use_is_shown_by_most_scripts() -> None:
    """The test above checks only what a script prints."""
    for label, least in (("stream", 12), ("call", 12), ("parsed", 11)):
        users = [name for name in LABELLED if uses(name, label)]
        assert len(users) >= least, (label, users)


def test_instructor_gets_objects(server: Server, tmp_path: Path) -> None:
    said = labelled(examples.run("instructor_models.py", server.url, tmp_path))
    assert said["parsed"].startswith("Event(name=")
    assert said["call"].startswith("Event(name=")


def test_the_command_llm_answers(server: Server, tmp_path: Path) -> None:
    output = examples.run("llm_command.sh", server.url, tmp_path)
    first, second, third = output.split("\n", 2)
    assert [first, second] == [ANSWER, ANSWER]
    assert sorted(json.loads(third)) == ["day", "name"]


def test_aider_answers(server: Server, tmp_path: Path) -> None:
    assert ANSWER in examples.run("aider.sh", server.url, tmp_path).splitlines()


def test_the_openai_client_that_the_project_tests_with_is_served_too(
    server: Server, tmp_path: Path
) -> None:
    packages = Path(sys.prefix)
    said = labelled(examples.run("openai_python.py", server.url, tmp_path, packages))
    assert said["chat"] == ANSWER
