"""Limits of a request's length. They are computed here, sent to the front in `EngineInfo`, and
enforced by the scheduler (`planning.last_slot`).
"""

from __future__ import annotations

from radixserve.config import Settings
from radixserve.errors import ConfigError


def context_length_of(settings: Settings, of_model: int) -> int:
    """The most tokens of prompt and answer together, without regard to the K/V budget.

    Raises:
        ConfigError: `max_model_len` is more than the model's own context, `of_model`.
    """
    wanted = settings.max_model_len
    if wanted > of_model:
        raise ConfigError(
            f"max_model_len is {wanted}, but the model's context is {of_model} tokens"
        )
    return wanted or of_model


def max_request_tokens(context_length: int, num_slots: int) -> int:
    """The most tokens of prompt and answer together with K/V for `num_slots` tokens: the last token
    drawn needs none.
    """
    return min(context_length, num_slots + 1)
