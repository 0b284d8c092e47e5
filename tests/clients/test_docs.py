"""docs/clients.md against the scripts in examples/clients, which the other tests here run."""

from __future__ import annotations

import re

from tests.clients.examples import EXAMPLES, ROOT

PAGE = (ROOT / "docs" / "clients.md").read_text()
SCRIPT = re.compile(r"\(\.\./examples/clients/([\w.]+)\)")
BLOCK = re.compile(r"```(?:python|js|sh|yaml)\n(.*?)```", re.DOTALL)


def sections() -> dict[str, str]:
    """Heading to text, for the clients that have scripts."""
    parts = re.split(r"^## (.+)$", PAGE, flags=re.MULTILINE)[1:]
    found = dict(zip(parts[::2], parts[1::2], strict=True))
    return {heading: text for heading, text in found.items() if SCRIPT.search(text)}


def test_every_script_has_a_section() -> None:
    linked = {name for text in sections().values() for name in SCRIPT.findall(text)}
    assert linked == {path.name for path in EXAMPLES.iterdir()}


def stands_in(block: str, script: str) -> bool:
    """Whether the script has the lines of the block, in this order."""
    rest = iter(script.splitlines())
    return all(line in rest for line in block.splitlines() if line.strip())


def test_every_line_of_a_section_stands_in_its_scripts() -> None:
    absent = {
        heading: block
        for heading, text in sections().items()
        for block in BLOCK.findall(text)
        if not any(stands_in(block, (EXAMPLES / name).read_text()) for name in SCRIPT.findall(text))
    }
    assert absent == {}


def test_lines_that_are_not_in_a_script_are_found() -> None:
    assert stands_in("a\n\nc\n", "a\nb\nc\n")
    assert not stands_in("c\na\n", "a\nb\nc\n")
    assert not stands_in("a\nd\n", "a\nb\nc\n")
