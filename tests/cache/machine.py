"""A random walk over the cache, checked after every step against a model of plain dicts.

The model knows no nodes, edges, runs or pins. It has one entry per published token: (namespace,
public tokens that it follows, prefix up to and including that token) -> when it was used last.
`content` plays the K/V tensors: computing a token writes its entry into its slot, freeing a slot
wipes it; so wrong K/V shows as a prefix in the wrong place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from radixserve.blocks import DEVICE, BlocksRemoved, block_hash
from radixserve.cache import kvcache
from radixserve.cache.block_watch import BlockWatch
from radixserve.cache.compaction import Compaction
from radixserve.cache.policies import ranked
from radixserve.cache.policies.policy import Policy, Scale
from radixserve.cache.policies.table import POLICIES
from radixserve.cache.radix import Node
from radixserve.prefix import PUBLIC, Branch, Prefix, pack, unpack
from radixserve.step import Slots
from tests.public_prefixes import prefix_of, public_part

Token = tuple[str, int, tuple[int, ...]]
BLOCK = 2  # tokens of a block of which a router is told
TOKENS = st.lists(st.integers(0, 2), min_size=1, max_size=14)
NAMESPACES = st.sampled_from(["", "tenant/salt", "other/salt", PUBLIC])
WHICH = st.integers(0, 7)


def token(namespace: str, num_public: int, prefix: tuple[int, ...]) -> Token:
    """The last token of `prefix`."""
    if num_public > 0 and len(prefix) <= num_public:
        return PUBLIC, 0, prefix
    return namespace, num_public, prefix


def path(namespace: str, num_public: int, tokens: list[int]) -> list[Token]:
    """The tokens of a sequence."""
    ends = range(1, len(tokens) + 1)
    return [token(namespace, num_public, tuple(tokens[:end])) for end in ends]


def parent_of(each: Token) -> Token:
    """The token that `each` follows."""
    namespace, num_public, prefix = each
    return token(namespace, num_public, prefix[:-1])


def hash_of(last: Token) -> int:
    """The hash of the block that ends with this token."""
    namespace, num_public, prefix = last
    parent: int | None = None
    for end in range(BLOCK, len(prefix) + 1, BLOCK):
        where = token(namespace, num_public, prefix[:end])[0]
        parent = block_hash(parent, where, pack(prefix[end - BLOCK : end]))
    assert parent is not None
    return parent


@dataclass(eq=False)
class Running:
    """A sequence: what it is, how much of it is computed and how much is published."""

    lease: kvcache.Lease
    namespace: str
    num_public: int
    tokens: list[int]
    computed: int
    published: int
    kept: int = 1 << 30  # tokens before the first one that was dropped

    def prefixes(self, num_tokens: int) -> list[Token]:
        return path(self.namespace, self.num_public, self.tokens[:num_tokens])


class CacheMachine(RuleBasedStateMachine):
    """Subclasses choose the cache. `recency` says which leaf the policy lets go first: 1 the least
    recently used, -1 the most recently used, 0 one that the model cannot foretell.
    """

    cache_type = kvcache.KVCache
    compaction_type = Compaction
    watch_type = BlockWatch
    recency = 1
    enabled = True

    @staticmethod
    def policy(scale: Scale) -> Policy:
        return ranked.least_recently_used()

    def __init__(self) -> None:
        super().__init__()
        self.running: list[Running] = []
        self.published: dict[Token, int] = {}
        self.content: dict[int, Token] = {}
        self.clock = 0
        self.evicted_total = 0

    @initialize(num_slots=st.integers(24, 64))
    def start(self, num_slots: int) -> None:
        self.capacity = self.budget = self.num_slots = num_slots
        policy = self.policy(self.scale())
        self.cache = self.make_cache(num_slots, policy)
        self.watch = self.cache.tree.watch = self.watch_type(BLOCK, DEVICE)
        self.told: set[int] = set()  # hashes of blocks that are there, as the changes say
        self.compaction = self.compaction_type(self.cache, self.move)

    def make_cache(self, num_slots: int, policy: Policy) -> kvcache.KVCache:
        return self.cache_type(num_slots, enabled=self.enabled, policy=policy)

    def scale(self) -> Scale:
        return Scale(self.budget, chunk=2, even_depth=4)

    # What the model says.

    def cached(self, namespace: str, tokens: list[int], most: int = 1 << 30) -> int:
        """How many of the first `most` tokens can be hit."""
        count, num_public = 0, public_part(namespace, tokens)
        while (
            count < min(len(tokens), most)
            and token(namespace, num_public, tuple(tokens[: count + 1])) in self.published
        ):
            count += 1
        return count

    def protected(self) -> set[Token]:
        return {
            prefix
            for each in self.running
            for prefix in each.prefixes(min(each.published, each.kept))
        }

    def detached(self) -> list[Node]:
        """The nodes that were dropped and are not free yet."""
        found, stack = [], list(self.cache.tree.detached)
        while stack:
            found.append(node := stack.pop())
            stack += node.children.values()
        return found

    def num_detached(self) -> int:
        return sum(node.num_tokens for node in self.detached())

    def free_dropped(self) -> None:
        """After this only running requests hold what was dropped."""
        assert not self.cache.slots.sweep(1 << 30), "there is more to free"
        assert all(node.pins for node in self.detached()), "something is not free that could be"

    def private(self) -> int:
        return sum(len(each.lease.slots) - each.published for each in self.running)

    def free(self) -> int:
        return self.num_slots - len(self.published) - self.private() - self.num_detached()

    def expect_evicted(self, num_tokens: int, protected: set[Token]) -> None:
        """Let go of tokens one by one, always the end of a sequence that nobody leases."""
        if self.recency:
            for _ in range(num_tokens):
                inner = set(map(parent_of, self.published))
                ends = [
                    each for each in self.published if each not in inner and each not in protected
                ]
                del self.published[min(ends, key=lambda each: self.recency * self.published[each])]
            return
        kept = set(self.in_tree())
        assert kept <= self.published.keys(), "evicting added tokens"
        assert protected & self.published.keys() <= kept, "a leased token was evicted"
        assert len(kept) == len(self.published) - num_tokens, "more or less than asked was evicted"
        self.published = {each: use for each, use in self.published.items() if each in kept}

    def expect_room_made(self, num_slots: int, protected: set[Token], free_before: int) -> None:
        short = max(num_slots - free_before, 0)
        self.expect_evicted(short, protected)
        self.evicted_total += short

    def expect_budget_kept(self) -> None:
        """Slots were freed: those that are too many are held back, and no more is evicted than
        that takes.
        """
        if self.num_slots == self.budget:
            return
        gone = len(self.published) - len(self.in_tree())
        self.expect_evicted(gone, self.protected())
        self.evicted_total += gone
        self.num_slots = self.cache.stats().num_slots
        unused = self.free() + len(self.published.keys() - self.protected())
        assert self.num_slots >= self.budget, "too many slots are held back"
        assert self.num_slots == self.budget or not unused, "too few slots are held back"
        assert not gone or not self.free(), "more was evicted than the budget takes"

    # What is there.

    def in_tree(self) -> dict[Token, int]:
        return tokens_in(self.cache)

    def picture(self) -> object:
        """Everything that a refused or read-only call must leave as it was."""
        nodes = [
            (id(n), n.edge, tuple(n.runs), n.pins, n.last_use, n.uses, n.place)
            for n in self.cache.tree.nodes()
        ]
        return (
            nodes,
            list(self.cache.tree.roots),
            self.cache.slots.allocator.free_runs(),
            self.cache.stats(),
        )

    # What can happen.

    @rule(
        namespace=NAMESPACES,
        tokens=TOKENS,
        more=st.integers(-3, 30),
        read=st.integers(0, 3).map(bool),
    )
    def lease(self, namespace: str, tokens: list[int], more: int, read: bool) -> None:
        self.free_dropped()
        hit = self.cached(namespace, tokens, len(tokens) - 1) if read else 0
        num_slots = len(tokens) + more
        self.take(
            namespace,
            tokens,
            hit,
            num_slots,
            lambda: self.cache.lease(prefix_of(namespace, tokens), num_slots, read=read),
        )

    @rule(namespace=NAMESPACES, tokens=TOKENS)
    def hold(self, namespace: str, tokens: list[int]) -> None:
        hit = self.cached(namespace, tokens)
        self.take(namespace, tokens, hit, 0, lambda: self.cache.hold(prefix_of(namespace, tokens)))

    @rule(namespace=NAMESPACES, tokens=TOKENS)
    def receive(self, namespace: str, tokens: list[int]) -> None:
        hit, prefix = self.cached(namespace, tokens), prefix_of(namespace, tokens)
        self.take(namespace, tokens, hit, len(tokens), lambda: self.cache.receive(prefix))

    def take(
        self,
        namespace: str,
        tokens: list[int],
        hit: int,
        num_slots: int,
        taken: Callable[[], kvcache.Lease | None],
    ) -> None:
        """Take a lease that must find `hit` tokens and have `num_slots` slots, or must be refused
        if there is no room for them.
        """
        self.free_dropped()
        own = max(num_slots - hit, 0)
        num_public = public_part(namespace, tokens)
        protected = self.protected() | set(path(namespace, num_public, tokens[:hit]))
        free, before = self.free(), self.picture()
        lease = taken()
        has_windows = self.has_windows(namespace, tokens, hit, own)
        if own > free + len(self.published.keys() - protected) or not has_windows:
            assert lease is None, "there was no room"
            assert self.picture() == before, "a refused lease left traces"
            return
        assert lease is not None, "there was room"
        assert lease.num_cached == hit, "the lease is not on the longest prefix"
        assert len(lease.slots) == hit + own, "the lease has more or fewer slots than asked"
        self.expect_room_made(own, protected, free)
        self.running.append(Running(lease, namespace, num_public, list(tokens), hit, hit))

    def has_windows(self, namespace: str, tokens: list[int], hit: int, own: int) -> bool:
        return True

    @rule(namespace=NAMESPACES, tokens=TOKENS)
    def serve(self, namespace: str, tokens: list[int]) -> None:
        """A whole request at once."""
        before = len(self.running)
        self.lease(namespace, tokens, 0, True)
        if len(self.running) > before:
            self.compute_chunk(before, len(tokens), True)
            self.release(before)

    @precondition(lambda self: self.published)
    @rule(
        which=st.integers(0, 63),
        keep=st.integers(1, 14),
        tail=st.lists(st.integers(0, 2), max_size=4),
    )
    def serve_branch(self, which: int, keep: int, tail: list[int]) -> None:
        """A request that leaves a cached sequence somewhere, or is the beginning of one."""
        namespace, _, prefix = list(self.published)[which % len(self.published)]
        self.serve(namespace, [*prefix[:keep], *tail])

    @precondition(lambda self: self.running)
    @rule(which=WHICH, tail=st.lists(st.integers(0, 2), max_size=4))
    def lease_twin(self, which: int, tail: list[int]) -> None:
        """The same prompt again, or one that goes on from it, while the first is not done."""
        twin = self.pick(which)
        self.lease(twin.namespace, twin.tokens + tail, 0, True)

    def pick(self, which: int) -> Running:
        return self.running[which % len(self.running)]

    @precondition(lambda self: self.running)
    @rule(which=WHICH, chunk=st.integers(1, 8), publish=st.booleans())
    def compute_chunk(self, which: int, chunk: int, publish: bool) -> None:
        each = self.pick(which)
        stop = min(each.computed + chunk, len(each.tokens), len(each.lease.slots))
        stop = self.compute(each, stop)
        for position in range(each.computed, stop):
            self.content[int(each.lease.slots[position])] = each.prefixes(position + 1)[-1]
        each.computed = stop
        if publish:
            self.publish(which, 0)

    def compute(self, each: Running, stop: int) -> int:
        """Up to where the next chunk of a sequence can be computed, which should be `stop`."""
        return stop

    @precondition(lambda self: self.running)
    @rule(which=WHICH, held_back=st.integers(0, 3))
    def publish(self, which: int, held_back: int) -> None:
        each = self.pick(which)
        num_tokens = max(each.computed - held_back, each.published)
        each.lease.publish(Prefix.of(each.namespace, each.tokens[:num_tokens], each.num_public))
        if self.enabled and not each.lease.is_withheld:
            each.published = num_tokens
            for prefix in each.prefixes(num_tokens):
                self.published.setdefault(prefix, 0)
        self.expect_budget_kept()

    @precondition(lambda self: self.running)
    @rule(which=WHICH, token=st.integers(0, 2), ahead=st.integers(0, 5), publish=st.booleans())
    def decode(self, which: int, token: int, ahead: int, publish: bool) -> None:
        self.free_dropped()
        each = self.pick(which)
        wanted = len(each.tokens) + 1 + ahead
        more, free, before = max(wanted - len(each.lease.slots), 0), self.free(), self.picture()
        slots_before = each.lease.slots.tolist()
        protected = self.protected()
        has_room = more <= free + len(self.published.keys() - protected)
        assert each.lease.grow(wanted) == has_room, "grow is wrong about the room"
        if not has_room:
            assert self.picture() == before, "a refused grow left traces"
            assert each.lease.slots.tolist() == slots_before, "a refused grow changed the table"
            return
        assert each.lease.slots.tolist()[: len(slots_before)] == slots_before, (
            "growing moved a token"
        )
        assert len(each.lease.slots) == len(slots_before) + more, (
            "grow gave more or less than asked"
        )
        self.expect_room_made(more, protected, free)
        each.tokens.append(token)
        self.compute_chunk(which, len(each.tokens), publish)

    @precondition(lambda self: self.running)
    @rule(which=WHICH)
    def release(self, which: int) -> None:
        each = self.running.pop(which % len(self.running))
        each.lease.release()
        each.lease.release()
        self.clock += 1
        for prefix in each.prefixes(min(each.published, each.kept)):
            self.published[prefix] = self.clock
        self.expect_budget_kept()

    @rule(num_tokens=st.integers(0, 20))
    def evict(self, num_tokens: int) -> None:
        self.free_dropped()
        protected = self.protected()
        expected = min(num_tokens, len(self.published.keys() - protected))
        assert self.cache.slots.evict(num_tokens) == expected, "evict miscounts"
        self.expect_evicted(expected, protected)
        self.evicted_total += expected

    @rule(namespace=NAMESPACES, tokens=st.just([]) | TOKENS)
    def drop(self, namespace: str, tokens: list[int]) -> None:
        """Everything that follows is gone, what has nothing to do with it stays, and of the
        prefix itself an end that nobody shares.
        """
        dropped, there = tuple(tokens), set(self.published)
        self.cache.drop(Branch(frozenset([namespace]), pack(tokens)))
        kept = set(self.in_tree())
        gone = there - kept
        assert kept <= there, "dropping added tokens"
        following = {each for each in there if follows(each, namespace, dropped)}
        assert following <= gone, "what was dropped can be found"
        for where, num_public, prefix in gone - following:
            leads = where == namespace and prefix == dropped[: len(prefix)]
            assert leads, "dropping took something else along"
            assert any(each[:2] == (where, num_public) for each in following), (
                "dropping what is not there dropped something"
            )
        for each in self.running:
            mine = [prefix in gone for prefix in each.prefixes(min(each.published, each.kept))]
            if any(mine):
                each.kept = mine.index(True)
                assert each.lease.is_withheld, "a lease on what was dropped may publish"
        self.published = {each: use for each, use in self.published.items() if each in kept}

    @precondition(lambda self: self.published)
    @rule(which=st.integers(0, 63))
    def drop_branch(self, which: int) -> None:
        namespace, _, prefix = list(self.published)[which % len(self.published)]
        self.drop(namespace, list(prefix))

    @rule(num_nodes=st.integers(0, 9))
    def sweep(self, num_nodes: int) -> None:
        self.cache.slots.sweep(num_nodes)
        self.expect_budget_kept()

    @rule(num_slots=st.integers(1, 64))
    def resize(self, num_slots: int) -> None:
        self.free_dropped()
        self.budget = min(num_slots, self.capacity)
        free, protected = self.free(), self.protected()
        excess = max(self.num_slots - self.budget, 0)
        unused = free + len(self.published.keys() - protected)
        held = min(excess, unused)
        evicted = max(held - free, 0)
        assert self.cache.slots.resize(self.budget) == evicted, (
            "resize evicts more or less than it says"
        )
        self.expect_evicted(evicted, protected)
        self.evicted_total += evicted
        self.num_slots = self.budget if not excess else self.num_slots - held

    @rule(num_nodes=st.integers(1, 5), num_tokens=st.integers(1, 9), rounds=st.integers(1, 9))
    def compact(self, num_nodes: int, num_tokens: int, rounds: int) -> None:
        """K/V moves away from the end of the pool, if no lease holds it."""
        for _ in range(rounds):
            self.compaction.work(num_nodes, num_tokens)

    @rule(less=st.integers(1, 30))
    def shrink(self, less: int) -> None:
        """As an operator makes the budget smaller: all that can move does."""
        self.resize(max(1, self.num_slots - less))
        self.compact(5, 9, 9)

    def move(self, sources: Slots, targets: Slots) -> None:
        for source, target in zip(sources.tolist(), targets.tolist(), strict=True):
            assert target < self.cache.slots.allocator.num_slots <= source, "K/V moves up"
            self.content[target] = self.content[source]

    @rule(name=st.sampled_from(sorted(POLICIES)))
    def change_policy(self, name: str) -> None:
        """A model that foretells what goes can only do so for its own policy."""
        make = self.policy if self.recency else POLICIES[name]
        self.cache.slots.change_policy(make(self.scale()))

    @rule(namespace=NAMESPACES, tokens=TOKENS)
    def match(self, namespace: str, tokens: list[int]) -> None:
        before = self.picture()
        assert self.cache.match(prefix_of(namespace, tokens)) == self.cached(namespace, tokens), (
            "match is wrong"
        )
        assert self.picture() == before, "match changed something"

    # What always holds.

    @invariant()
    def every_part_is_sound(self) -> None:
        self.cache.check()

    @invariant()
    def every_slot_holds_what_its_owner_thinks(self) -> None:
        allocator = self.cache.slots.allocator
        for slot in slots_of([*allocator.free_runs(), *allocator.held]):
            self.content.pop(slot, None)
        in_tree = self.in_tree()
        assert in_tree.keys() == self.published.keys(), (
            "other tokens are cached than the model says"
        )
        for prefix, slot in in_tree.items():
            assert self.content.get(slot) == prefix, (
                "the tree names a slot that holds something else"
            )
        for each in self.running:
            for prefix, slot in zip(
                each.prefixes(each.computed), each.lease.slots.tolist(), strict=False
            ):
                assert self.content.get(slot) == prefix, (
                    "a lease names a slot that holds something else"
                )

    @invariant()
    def the_counts_are_those_of_the_model(self) -> None:
        stats = self.cache.stats()
        assert (stats.num_slots, stats.cached, stats.private) == (
            self.num_slots,
            len(self.published) + self.num_detached(),
            self.private(),
        )
        assert (stats.free, stats.leases) == (self.free(), len(self.running))
        leased = sum(node.num_tokens for node in self.detached() if node.pins)
        assert stats.pinned == len(self.protected()) + leased
        assert stats.evicted_tokens_total == self.evicted_total

    @invariant()
    def the_changes_of_blocks_are_those_of_the_model(self) -> None:
        for change in self.watch.take():
            if isinstance(change, BlocksRemoved):
                assert self.told.issuperset(change.hashes), "a block goes that was not there"
                self.told.difference_update(change.hashes)
                continue
            assert change.parent is None or change.parent in self.told, "a block follows nothing"
            assert len(unpack(change.tokens)) == BLOCK * len(change.hashes)
            self.told.update(change.hashes)
        whole = [each for each in self.published if len(each[2]) % BLOCK == 0]
        assert self.told == {hash_of(each) for each in whole}, "routers are told other blocks"

    def teardown(self) -> None:
        """When all requests have ended nothing is held, and the cache can be emptied."""
        if not hasattr(self, "cache"):
            return
        while self.running:
            self.release(0)
        assert self.cache.stats().pinned == 0
        self.cache.slots.sweep(1 << 30)
        for _ in range(2):  # the rest of a pass that was begun, and another one
            while self.compaction.work(1 << 30, 1 << 30):
                pass
        assert not self.compaction.is_needed, "K/V that nobody leases stays at the end of the pool"
        self.cache.slots.evict(self.capacity)
        self.cache.check()
        assert not self.cache.tree.detached
        self.cache.slots.resize(self.capacity)
        assert self.cache.slots.allocator.free_runs() == [(0, self.capacity)]
        assert not self.cache.tree.roots


def follows(each: Token, namespace: str, dropped: tuple[int, ...]) -> bool:
    """Whether `each` goes with what begins with `dropped` in `namespace`."""
    where, num_public, prefix = each
    if where == namespace:
        return prefix[: len(dropped)] == dropped
    is_below = namespace == PUBLIC and num_public > 0
    return is_below and prefix[:num_public][: len(dropped)] == dropped


def tokens_in(cache: kvcache.KVCache) -> dict[Token, int]:
    """The slot of every token in the tree."""
    slots: dict[Token, int] = {}
    stack: list[tuple[Node, Token]] = [(root, ("", 0, ())) for root in cache.tree.roots.values()]
    while stack:
        node, (namespace, num_public, above) = stack.pop()
        if node.is_root:
            namespace, num_public = str(node.key), len(above)
        ids = tuple(memoryview(node.edge).cast("i"))
        for index, slot in enumerate(slots_of(node.runs)):
            slots[namespace, num_public, above + ids[: index + 1]] = slot
        end = (namespace, num_public, above + ids)
        stack += [(child, end) for child in node.children.values()]
    return slots


def slots_of(runs: Iterable[tuple[int, int]]) -> list[int]:
    return [slot for start, length in runs for slot in range(start, start + length)]


class MostRecentlyUsedFirst(CacheMachine):
    recency = -1

    @staticmethod
    def policy(scale: Scale) -> Policy:
        return ranked.Ranked(lambda node: -node.last_use)


class NoOrderAtAll(CacheMachine):
    recency = 0

    @staticmethod
    def policy(scale: Scale) -> Policy:
        return ranked.Ranked(lambda node: 0)


class CacheOff(CacheMachine):
    enabled = False


def machine_of(name: str) -> type[CacheMachine]:
    """The machine with the policy `name`, of which the model cannot foretell what goes."""
    members = {"policy": staticmethod(POLICIES[name]), "recency": 0}
    return type(name, (CacheMachine,), members)
