"""Who may enter the engine, and whose fault it was when it died.

A request inside is unproven until a token of it arrives. A death is laid at the door of the
unproven: each becomes a suspect, until a token of it arrives after all. Suspects enter one at a
time, while nobody else inside is unproven, and nobody enters before the present one is cleared or
has ended. So a suspect is alone under suspicion, and whoever was that at two deaths in a row,
without a token in between, does not enter again. Among others it may have been at one more death
before: a request that kills at its first token does so three times at most. What this cannot tell
from such a request: two deaths in a row from outside, or by somebody who has progressed, that hit
one request in the moment between its entry, alone, and its first token.

Knows ids only: no process, no messages.
"""

from __future__ import annotations


class Gate:
    """Request ids outside, in the order in which they will enter, and inside the engine."""

    def __init__(self) -> None:
        self._outside: dict[str, None] = {}
        self._inside: dict[str, None] = {}
        self._unproven: set[str] = set()  # of those inside
        self._suspects: set[str] = set()  # inside and outside
        self._struck: set[str] = set()  # suspects that were the only one unproven at a death
        self._withdrawn: set[str] = (
            set()
        )  # of those inside: the engine has not said yet that they ended

    @property
    def num_outside(self) -> int:
        return len(self._outside)

    @property
    def num_inside(self) -> int:
        """Those that the engine has and has not ended, also if nobody wants them any more."""
        return len(self._inside)

    def arrive(self, request_id: str) -> None:
        """Join those outside."""
        self._outside[request_id] = None

    def admit(self) -> list[str]:
        """Let in whoever may enter now."""
        entering = []
        while self._outside and self._may_enter(first := next(iter(self._outside))):
            del self._outside[first]
            self._inside[first] = None
            self._unproven.add(first)
            entering.append(first)
        return entering

    def _may_enter(self, request_id: str) -> bool:
        if request_id in self._suspects:
            return not self._unproven
        return self._unproven.isdisjoint(self._suspects)

    def progress(self, request_id: str) -> None:
        """A token of it arrived."""
        self._unproven.discard(request_id)
        self._clear(request_id)

    def _clear(self, request_id: str) -> None:
        self._suspects.discard(request_id)
        self._struck.discard(request_id)

    def end(self, request_id: str) -> None:
        """The engine said that it ended."""
        self.progress(request_id)
        self._inside.pop(request_id, None)
        self._withdrawn.discard(request_id)

    def withdraw(self, request_id: str) -> bool:
        """Nobody wants it any more; whether it is inside, where it stays until the engine says that
        it ended.
        """
        if request_id in self._inside:
            self._withdrawn.add(request_id)
            return True
        self._outside.pop(request_id, None)
        self._clear(request_id)
        return False

    def died(self) -> str | None:
        """Everybody is outside again, suspects last; the one request that killed the engine twice,
        if there is one.
        """
        alone = self._unproven if len(self._unproven) == 1 else set()
        culprit = next(iter(alone & self._struck), None)
        self._struck |= alone
        self._suspects |= self._unproven
        gone = self._withdrawn | {culprit}
        waiting = [each for each in (*self._inside, *self._outside) if each not in gone]
        self._suspects &= set(waiting)
        self._struck &= set(waiting)
        self._outside = dict.fromkeys(sorted(waiting, key=self._suspects.__contains__))
        self._inside, self._unproven, self._withdrawn = {}, set(), set()
        return culprit
