"""Negative controls: bugs in policies, each caught by the comparison with the policy's definition.

The cache's own seeded bugs, in ../test_seeded_bugs.py, are hunted with least recently used; here
the rules are wrong that one policy adds.
"""

from __future__ import annotations

import random
import sys

import pytest

from tests.cache.changed import load_changed
from tests.cache.policies.flat import Flat
from tests.cache.policies.references import REFERENCES

BUGS = {
    "uses are not counted": ("lfu", "eviction", "        node.uses += 1\n", ""),
    "a use renews the age": (
        "fifo",
        "policies.ranked",
        "lambda leaf: leaf.born",
        "lambda leaf: leaf.last_use",
    ),
    "nothing is protected": ("slru", "policies.segmented", "leaf.uses > 1", "leaf.uses > 99"),
    "everything may be protected": ("slru", "policies.segmented", "= 0.8", "= 1.0"),
    "a demoted leaf keeps its old place": (
        "slru",
        "policies.segmented",
        "self._now, _PROBATION",
        "demoted.ticket, _PROBATION",
    ),
    "marks do not matter": (
        "sieve",
        "policies.sieve",
        "while leaf.seen != leaf.uses",
        "while leaf.seen < 0",
    ),
    "the hand stays behind the newest": (
        "sieve",
        "policies.sieve",
        "if newer is not None else 0",
        "if newer is not None else leaf.ticket",
    ),
    "one hit is enough": ("s3-fifo", "policies.s3fifo", "ENOUGH_HITS = 2", "ENOUGH_HITS = 1"),
    "hits have no limit": ("s3-fifo", "policies.s3fifo", "MOST_HITS = 3", "MOST_HITS = 30"),
    "the small queue is not small": ("s3-fifo", "policies.s3fifo", "= 0.1", "= 0.5"),
    "what comes back is new": ("s3-fifo", "policies.s3fifo", "_MAIN if leaf.before", "_MAIN if 0"),
    "the main queue leaves ghosts": (
        "s3-fifo",
        "policies.s3fifo",
        "if leaf.queue == _SMALL:\n            self._ghosts",
        "if True:\n            self._ghosts",
    ),
    "ghosts stay for ever": (
        "s3-fifo",
        "ghosts",
        "        while self._values and ",
        "        while 0 and ",
    ),
    "the newest ghost is forgotten": ("s3-fifo", "ghosts", "last=False", "last=True"),
    "the target does not grow": ("arc", "policies.arc", "+= tokens[_ONCE]", "+= 0 * tokens[_ONCE]"),
    "the target does not shrink": (
        "arc",
        "policies.arc",
        "-= tokens[_MORE]",
        "-= 0 * tokens[_MORE]",
    ),
    "the sizes of the memories do not matter": (
        "arc",
        "policies.arc",
        "max(1.0, sizes[_MORE] / sizes[_ONCE])",
        "1.0",
    ),
    "who comes back does not matter": (
        "arc",
        "policies.arc",
        "(excess == 0 and self._frequent_returns)",
        "False",
    ),
    "the recent side remembers too much": (
        "arc",
        "policies.arc",
        "self._num_slots - self._lines[_ONCE].num_tokens",
        "self._num_slots",
    ),
}


def walk(name: str) -> None:
    """Compare the modules as they are loaded now with the reference of the policy `name`."""
    table, policy, kvcache = (
        sys.modules[f"radixserve.cache.{each}"]
        for each in ("policies.table", "policies.policy", "kvcache")
    )
    for size, seed in ((5, 0), (11, 1), (25, 2)):
        rng = random.Random(seed)
        made = table.POLICIES[name](policy.Scale(size, chunk=1))
        cache = Flat(size, made, kvcache.KVCache)
        reference = REFERENCES[name](size)
        for _ in range(600):
            key = min(int(rng.paretovariate(0.6)), 4 * size)
            assert cache.access(key) == reference.access(key)
            assert cache.cached() == reference.cached()


@pytest.mark.parametrize("bug", BUGS)
def test_the_definition_catches(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, module, old, new = BUGS[bug]
    load_changed(module, old, new, monkeypatch)
    with pytest.raises((AssertionError, KeyError)):
        walk(name)


@pytest.mark.parametrize("name", REFERENCES)
def test_without_a_bug_the_reloaded_modules_pass(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_changed("", "", "", monkeypatch)
    walk(name)
