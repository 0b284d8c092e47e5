"""The policies as their authors wrote them down, over lists of whole objects: what a cache of one
token per prompt must do, step for step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class Reference(Protocol):
    """A cache of objects of equal size."""

    def access(self, key: int) -> bool:
        """Whether `key` is cached; it is afterwards."""
        ...

    def cached(self) -> set[int]:
        """The keys in the cache."""
        ...


class Ranked:
    """Evicts the smallest rank: of (arrival, latest use, uses) of each object."""

    def __init__(self, size: int, name: str) -> None:
        self.size, self.name, self.now = size, name, 0
        self.facts: dict[int, tuple[int, int, int]] = {}

    def rank(self, key: int) -> tuple[int, ...]:
        arrival, latest, uses = self.facts[key]
        return {"fifo": (arrival,), "lru": (latest,), "lfu": (uses, latest)}[self.name]

    def access(self, key: int) -> bool:
        hit = key in self.facts
        if not hit and len(self.facts) == self.size:
            del self.facts[min(self.facts, key=self.rank)]
        self.now += 1
        arrival, _, uses = self.facts.get(key, (self.now, 0, 0))
        self.facts[key] = (arrival, self.now, uses + 1)
        return hit

    def cached(self) -> set[int]:
        return set(self.facts)


class Segmented:
    """Two lists, the least recently used first. A second use protects."""

    def __init__(self, size: int) -> None:
        self.size, self.most = size, int(0.8 * size)
        self.probation: list[int] = []
        self.protected: list[int] = []

    def access(self, key: int) -> bool:
        if key in self.cached():
            (self.probation if key in self.probation else self.protected).remove(key)
            self.protected.append(key)
            if len(self.protected) > self.most:
                self.probation.append(self.protected.pop(0))
            return True
        if len(self.cached()) == self.size:
            (self.probation or self.protected).pop(0)
        self.probation.append(key)
        return False

    def cached(self) -> set[int]:
        return {*self.probation, *self.protected}


class Sieve:
    """A list from the oldest to the newest object, a mark on each, and the hand's position."""

    def __init__(self, size: int) -> None:
        self.size, self.hand = size, 0
        self.queue: list[int] = []
        self.marked: set[int] = set()

    def access(self, key: int) -> bool:
        if key in self.queue:
            self.marked.add(key)
            return True
        if len(self.queue) == self.size:
            while self.queue[self.hand] in self.marked:
                self.marked.remove(self.queue[self.hand])
                self.hand = (self.hand + 1) % self.size
            self.queue.pop(self.hand)
            self.hand %= len(self.queue) or 1
        self.queue.append(key)
        return False

    def cached(self) -> set[int]:
        return set(self.queue)


class S3FIFO:
    """Three queues, the oldest first. `hits` of what is cached go up to 3."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.small: list[int] = []
        self.main: list[int] = []
        self.ghost: list[int] = []
        self.hits: dict[int, int] = {}

    def access(self, key: int) -> bool:
        if key in self.hits:
            self.hits[key] = min(self.hits[key] + 1, 3)
            return True
        remembered = key in self.ghost
        if remembered:
            self.ghost.remove(key)
        while len(self.hits) == self.size:
            if self.small and (len(self.small) >= 0.1 * self.size or not self.main):
                self.leave_small(self.small.pop(0))
            else:
                self.leave_main(self.main.pop(0))
        (self.main if remembered else self.small).append(key)
        self.hits[key] = 0
        return False

    def leave_small(self, key: int) -> None:
        if self.hits[key] > 1:
            self.main.append(key)
            self.hits[key] = 0
        else:
            self.ghost = [*self.ghost, key][-self.size :]
            del self.hits[key]

    def leave_main(self, key: int) -> None:
        if self.hits[key] > 0:
            self.main.append(key)
            self.hits[key] -= 1
        else:
            del self.hits[key]

    def cached(self) -> set[int]:
        return set(self.hits)


class ARC:
    """The four lists of the paper, the least recently used first, and the target of the first."""

    def __init__(self, size: int) -> None:
        self.c, self.p = size, 0.0
        self.t1: list[int] = []
        self.t2: list[int] = []
        self.b1: list[int] = []
        self.b2: list[int] = []

    def access(self, key: int) -> bool:
        if key in self.cached():
            (self.t1 if key in self.t1 else self.t2).remove(key)
            self.t2.append(key)
            return True
        if key in self.b1:
            self.p = min(self.c, self.p + max(1.0, len(self.b2) / len(self.b1)))
            self.replace(in_b2=False)
            self.b1.remove(key)
            self.t2.append(key)
        elif key in self.b2:
            self.p = max(0.0, self.p - max(1.0, len(self.b1) / len(self.b2)))
            self.replace(in_b2=True)
            self.b2.remove(key)
            self.t2.append(key)
        else:
            self.miss(key)
        return False

    def miss(self, key: int) -> None:
        everything = len(self.t1) + len(self.t2) + len(self.b1) + len(self.b2)
        if len(self.t1) + len(self.b1) == self.c:
            if len(self.t1) < self.c:
                self.b1.pop(0)
                self.replace(in_b2=False)
            else:
                self.t1.pop(0)
        elif everything >= self.c:
            if everything == 2 * self.c:
                self.b2.pop(0)
            self.replace(in_b2=False)
        self.t1.append(key)

    def replace(self, *, in_b2: bool) -> None:
        if len(self.cached()) < self.c:
            return
        if self.t1 and (len(self.t1) > self.p or (in_b2 and len(self.t1) == self.p)):
            self.b1.append(self.t1.pop(0))
        else:
            self.b2.append(self.t2.pop(0))

    def cached(self) -> set[int]:
        return {*self.t1, *self.t2}


REFERENCES: dict[str, Callable[[int], Reference]] = {
    "lru": lambda size: Ranked(size, "lru"),
    "lfu": lambda size: Ranked(size, "lfu"),
    "fifo": lambda size: Ranked(size, "fifo"),
    "slru": Segmented,
    "s3-fifo": S3FIFO,
    "sieve": Sieve,
    "arc": ARC,
}
