"""How many prompt tokens a step may compute beside sequences that decode, so that their next tokens
are not late.

A step takes as long as its decodes and its prompt tokens together. With a share of 1 the prompt
tokens may take as long again as the decodes: a long prompt then makes the streams beside it half as
fast, instead of halting them for a second. Both times are moving averages of recent steps. Chunks
do not change bits, so the pace changes no answer.
"""

from __future__ import annotations

from typing import Final

from radixserve.tiers.pace import TELLING_TOKENS, Rate

MIN_TOKENS: Final = 4  # always allowed: a prompt goes on, however slow the machine is
_NEWEST: Final = 0.25  # weight of the newest step in an average


class PrefillPace:
    """Measures steps, and says how many prompt tokens the next may have."""

    def __init__(self, share: float) -> None:
        """`share`: of the time of the decodes; 0 for no limit."""
        self._share = share
        self._decode_seconds: float | None = None  # of a step without prompt tokens
        self._token_seconds: float | None = None  # of a prompt token
        self._rate = Rate()  # of steps that tell it

    def observe(self, num_decodes: int, num_prompt: int, seconds: float, *, is_full: bool) -> None:
        """Note how long a step with these tokens took. `is_full`: more of a prompt was left than it
        had room for.
        """
        if not num_prompt:
            self._decode_seconds = _averaged(self._decode_seconds, seconds)
            return
        if is_full or num_prompt >= TELLING_TOKENS:
            self._rate.observe(num_prompt, seconds)
        decoding = (self._decode_seconds or 0.0) if num_decodes else 0.0
        self._token_seconds = _averaged(
            self._token_seconds, max(seconds - decoding, 0.1 * seconds) / num_prompt
        )

    @property
    def tokens_per_second(self) -> float:
        """Prompt tokens that steps compute which have enough of them, decodes beside them included;
        0 before the first. The few tokens behind a cached prompt say nothing: such a step could
        have computed more.
        """
        seconds_per_token = self._rate.seconds_per_token
        return 1 / seconds_per_token if seconds_per_token else 0.0

    def most_tokens(self) -> int | None:
        """Most prompt tokens beside decodes in the next step; None for no limit. So it is until
        both kinds of steps were seen.
        """
        if not self._share or self._decode_seconds is None or self._token_seconds is None:
            return None
        return max(MIN_TOKENS, int(self._share * self._decode_seconds / self._token_seconds))


def _averaged(before: float | None, now: float) -> float:
    return now if before is None else before + _NEWEST * (now - before)
