"""docs/python.md and README.md: their blocks run, and every public name is explained."""

from __future__ import annotations

import re
import runpy
from dataclasses import fields
from pathlib import Path

import msgspec
import pytest

import radixserve
from radixserve import (
    CallArguments,
    CallBegun,
    CallEnded,
    Completion,
    Delta,
    Output,
    Reasoning,
    SamplingParams,
    Text,
    TokenLogprob,
    ToolCall,
)

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "python.md").read_text()
FROM_PYTHON = (ROOT / "README.md").read_text().split("## From Python\n")[1].split("\n## ")[0]
PARTS = (Text, Reasoning, CallBegun, CallArguments, CallEnded)


def blocks(text: str) -> str:
    """The blocks of Python as one script."""
    return "\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))


def test_every_public_name_parameter_and_attribute_is_explained() -> None:
    names = {
        *(set(radixserve.__all__) - {"__version__", "embedded_model"}),
        *(
            field.name
            for kind in (SamplingParams, TokenLogprob)
            for field in msgspec.structs.fields(kind)
        ),
        *(
            field.name
            for kind in (Completion, Output, ToolCall, Delta, *PARTS)
            for field in fields(kind)
        ),
    }
    assert [name for name in sorted(names) if f"`{name}`" not in PAGE] == []


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.parametrize("text", [PAGE, FROM_PYTHON], ids=["python.md", "README.md"])
def test_the_blocks_run_in_their_order(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "script.py"
    script.write_text(blocks(text))
    runpy.run_path(str(script), run_name="__main__")
    told = capsys.readouterr().out
    assert "Paris" in told
    if text is PAGE:
        assert told.count("The capital of France is Paris.") == 3
        assert "36 of 37 tokens were in the cache" in told
        assert "get_weather" in told
        assert "temperature is wrong" in told
