"""docs/api.md names every field that the server knows."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec

from radixserve.api import wire

DOCS = (Path(__file__).parent.parent.parent / "docs" / "api.md").read_text()


def test_every_field_is_documented() -> None:
    bodies: list[type[msgspec.Struct]] = [
        wire.ChatBody,
        wire.CompletionBody,
        wire.StreamOptions,
        wire.TokenizeBody,
        wire.DetokenizeBody,
    ]
    fields = {name for body in bodies for name in body.__struct_fields__} | set(
        wire.Message.__struct_fields__[2:]
    )
    missing = sorted(name for name in fields if f"`{name}`" not in DOCS and f'"{name}"' not in DOCS)
    assert missing == []


def test_every_value_without_effect_is_documented() -> None:
    for name, values in wire.AS_IF_ABSENT.items():
        assert f"`{name}` ({', '.join(json.dumps(value) for value in values)})" in DOCS
