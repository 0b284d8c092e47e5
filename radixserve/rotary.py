"""Checks that a model's rotary positions allow K of a prefix to be reused: they must not depend on
the current length of the sequence.

The server and `KVStore` use the same check. It reads attributes of transformers' configurations and
imports nothing of transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_LENGTH_DEPENDENT = ("dynamic", "longrope")


def rotary_refusal(decoder_config: object) -> str | None:
    """Why K of a prefix depends on the tokens after it, as the rest of a sentence that begins with
    "the model"; None if it does not.
    """
    parameters = [
        getattr(decoder_config, name, None) for name in ("rope_parameters", "rope_scaling")
    ]
    for kind in _kinds(parameters[0]) + _kinds(parameters[1]):
        if kind in _LENGTH_DEPENDENT:
            return (
                f"has {kind} rotary positions: K of a prefix depends on the length of what"
                " follows it"
            )
    return None


def _kinds(parameters: Any) -> list[str]:
    """The kinds of rotary positions in the parameters of one kind of layers, or of several by
    name.
    """
    if not isinstance(parameters, Mapping):
        return []
    nested = [kind for value in parameters.values() for kind in _kinds(value)]
    own = [parameters[key] for key in ("rope_type", "type") if isinstance(parameters.get(key), str)]
    return own + nested
