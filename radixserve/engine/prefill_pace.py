"""How many prompt tokens a step may compute while somebody waits for its end, so that it ends soon.

Those who wait are sequences that decode, whose next tokens come with the next step, and other
tenants, whose next request can begin only with the next step. For them a step lasts at most
(1 + share) times as long as decodes alone, and in any case a few milliseconds:

    decodes alone          |------|                      longest step with a share of 1
    with prompt tokens     |------|------|               decodes, and as long again
    few or no decodes      |--|-----------|              the least that is always allowed

So a long prompt makes the streams beside it half as fast, instead of halting them for a second.
Times are moving averages of recent steps. Chunks do not change bits, so the pace changes no answer.
"""

from __future__ import annotations

from typing import Final

from radixserve.tiers.pace import TELLING_TOKENS, Rate

MIN_TOKENS: Final = 16  # always allowed: fewer take nearly as long, and a prompt must go on
_NEWEST: Final = 0.25  # weight of the newest step in an average


class PrefillPace:
    """Measures steps, and says how many prompt tokens the next may have."""

    def __init__(self, share: float, least_seconds: float = 0.0) -> None:
        """`share`: of the time of the decodes; 0 for no limit. A step may last `least_seconds` in
        any case.
        """
        self.share, self._least_seconds = share, least_seconds
        self._decode_seconds: float | None = None  # of a step without prompt tokens
        self._added = Rate()  # what prompt tokens add to a step
        self._rate = Rate()  # of steps that tell it

    def observe(self, num_prompt: int, seconds: float, *, is_full: bool) -> None:
        """Note how long a step with so many prompt tokens took. `is_full`: more of a prompt was
        left than it had room for.
        """
        if not num_prompt:
            known = self._decode_seconds
            self._decode_seconds = seconds if known is None else known + _NEWEST * (seconds - known)
            return
        if is_full or num_prompt >= TELLING_TOKENS:
            self._rate.observe(num_prompt, seconds)
        # Also a step without decodes reads all weights, for which it takes about as long as they.
        self._added.observe(num_prompt, max(seconds - self._decodes, 0.1 * seconds))

    @property
    def _decodes(self) -> float:
        return self._decode_seconds or 0.0

    @property
    def tokens_per_second(self) -> float:
        """Prompt tokens that steps compute which have enough of them, decodes beside them included;
        0 before the first. The few tokens behind a cached prompt say nothing: such a step could
        have computed more.
        """
        seconds_per_token = self._rate.seconds_per_token
        return 1 / seconds_per_token if seconds_per_token else 0.0

    def most_tokens(self) -> int | None:
        """Most prompt tokens in a step for whose end somebody waits; None for no limit. So it is
        until enough steps were seen.
        """
        longest = max((1 + self.share) * self._decodes, self._least_seconds)
        added = self._added.seconds_per_token
        if not self.share or not longest or added is None:
            return None
        return max(MIN_TOKENS, int((longest - self._decodes) / added))
