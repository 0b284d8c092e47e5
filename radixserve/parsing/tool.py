"""A tool that a request offers to the model, as far as a parser needs it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Tool:
    """Attributes:
    parameters: a JSON schema of the object that the arguments are.
    text_grammar: the grammar, in Lark's syntax, of the text that is the only parameter; None: the
        parameters are any that obey the schema.
    """

    name: str
    parameters: Mapping[str, object] = field(default_factory=dict)
    text_grammar: str | None = None

    @property
    def text_parameter(self) -> str:
        """The name of the parameter for which `text_grammar` is."""
        properties = self.parameters.get("properties")
        return next(iter(properties), "") if isinstance(properties, Mapping) else ""
