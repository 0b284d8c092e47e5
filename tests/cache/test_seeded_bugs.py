"""Negative controls: bugs of the kind that prefix caches have had, each put into the source and
caught by the machine.

A check that cannot fail is worth nothing; this is where each shows that it can. Bugs of policies
are in policies/test_seeded_bugs.py.
"""

from __future__ import annotations

import sys

import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from tests.cache.changed import load_changed
from tests.cache.machine import CacheMachine, MostRecentlyUsedFirst
from tests.hunt import HUNT

BUGS = {
    "a second release frees the slots again": (
        "kvcache",
        "        if self not in cache._leases:\n            return\n        del "
        "cache._leases[self]",
        "        cache._leases.pop(self, None)",
    ),
    "release forgets to unpin": ("kvcache", "        cache.evictor.unpin(self._node)\n", ""),
    "release forgets the private slots": (
        "kvcache",
        "        cache.slots.free(own)\n",
        "",
    ),
    "release forgets the recency": ("kvcache", "        cache.evictor.touch(self._node)\n", ""),
    "moving a lease forgets to unpin": (
        "kvcache",
        "        self._cache.evictor.unpin(self._node)\n",
        "",
    ),
    "moving a lease forgets to pin": (
        "kvcache",
        "        self._cache.evictor.pin(node)\n        self",
        "        self",
    ),
    "the matched node is not pinned": ("kvcache", "        self.evictor.pin(node)\n", ""),
    "a cached prompt leaves nothing to compute": (
        "kvcache",
        "prefix.num_tokens - 1 if read",
        "prefix.num_tokens if read",
    ),
    "hold leaves out the last token": (
        "kvcache",
        "self._lease(prefix, 0, ",
        "self._lease(prefix.first(prefix.num_tokens - 1), 0, ",
    ),
    "receive makes room for one token too few": (
        "kvcache",
        "self._lease(prefix, num_tokens, ",
        "self._lease(prefix, num_tokens - 1, ",
    ),
    "read=False reads": (
        "kvcache",
        "num_tokens - 1 if read else",
        "num_tokens - 1 if True else",
    ),
    "the path to pin counts as room": ("kvcache", " - newly_pinned\n", "\n"),
    "one token too few counts as the path to pin": (
        "kvcache",
        "point.offset + self",
        "point.offset - 1 + self",
    ),
    "duplicates are freed, the table still names them": (
        "kvcache",
        "        self._table[depth : point.depth] = theirs\n",
        "",
    ),
    "duplicates are not freed": ("kvcache", "        self._cache.slots.free(duplicates)\n", ""),
    "publish is off by one": (
        "kvcache",
        "        num_tokens = len(edge) // TOKEN_BYTES\n        runs",
        "        num_tokens = len(edge) // TOKEN_BYTES - 1\n        runs",
    ),
    "publishing reads the last own slots, not the first": (
        "kvcache",
        "        runs, self._own = split_runs(self._own, num_tokens)",
        "        runs, self._own = split_runs(self._own[::-1], num_tokens)",
    ),
    "a leaf that others lease is extended": (
        "kvcache",
        "not node.children and node.pins == 1",
        "not node.children",
    ),
    "a cache that is off publishes": (
        "kvcache",
        "if not self._cache.enabled or self.is_withheld:",
        "if self.is_withheld:",
    ),
    "growing forgets who owns the slots": (
        "kvcache",
        "            append_runs(self._own, runs)\n",
        "",
    ),
    "a refused lease leaves an empty namespace": (
        "kvcache",
        "            if not root.children and not root.pins:\n                "
        "self.tree.remove(root)\n",
        "",
    ),
    "a lease on what was dropped publishes": (
        "kvcache",
        "if not self._cache.enabled or self.is_withheld:",
        "if not self._cache.enabled:",
    ),
    "what was dropped is not freed when its lease ends": (
        "kvcache",
        "            cache.dropped.releasing(self._node)\n",
        "            pass\n",
    ),
    "dropping takes along what a sibling shares": (
        "dropped",
        "len(parent.children) == 1 and",
        "True and",
    ),
    "a parent of what was dropped is not offered": (
        "dropped",
        "            self._evictor.offer(top.parent)\n",
        "            pass\n",
    ),
    "a removed detached node is removed from the living": (
        "radix",
        "        if leaf in self.detached:\n            del self.detached[leaf]\n        elif",
        "        if",
    ),
    "what follows public tokens is public": (
        "kvcache",
        "            self._move(tree.root_below(self._node, prefix.namespace), depth)\n",
        "            pass\n",
    ),
    "what follows public tokens is found in another namespace": (
        "radix",
        "            below = node.children.get(prefix.namespace)\n",
        "            below = next((n for n in node.children.values() if n.is_root), None)\n",
    ),
    "public edges are read beyond the public part": (
        "radix",
        "prefix.tokens[: prefix.num_public * TOKEN_BYTES])",
        "prefix.tokens)",
    ),
    "a public leaf grows by private tokens": (
        "radix",
        "        if depth == prefix.num_public and not node.is_root:",
        "        if False:",
    ),
    "a root below public tokens stays when it is empty": (
        "eviction",
        "        if node.is_root:\n            self.take(node)\n",
        "        if node.parent is None:\n            self._tree.remove(node)\n",
    ),
    "dropping public tokens forgets what other namespaces have there": (
        "kvcache",
        "and self.tree.is_findable(root):",
        "and root.parent is None:",
    ),
    "a path is read from the leaf up": ("radix", "for runs in reversed(path)", "for runs in path"),
    "a split gives the upper part no pin": (
        "radix",
        "upper.pins = 1 if lower.pins else 0",
        "upper.pins = 0",
    ),
    "a split pins the upper part as often as the lower": (
        "radix",
        "upper.pins = 1 if lower.pins else 0",
        "upper.pins = lower.pins",
    ),
    "a split keeps the lower part's old key": (
        "radix",
        "        lower.key = _first_token(lower.edge)\n",
        "",
    ),
    "a partly shared edge counts as shared whole": (
        "radix",
        "                offset = _shared_tokens(edge, tokens, depth)\n",
        "                offset = min(len(edge) // 4, num_tokens - depth)\n",
    ),
    "the bisection ends one token early": (
        "radix",
        "low, high = 1, min(",
        "low, high = 1, -1 + min(",
    ),
    "a truncated leaf drops its head's slots": (
        "radix",
        "leaf.runs, dropped = split_runs(leaf.runs, num_tokens)",
        "dropped, leaf.runs = split_runs(leaf.runs, leaf.num_tokens - num_tokens)",
    ),
    "an inserted leaf is not counted": (
        "radix",
        "        self._count(leaf, leaf.num_tokens)\n",
        "",
    ),
    "an extended leaf keeps its old runs": ("radix", "        append_runs(leaf.runs, runs)\n", ""),
    "a whole leaf goes where its tail would do": (
        "eviction",
        "if length > num_tokens:",
        "if False:",
    ),
    "a pinned leaf stays in the order": (
        "eviction",
        "                self.policy.withdraw(above)\n",
        "                pass\n",
    ),
    "an unpinned leaf does not come back": (
        "eviction",
        "                self._offer(above)\n",
        "                pass\n",
    ),
    "a parent whose last child went is forgotten": (
        "eviction",
        "            if not parent.children and not parent.pins:\n                "
        "self._offer(parent)\n",
        "",
    ),
    "a leased parent is offered": (
        "eviction",
        "not parent.children and not parent.pins",
        "not parent.children",
    ),
    "a parent does not inherit recency": (
        "eviction",
        "        parent.last_use = max(parent.last_use, leaf.last_use)\n",
        "",
    ),
    "unpinning stops at the first node": (
        "eviction",
        "                self._offer(above)\n            above = above.parent",
        "                self._offer(above)\n            return",
    ),
    "extending a pinned leaf pins nothing": (
        "eviction",
        "        self.pinned_tokens += len(edge) // TOKEN_BYTES\n",
        "",
    ),
    "the newest leaf goes first": (
        "eviction",
        "leaf := policy.victim()",
        "leaf := policy.policy.policy._line and policy.policy.policy._line.last or None",
    ),
    "a budget that has shrunk is not kept when a lease ends": (
        "budgeted_slots",
        "        self._free(runs)\n        self._keep_budget()\n",
        "        self._free(runs)\n",
    ),
    "shrinking evicts as if no slot were free": (
        "budgeted_slots",
        "self.evict(excess - self.allocator.num_free)",
        "self.evict(excess)",
    ),
    "growing gives back one slot too few": (
        "budgeted_slots",
        "self.allocator.give_back(num_slots - self.allocator.num_slots)",
        "self.allocator.give_back(num_slots - self.allocator.num_slots - 1)",
    ),
    "a slot that is held back stays free": (
        "slots",
        "            self._forget(start, stop)\n            if start < cut:\n"
        "                self._note(start, cut)\n",
        "",
    ),
    "K/V that a lease holds is moved": (
        "compaction",
        "[] if node.pins else ",
        "",
    ),
    "a node that has gone is moved": (
        "compaction",
        "            if not cache.tree.is_findable(node):\n                continue\n",
        "",
    ),
    "what is moved is named in another order": (
        "compaction",
        "slots[places], targets = targets[: len(places)]",
        "slots[places], targets = targets[: len(places)][::-1]",
    ),
    "another policy does not get all leaves": (
        "budgeted_slots",
        "        for leaf in leaves:\n            policy.used(leaf)\n",
        "        for leaf in leaves[1:]:\n            policy.used(leaf)\n",
    ),
    "an allocated slot stays free": (
        "slots",
        "        self._forget(start, stop)\n        if cut",
        "        if cut",
    ),
    "the rest of a run is lost": (
        "slots",
        "        if cut < stop:\n            self._note(cut, stop)\n",
        "",
    ),
    "a coalesced run keeps its old entry": (
        "slots",
        "                self._forget(left, start)\n",
        "",
    ),
    "the second run of a table starts one slot late": (
        "slots",
        "np.repeat(shift, length_of)",
        "np.repeat(shift, length_of) + (np.arange(len(table)) >= length_of[0])",
    ),
    "runs that do not touch are joined": (
        "slots",
        "sum(runs[-1]) == start",
        "sum(runs[-1]) <= start",
    ),
    "a split leaves all blocks below": (
        "block_watch",
        "upper.blocks, lower.blocks = lower.blocks[:cut], lower.blocks[cut:]",
        "upper.blocks = []",
    ),
    "routers are not told of what is dropped": (
        "radix",
        "            self.watch.detached(node)\n",
        "            pass\n",
    ),
    "the block in which a truncated leaf ends stays": (
        "block_watch",
        "        kept = self._num_blocks(node) - node.start // self.block_tokens\n",
        "        kept = self._num_blocks(node) - node.start // self.block_tokens + 1\n",
    ),
}


