"""A tool that a request offers to the model, as far as a parser needs it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Tool:
    name: str
    parameters: Mapping[str, object] = field(default_factory=dict)  # a JSON schema of an object
