"""Which layers of a model attend a sliding window, as its configuration says. Reads attributes and
imports nothing of transformers.
"""

from __future__ import annotations

from typing import Any

SLIDING = "sliding_attention"
"""How `layer_types` names layers with a window."""


def window_of(config: Any, layer: int) -> int | None:
    """How many positions a row of a layer sees at most; None if there is no limit below the
    context's length.
    """
    kinds = getattr(config, "layer_types", None)
    if kinds and kinds[layer] != SLIDING:
        return None
    return within_context(getattr(config, "sliding_window", None), config)


def within_context(window: int | None, config: Any) -> int | None:
    """The window; None if it is at least as long as the context."""
    longest = getattr(config, "max_position_embeddings", None)
    return None if window is None or (longest is not None and window >= longest) else int(window)
