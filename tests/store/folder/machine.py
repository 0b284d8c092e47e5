"""A random walk over a store, checked after every step against a model of plain lists and sets.

The model knows no files, rows or bytes. It has the runs that were put, each with the prefixes it
gave, and the order of their use; from the store it believes two numbers only: how many tokens a put
stored, and how many runs it evicted. So which prefixes are stored, and which run is the next to go,
is foretold exactly, and K/V is checked to the bit.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from radixserve.prefix import PUBLIC, Prefix
from radixserve.store.folder import disk_store
from radixserve.store.folder.disk_store import DiskStore
from radixserve.store.format.rows import prefix_of as prefix_of_path
from tests.public_prefixes import prefix_of
from tests.store.parts import WIDE, QuickDisk, files, flip, loads, on_disk, put

MAX_RUN = 4
TOKENS = st.lists(st.integers(0, 2), min_size=1, max_size=10)
TAIL = st.lists(st.integers(0, 2), max_size=5)
WHICH = st.integers(0, 7)
NAMESPACES = st.sampled_from(["", "tenant/a", "tenant2/b", PUBLIC])
MODELS = st.sampled_from(["model-a", "model-b"])
BUDGETS = st.sampled_from([700 << 10, 800 << 10, 1000 << 10, 1 << 30])

Token = tuple[str, str, int, tuple[int, ...]]
"""Model, namespace, public tokens before it, and the tokens up to this one."""


def token(model: str, prefix: Prefix) -> Token:
    """The last token of `prefix`."""
    return model, prefix.namespace, prefix.num_public, tuple(memoryview(prefix.tokens).cast("i"))


@dataclass(eq=False)
class Run:
    """Which prefixes it holds the last position of, in order; its parent; when it was used."""

    prefixes: list[Token]
    parent: Run | None
    start: int
    last_use: int
    damaged: bool = False


@dataclass
class Model:
    """What should be stored."""

    runs: list[Run] = field(default_factory=list)  # in the order of their ids
    clock: int = 0

    def owner(self, prefix: Token) -> Run | None:
        return next((run for run in self.runs if prefix in run.prefixes), None)

    def path(self, model: str, prefix: Prefix) -> list[Run]:
        """The run of each stored position, from the first on."""
        owners = []
        for end in range(1, prefix.num_tokens + 1):
            run = self.owner(token(model, prefix.first(end)))
            if run is None:
                break
            owners.append(run)
        return owners

    def touch(self, runs: list[Run]) -> None:
        self.clock += 1
        for run in runs:
            run.last_use = self.clock

    def remove(self, run: Run) -> None:
        for child in [each for each in self.runs if each.parent is run]:
            self.remove(child)
        self.runs.remove(run)

    def evict(self, count: int, path: list[Run]) -> None:
        """Leaves, the least recently used first, of two the younger one."""
        for _ in range(count):
            parents = {id(run.parent) for run in self.runs}
            leaves = [run for run in self.runs if id(run) not in parents and run not in path[-1:]]
            self.runs.remove(min(leaves, key=lambda run: (run.last_use, -self.runs.index(run))))

    def put(self, model: str, prefix: Prefix, depth: int) -> None:
        """Runs for the positions from `depth` on, none of them over the end of public tokens."""
        path = self.path(model, prefix.first(depth))
        parent = path[-1] if path else None
        while depth < prefix.num_tokens:
            self.clock += 1
            border = prefix.num_public if depth < prefix.num_public else prefix.num_tokens
            stop = min(depth + MAX_RUN, border, prefix.num_tokens)
            ends = range(depth + 1, stop + 1)
            prefixes = [token(model, prefix.first(end)) for end in ends]
            parent = Run(prefixes, parent, depth, self.clock)
            self.runs.append(parent)
            depth = stop


class Watched(QuickDisk):
    """Sees to the budget while files are written."""

    budget, folder = 0, Path()

    def write(self, path: Path, parts: Sequence[bytes | memoryview]) -> None:
        super().write(path, parts)
        if path.parent.name == "runs":
            assert on_disk(self.folder) <= self.budget


class StoreMachine(RuleBasedStateMachine):
    """Two models, three namespaces, three tokens, one folder."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp()) / "store"
        self.model, self.evicted = Model(), 0
        self.usual = disk_store.MAX_RUN_TOKENS

    @initialize(budget=BUDGETS)
    def start(self, budget: int) -> None:
        disk_store.MAX_RUN_TOKENS = MAX_RUN
        self.open("model-a", budget)

    def open(self, name: str, budget: int) -> None:
        disk = Watched()
        disk.budget, disk.folder = budget, self.folder
        self.name, self.budget, self.evicted = name, budget, 0
        self.store = DiskStore(self.folder, budget, name, WIDE, disk=disk)
        self.note_evictions([])

    def note_evictions(self, path: list[Run]) -> None:
        total = self.store.stats().evicted_runs_total
        self.model.evict(total - self.evicted, path)
        self.evicted = total

    @rule(namespace=NAMESPACES, tokens=TOKENS, back=st.integers(0, 3))
    def put(self, namespace: str, tokens: list[int], back: int) -> None:
        prefix = prefix_of(namespace, tokens)
        path = self.model.path(self.name, prefix)
        start = max(min(len(path) - back, len(tokens) - 1), 0)
        if path:
            self.model.touch(path)
        stored = put(self.store, namespace, tokens, start, prefix.num_public)
        self.note_evictions(path)
        self.model.put(self.name, prefix.first(len(path) + stored), len(path))

    @rule(which=WHICH, tail=TAIL, back=st.integers(0, 3))
    @precondition(lambda self: self.model.runs)
    def put_more(self, which: int, tail: list[int], back: int) -> None:
        namespace, tokens = self.known(which, tail)
        self.put(namespace, tokens, back)

    @rule(namespace=NAMESPACES, tokens=TOKENS, gap=st.integers(1, 3))
    def put_behind_a_gap(self, namespace: str, tokens: list[int], gap: int) -> None:
        prefix = prefix_of(namespace, tokens)
        start = len(self.model.path(self.name, prefix)) + gap
        if start < len(tokens):
            assert put(self.store, namespace, tokens, start, prefix.num_public) == 0

    @rule(namespace=NAMESPACES, tokens=TOKENS)
    def match(self, namespace: str, tokens: list[int]) -> None:
        prefix = prefix_of(namespace, tokens)
        assert self.store.match(prefix) == len(self.model.path(self.name, prefix))

    def known(self, which: int, tail: list[int]) -> tuple[str, list[int]]:
        """A prompt that shares something with a stored one, perhaps of the other model."""
        prefixes = self.model.runs[which % len(self.model.runs)].prefixes
        _, namespace, _, tokens = prefixes[which % len(prefixes)]
        return namespace, [*tokens, *tail]

    @rule(which=WHICH, tail=TAIL, start=st.integers(0, 9), stop=st.integers(1, 10))
    @precondition(lambda self: self.model.runs)
    def load(self, which: int, tail: list[int], start: int, stop: int) -> None:
        namespace, tokens = self.known(which, tail)
        stop, prefix = min(stop, len(tokens)), prefix_of(namespace, tokens)
        path = self.model.path(self.name, prefix.first(stop))
        good = next(
            (at for at in range(min(start, len(path)), len(path)) if path[at].damaged), len(path)
        )
        loaded = loads(self.store, namespace, tokens, start, stop, prefix.num_public)
        assert loaded == max(good - start, 0)
        if good > start:
            self.model.touch(path)
        if good < len(path):
            self.model.remove(path[good])

    @rule(data=st.data())
    @precondition(lambda self: self.model.runs)
    def damage(self, data: st.DataObject) -> None:
        """Flip a bit of a file; whose that is, its row says."""
        path = data.draw(st.sampled_from(files(self.folder)))
        run = self.model.owner(self.last_prefix(path.name))
        assert run is not None
        if not run.damaged:
            flip(path, data.draw(st.integers(0, path.stat().st_size * 8 - 1)))
            run.damaged = True

    def last_prefix(self, name: str) -> Token:
        index = self.store._folder.index
        row = index.named(name)[0]
        return token(row.fingerprint, prefix_of_path(index.path(row)))

    @rule(name=MODELS, budget=BUDGETS)
    def reopen(self, name: str, budget: int) -> None:
        self.store.close()
        self.open(name, budget)

    @rule()
    @precondition(lambda self: len(self.model.runs) > 5)
    def clear(self) -> None:
        assert self.store.clear() == len(self.model.runs)
        self.model.runs.clear()

    @invariant()
    def files_are_rows_within_the_budget(self) -> None:
        stats = self.store.stats()
        assert (stats.runs, len(files(self.folder))) == (len(self.model.runs), len(self.model.runs))
        assert stats.bytes == on_disk(self.folder) <= self.budget
        assert (stats.read_errors_total, stats.write_errors_total) == (0, 0)

    def teardown(self) -> None:
        disk_store.MAX_RUN_TOKENS = self.usual
        self.store.close()
        shutil.rmtree(self.folder.parent)
