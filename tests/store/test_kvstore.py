"""`KVStore` with the real model of transformers: the lines of README.md, exactly as they stand
there.
"""

from __future__ import annotations

import ast
import re
import runpy
from pathlib import Path

import pytest

README = Path(__file__).parent.parent.parent / "README.md"
HEADING = "## From transformers, without a server\n"


def lines_of_the_readme() -> str:
    """The one block of Python under the heading."""
    section = README.read_text().split(HEADING)[1].split("\n## ")[0]
    (block,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    return str(block)


def test_they_are_ten_statements_and_the_imports() -> None:
    statements = [
        each
        for each in ast.walk(ast.parse(lines_of_the_readme()))
        if isinstance(each, ast.stmt) and not isinstance(each, ast.Import | ast.ImportFrom)
    ]
    assert len(statements) == 10


@pytest.mark.model
def test_twenty_greedy_tokens_from_memory_and_from_the_store_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What they assert, and that it was the store which gave the second cache."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lines.py").write_text(lines_of_the_readme())
    seen = runpy.run_path(str(tmp_path / "lines.py"))
    assert seen["num_tokens"] == 59
    assert seen["stored"] is not seen["cache"]
    assert seen["first"].sequences.shape == (1, 60 + 20)
    assert len(seen["first"].logits) == 20
    assert (tmp_path / "kv-store" / "index.sqlite").exists()
