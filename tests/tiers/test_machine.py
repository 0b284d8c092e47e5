"""Random walks: small budgets make everything move all the time, and every answer is what it must
be.

Three tokens, so that prefixes collide; a device of few slots, host memory, a folder that evicts;
requests come, leave, are preempted; the engine is restarted, and files are damaged behind its back.
"""

from __future__ import annotations

import random
import shutil
import tempfile
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from radixserve.engine import tiers
from radixserve.prefix import Prefix, pack
from radixserve.questions import Asked, Drop, Pin, RestorePins, Unpin, Unpinned
from radixserve.request import Request
from tests.engine.content_model import expected
from tests.engine.harness import request
from tests.public_prefixes import public_part
from tests.store.parts import files, flip, on_disk
from tests.tiers.parts import MAX_STEPS, Tiered

pytestmark = pytest.mark.slow  # a long search

MOST_BYTES = 8 << 10  # of a run of one token
SHARE = 0.25  # of a tier that pins may hold, as settings have it
PROMPT = st.lists(st.integers(0, 2), min_size=1, max_size=30)


NAMESPACES = st.sampled_from(["public", "a/0", "b/0"])


def asked_by(namespace: str, plain: Request) -> Request:
    """The same request in a namespace; of a tenant's prompt the beginning may be public."""
    num_public = public_part(namespace, plain.prompt_ids)
    return msgspec.structs.replace(plain, namespace=namespace, num_public=num_public)