SETTINGS = {
    "a cache that is off publishes": {"enabled": False},
    # Least recently used first would not notice: there the parent of the leaf that went is next in
    # any case.
    "a parent does not inherit recency": {
        "policy": staticmethod(MostRecentlyUsedFirst.policy),
        "recency": -1,
    },
}


def machine_over(
    changed: str, old: str, new: str, monkeypatch: pytest.MonkeyPatch
) -> type[CacheMachine]:
    """The machine, over modules of the cache of which one is changed."""
    load_changed(changed, old, new, monkeypatch)
    members = {
        "cache_type": sys.modules["radixserve.cache.kvcache"].KVCache,
        "watch_type": sys.modules["radixserve.cache.block_watch"].BlockWatch,
        "compaction_type": sys.modules["radixserve.cache.compaction"].Compaction,
        "policy": staticmethod(sys.modules["radixserve.cache.policies.table"].POLICIES["lru"]),
    }
    return type("Changed", (CacheMachine,), members)


def test_without_a_bug_the_reloaded_modules_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = machine_over("", "", "", monkeypatch)
    run_state_machine_as_test(machine, settings=settings(HUNT, max_examples=30))


@pytest.mark.slow
@pytest.mark.parametrize("bug", BUGS)
def test_the_machine_catches(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = machine_over(*BUGS[bug], monkeypatch)
    for name, value in SETTINGS.get(bug, {}).items():  # type: ignore[attr-defined]
        setattr(machine, name, value)
    with pytest.raises(
        (AssertionError, KeyError)
    ):  # a tree that contradicts itself may also just break
        run_state_machine_as_test(machine, settings=HUNT)
