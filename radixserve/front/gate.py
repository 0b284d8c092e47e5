"""Decides which requests may enter the engine, and finds a request that kills it.

A request inside the engine is unproven until one of its tokens arrives. When the engine dies, each
unproven request becomes a suspect, until a token of it arrives. Suspects enter one at a time, while
no other unproven request is inside, and no request enters until that suspect has got a token or has
ended. So the engine is tested with one suspect at a time. A request that was the only unproven one
at two deaths, without a token in between, does not enter again.

    A, B enter    death 1: both are suspects, because neither has a token
    A enters      a token arrives: A is cleared; B enters
                  death 2: only B is unproven, so it gets its first strike and enters again, alone
                  death 3: only B is unproven again: it does not enter a third time

As in the picture, a request may take part in one more death together with others before: a request
that kills at its first token does so three times at most. One case is misjudged: a request is taken
for the cause if two deaths in a row that it did not cause (from outside, or by a request that
already has tokens) both hit it after it entered alone and before its first token.

Knows ids only: no process, no messages.
"""

from __future__ import annotations


class Gate:
    """The ids of requests outside, in the order in which they will enter, and inside the engine."""

    def __init__(self) -> None:
        self._outside: dict[str, None] = {}
        self._inside: dict[str, None] = {}
        self._unproven: set[str] = set()  # of those inside
        self._suspects: set[str] = set()  # inside and outside
        self._struck: set[str] = set()  # suspects that were the only unproven request at a death
        # of those inside: aborted, but the engine has not reported their end yet
        self._withdrawn: set[str] = set()

    @property
    def num_outside(self) -> int:
        return len(self._outside)

    @property
    def num_inside(self) -> int:
        """How many requests the engine has not ended, including those that were withdrawn."""
        return len(self._inside)

    def arrive(self, request_id: str) -> None:
        """Add a request to those outside."""
        self._outside[request_id] = None

    def admit(self) -> list[str]:
        """Move the requests that may enter now inside, and return them."""
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
        """A token of the request has arrived."""
        self._unproven.discard(request_id)
        self._clear(request_id)

    def _clear(self, request_id: str) -> None:
        self._suspects.discard(request_id)
        self._struck.discard(request_id)

    def end(self, request_id: str) -> None:
        """The engine has reported the end of the request."""
        self.progress(request_id)
        self._inside.pop(request_id, None)
        self._withdrawn.discard(request_id)

    def withdraw(self, request_id: str) -> bool:
        """The request is no longer wanted. True if it is inside, where it stays until the engine
        reports its end.
        """
        if request_id in self._inside:
            self._withdrawn.add(request_id)
            return True
        self._outside.pop(request_id, None)
        self._clear(request_id)
        return False

    def died(self) -> str | None:
        """The engine has died: all requests are outside again, suspects last. Returns the request
        that was the only unproven one at two deaths, which is dropped, or None.
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
