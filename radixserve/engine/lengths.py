"""How long a request can be. Decided here, told to the front in `EngineInfo`, and held by the
scheduler (`planning.last_slot`).
"""

from __future__ import annotations

from radixserve.config import Settings
from radixserve.errors import ConfigError


def context_length_of(settings: Settings, of_model: int) -> int:
    """Prompt and answer together at most, in tokens, whatever the K/V budget.

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
    """The same where `num_slots` tokens of K/V are all there are: the last one drawn needs none."""
    return min(context_length, num_slots + 1)
