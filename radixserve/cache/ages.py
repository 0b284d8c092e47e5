"""When something was used, in seconds, from the logical clock by which the cache evicts.

The cache counts uses and reads no time. Here a few points (count of uses, time) are noted as time
passes; the time of a use is that of the first point behind it.
"""

from __future__ import annotations

import bisect

_MOST = 4096
_SPACING_SECONDS = 1.0


class Ages:
    """Bounded: where there are too many points, every second one of the older half goes."""

    def __init__(self, now: float) -> None:
        self._uses, self._times = [0], [now]

    def note(self, uses: int, now: float) -> None:
        """So many uses there were at `now`; one point a second is kept, and the newest."""
        if len(self._times) > 1 and now - self._times[-2] < _SPACING_SECONDS:
            self._uses[-1], self._times[-1] = uses, now
            return
        self._uses.append(uses)
        self._times.append(now)
        if len(self._times) > _MOST:
            del self._uses[1 : _MOST // 2 : 2]
            del self._times[1 : _MOST // 2 : 2]

    def age(self, use: int, now: float) -> float:
        """Seconds since the use with this count, rounded down to the next point."""
        at = bisect.bisect_left(self._uses, use)
        return max(0.0, now - self._times[at]) if at < len(self._times) else 0.0