class TierMachine(RuleBasedStateMachine):
    """One folder, one engine after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.base = Path(tempfile.mkdtemp(prefix="tiers-"))
        self.engine: Tiered | None = None
        self.asked: dict[str, tuple[list[int], int]] = {}
        self.left: set[str] = set()
        self.prompts: list[list[int]] = []  # of all engines
        self.pinned: dict[str, Prefix] = {}
        self.kept: dict[str, dict[Prefix, int]] = {}  # tokens of pins that tiers must keep
        self.num_asked = 0
        self.least, tiers.MIN_FETCH = tiers.MIN_FETCH, 2

    @initialize(
        num_slots=st.integers(48, 90),
        host_slots=st.sampled_from([0, 30, 80]),
        disk_budget=st.sampled_from([0, 640, 4096]),
    )
    def start(self, num_slots: int, host_slots: int, disk_budget: int) -> None:
        self.num_slots, self.host_slots, self.disk_budget = num_slots, host_slots, disk_budget << 10
        self.folder = self.base / "s" if disk_budget else None
        self.open()

    def open(self) -> None:
        self.engine = Tiered(
            self.num_slots,
            host_slots=self.host_slots,
            folder=self.folder,
            disk_budget=self.disk_budget,
        )
        self.asked, self.left = {}, set()

    @property
    def running(self) -> Tiered:
        assert self.engine is not None
        return self.engine

    @rule(prompt=PROMPT, max_tokens=st.integers(1, 12), namespace=NAMESPACES)
    def submit(self, prompt: list[int], max_tokens: int, namespace: str) -> None:
        self.num_asked += 1
        name = f"r{self.num_asked}"
        self.asked[name] = (prompt, max_tokens)
        self.prompts.append(prompt)
        self.running.submit(asked_by(namespace, request(name, prompt, max_tokens)))

    @rule(count=st.integers(1, 8))
    def step(self, count: int) -> None:
        for _ in range(count):
            if self.running.core.has_work:
                self.running.step()

    @precondition(lambda self: self.asked)
    @rule(which=st.integers(0, 1000))
    def leave(self, which: int) -> None:
        name = list(self.asked)[which % len(self.asked)]
        self.left.add(name)
        self.running.take(self.running.core.abort(name))

    @rule(count=st.integers(1, 40))
    def evict(self, count: int) -> None:
        self.running.cache.slots.evict(count)

    @rule(num_slots=st.integers(8, 90), host_slots=st.integers(1, 80))
    def resize(self, num_slots: int, host_slots: int) -> None:
        """The budgets of device and host move, within what was reserved."""
        engine, num_slots = self.running, min(num_slots, self.num_slots)
        engine.core.pins.limit(int(SHARE * num_slots))
        engine.core.scheduler.resize(num_slots)
        if engine.host:
            host_slots = min(host_slots, self.host_slots)
            engine.host.limit_kept(host_slots)
            engine.host.cache.slots.resize(host_slots)
            self.kept.pop("host", None)

    @precondition(lambda self: self.prompts)
    @rule(which=st.integers(0, 1000), most=st.integers(1, 20), namespace=NAMESPACES)
    def pin(self, which: int, most: int, namespace: str) -> None:
        """An operator pins the beginning of a prompt."""
        self.num_asked += 1
        name, prompt = f"p{self.num_asked}", self.prompts[which % len(self.prompts)]
        whole = Prefix.of(namespace, prompt, public_part(namespace, prompt))
        prefix = whole.first(most)
        asked = Pin(
            id=name,
            seconds=500.0,
            renews=False,
            namespace=prefix.namespace,
            packed=prefix.tokens,
            num_public=prefix.num_public,
        )
        told = self.running.answer_to(asked)
        self.kept = {}
        if told.id:
            self.pinned.pop(told.id, None)
            self.pinned[told.id] = prefix

    @precondition(lambda self: self.pinned)
    @rule(which=st.integers(0, 1000))
    def unpin(self, which: int) -> None:
        name = list(self.pinned)[which % len(self.pinned)]
        del self.pinned[name]
        self.kept = {}
        assert isinstance(self.running.answer_to(Unpin(id=name)), Unpinned)

    @rule(branch=st.one_of(st.just([]), PROMPT))
    def drop(self, branch: list[int]) -> None:
        """All requests leave, and what is on its way between tiers meanwhile is dropped, too."""
        engine = self.running
        for name in self.asked:
            self.left.add(name)
            engine.take(engine.core.abort(name))
        engine.core.ask(Asked(1, Drop(prefix=branch)))
        for _ in range(MAX_STEPS):
            if engine.core.answers():
                break
            engine.step()
        else:
            raise AssertionError("no answer")
        engine.settle()
        self.kept, pins = {}, {each.id for each in engine.core.pins.states()}
        for name in self.pinned.keys() - pins:
            del self.pinned[name]
        for namespace, tokens, _ in self.pinned.values():
            assert namespace != "public" or not tokens.startswith(pack(branch)), (
                "it is pinned still"
            )
        for prompt in self.prompts:
            if prompt[: len(branch)] == branch:
                for tier, found in self.found(prompt).items():
                    assert found < max(1, len(branch)), f"{tier} finds what was dropped"

    def found(self, prompt: list[int]) -> dict[str, int]:
        """How many tokens each tier has of a prompt and its answer."""
        engine, prefix = self.running, Prefix.of("public", [*prompt, *expected(prompt, 12)])
        found = {"device": engine.cache.match(prefix)}
        if engine.host is not None:
            found["host"] = engine.host.match(prefix).num_tokens
        if engine.store is not None:
            found["disk"] = engine.store.match(prefix)
        return found

    @rule()
    def end(self) -> None:
        self.running.settle()
        for name, (prompt, count) in self.asked.items():
            whole, got = expected(prompt, count), self.running.tokens(name)
            assert got == (whole[: len(got)] if name in self.left else whole)
        self.check_kept()
        self.kept = self.must_be_kept(self.running.tell_tiers_of_pins())
        self.check_kept()
        self.running.assert_drained()

    def must_be_kept(self, pins: list[Pin]) -> dict[str, dict[Prefix, int]]:
        """What each tier has of the pins that fit its share together with those before them, also
        when all that they want has come.
        """
        engine = self.running
        assert {each.id: each.prefix for each in pins} == self.pinned, "there are other pins"
        host, disk, wanted, num_bytes = dict[Prefix, int](), dict[Prefix, int](), set[Prefix](), 0
        for prefix in (each.prefix for each in pins):
            wanted |= {prefix.first(end) for end in range(1, prefix.num_tokens + 1)}
            if engine.host and len(wanted) <= int(SHARE * engine.host.cache.slots.budget):
                host[prefix] = engine.host.cache.match(prefix)
            if engine.store:
                steps = engine.store._walk(prefix)
                stored = sum(step.shared for step in steps)
                num_bytes += sum(step.row.num_bytes for step in steps)
                num_bytes += (prefix.num_tokens - stored) * MOST_BYTES
                if num_bytes <= SHARE * self.disk_budget:
                    disk[prefix] = stored
                    runs = {step.row.name for step in steps}
                    kept = engine.store._folder.pinned.keys()
                    assert runs <= kept, "the disk may evict a pin"
        if engine.host:
            least = {each.first(end) for each in host for end in range(1, host[each] + 1)}
            held = engine.host.cache.stats().pinned
            assert len(least) <= held, "host memory may evict a pin"
            assert held <= len(wanted), "host memory holds what is not pinned"
        return {"host": host, "disk": disk}

    def check_kept(self) -> None:
        """To be called while nothing is on its way."""
        engine = self.running
        for prefix, num_tokens in self.kept.get("host", {}).items():
            assert engine.host is not None
            assert engine.host.cache.match(prefix) >= num_tokens, "host memory evicted a pin"
        for prefix, num_tokens in self.kept.get("disk", {}).items():
            assert engine.store is not None
            assert engine.store.match(prefix) >= num_tokens, "the disk evicted a pin"

    @rule()
    def restart(self) -> None:
        """Pins outlive it with the disk, and what the disk has of them."""
        self.end()
        self.running.close()
        self.open()
        self.running.answer_to(RestorePins())
        self.running.settle()
        self.kept = {tier: kept for tier, kept in self.kept.items() if tier == "disk"}
        restored = {each.id for each in self.running.core.pins.states()}
        if self.folder is None:
            self.pinned = {}
        assert restored == self.pinned.keys(), "a restart loses pins, or makes some"
        self.check_kept()

    @precondition(lambda self: self.folder is not None)
    @rule(which=st.integers(0, 1000), bit=st.integers(0, 100_000))
    def damage(self, which: int, bit: int) -> None:
        self.running.settle()
        assert self.folder is not None
        if present := files(self.folder):
            path = present[which % len(present)]
            flip(path, bit % (8 * path.stat().st_size))
            self.kept.pop("disk", None)

    @invariant()
    def budgets_are_kept(self) -> None:
        if (
            self.engine is not None
            and self.folder is not None
            and self.engine.tiers.patience == 0.0
        ):
            assert on_disk(self.folder) <= self.disk_budget

    def teardown(self) -> None:
        tiers.MIN_FETCH = self.least
        if self.engine is not None:
            self.end()
            self.engine.close()
        shutil.rmtree(self.base)


TierMachine.TestCase.settings = settings(
    max_examples=40, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
TestTierMachine = TierMachine.TestCase


@pytest.mark.usefixtures("few_are_worth_it")
@pytest.mark.parametrize("seed", range(3))
def test_a_long_walk_uses_every_tier(tmp_path: Path, seed: int) -> None:
    """The machine may wander off; this one is sure to demote, promote, store, load and evict
    everywhere.
    """
    draw = random.Random(seed)
    seen = {"host": 0, "disk": 0}
    prompts = [[draw.randrange(3) for _ in range(draw.randrange(8, 34))] for _ in range(12)]
    for life in range(3):
        engine = Tiered(80, host_slots=90, folder=tmp_path / "s", disk_budget=800 << 10)
        for i in range(60):
            base = draw.choice(prompts)
            prompt = base[: draw.randrange(1, len(base) + 1)] + [
                draw.randrange(3) for _ in range(draw.randrange(4))
            ]
            plain = request(f"{life} {i}", prompt, draw.randrange(1, 9))
            engine.submit(asked_by(draw.choice(["public", "a/0"]), plain))
            for _ in range(draw.randrange(4)):
                if engine.core.has_work:
                    engine.step()
            if draw.random() < 0.2:
                engine.settle()
        engine.settle()
        assert all(event[-1].finish == "length" for event in engine.events.values())
        for tier, promoted in engine.tiers.promoted_tokens.items():
            seen[tier] += promoted
        engine.assert_drained()
        engine.close()
    assert all(seen.values()), seen
