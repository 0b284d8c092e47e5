"""docs/api.md names every field and every error code that the server knows."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import msgspec

from radixserve import errors
from radixserve.api.anthropic import blocks
from radixserve.api.anthropic import wire as messages
from radixserve.api.openai import wire
from radixserve.api.openai.responses import wire as responses
from radixserve.errors import CODES

FOLDER = Path(__file__).parent.parent.parent / "docs"
DOCS = (FOLDER / "api.md").read_text()
ANTHROPIC = (FOLDER / "anthropic.md").read_text()
ERRORS = Path(errors.__file__)
_WORDS = re.compile(r"[a-z]+(_[a-z]+)+")


def test_every_field_is_documented() -> None:
    bodies: list[type[msgspec.Struct]] = [
        wire.ChatBody,
        wire.CompletionBody,
        wire.StreamOptions,
        wire.TokenizeBody,
        wire.DetokenizeBody,
        responses.ResponsesBody,
        responses.TextConfig,
        responses.ReasoningConfig,
        responses.ResponsesStreamOptions,
    ]
    fields = {name for body in bodies for name in body.__struct_fields__} | set(
        wire.Message.__struct_fields__[2:]
    )
    missing = sorted(name for name in fields if f"`{name}`" not in DOCS and f'"{name}"' not in DOCS)
    assert missing == []


def test_every_field_of_messages_is_documented() -> None:
    bodies: list[type[msgspec.Struct]] = [
        messages.MessagesBody,
        messages.CustomTool,
        messages.ToolChoice,
        messages.Thinking,
        messages.OutputConfig,
        messages.Metadata,
        messages.Diagnostics,
        blocks.CacheControl,
    ]
    fields = {name for body in bodies for name in body.__struct_fields__}
    assert [name for name in sorted(fields) if not re.search(rf'[`"]{name}[`"]', ANTHROPIC)] == []
    kinds = [block.__struct_config__.tag for block in blocks.Block.__subclasses__()]
    assert [kind for kind in kinds if f"`{kind}`" not in ANTHROPIC] == []
    for name, values in messages.AS_IF_ABSENT.items():
        words = re.sub(r"\s+", " ", ANTHROPIC)
        assert f"`{name}` ({', '.join(json.dumps(value) for value in values)})" in words


def test_every_value_without_effect_is_documented() -> None:
    for name, values in wire.AS_IF_ABSENT.items():
        assert f"`{name}` ({', '.join(json.dumps(value) for value in values)})" in DOCS


def _told_codes() -> set[str]:
    """Every code that a line of the HTTP layer gives to an error: what is passed or assigned as
    `code`.
    """
    package = ERRORS.parent
    files = [*(package / "api").rglob("*.py"), *(package / "front").rglob("*.py"), ERRORS]
    trees = [ast.parse(path.read_text()) for path in files]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    values = [node.value for node in nodes if isinstance(node, ast.keyword) and node.arg == "code"]
    for node in nodes:
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value and "code" in _names(node):
            values.append(node.value)
    parts = [part for value in values for part in ast.walk(value)]
    words = [part.value for part in parts if isinstance(part, ast.Constant)]
    return {word for word in words if isinstance(word, str) and _WORDS.fullmatch(word)}


def _names(node: ast.Assign | ast.AnnAssign) -> set[str]:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    return {name.id for each in targets for name in ast.walk(each) if isinstance(name, ast.Name)}


def test_every_code_is_listed_and_documented() -> None:
    told = _told_codes()
    assert {"invalid_json", "not_found", "generation_aborted", "internal_error"} <= told
    assert told - set(CODES) == set()
    shapes = {f"{kind}_{limit}" for kind in ("integer", "decimal", "array", "string")
              for limit in ("below_min_value", "above_max_value", "above_max_length")}  # fmt: skip
    assert [code for code in CODES if code not in shapes and f"`{code}`" not in DOCS] == []
