"""A random walk over pins above a cache: requests compute and pin prompts that begin alike,
operators pin and unpin, time goes on, the budget moves, K/V is evicted and dropped, and a front is
told.

The model has one entry per pin: what it wants, whose it is, when it ends, what it held when it was
looked at last. It does not foretell what pins hold, but says what must be true of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from radixserve.cache.kvcache import KVCache
from radixserve.engine import pins
from radixserve.front.pins import KeptPins
from radixserve.prefix import PUBLIC, Branch, Prefix, pack
from radixserve.questions import Pin, PinState
from radixserve.request import PinWish, Request, Sampling
from tests.cache.machine import Token, follows, path, tokens_in
from tests.public_prefixes import prefix_of

SHARE, REQUEST_SHARE = 0.5, 0.25
PROMPTS = st.tuples(
    st.sampled_from([PUBLIC, PUBLIC, "t/salt"]), st.lists(st.integers(0, 1), min_size=1, max_size=8)
)
TAIL = st.lists(st.integers(0, 1), max_size=2)
SECONDS = st.sampled_from([3, 9, 30])
REQUESTS = st.sampled_from(["t", "u"])
TENANTS = st.one_of(st.none(), REQUESTS)  # None: an operator
WHICH = st.integers(0, 5)
LIMITS = {"MAX_PINS": 6, "MAX_OF_TENANT": 3, "MAX_WANTED": 40}


@dataclass(eq=False)
class Model:
    """A pin as the model knows it."""

    prefix: Prefix
    tenant: str | None
    seconds: int = 0
    renews: bool = True
    end: int = 0
    held: int = 0  # tokens, when it was looked at last
    most_held: int = 0  # since it has given way
    wished: int = 0  # tokens, if it was clipped to the prefix

    def last(self, now: int, seconds: int, renews: bool, wished: int = 0) -> None:
        """It was asked for anew."""
        self.wished = wished
        self.seconds, self.renews, self.end = seconds, renews, now + seconds

    def tokens(self) -> list[Token]:
        """All that it wants."""
        return tokens_of(self.prefix)


def tokens_of(prefix: Prefix) -> list[Token]:
    ids = memoryview(prefix.tokens).cast("i").tolist()
    return path(prefix.namespace, prefix.num_public, ids)


def held_by(models: Iterable[Model]) -> set[Token]:
    """What these hold together."""
    return {token for each in models for token in each.tokens()[: each.held]}


def nobody(model: Model) -> bool:
    """No pin may have ended."""
    return False


def place(model: Model) -> tuple[bool, int]:
    """In the order in which pins give way."""
    return model.tenant is None, model.end


class PinMachine(RuleBasedStateMachine):
    pins_type = pins.Pins
    pins_module = pins

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000
        self.models: dict[str, Model] = {}  # the least recently used first
        self.num_named = 0
        self.is_news = False  # for tiers
        self.limits = {name: getattr(self.pins_module, name) for name in LIMITS}
        for name, limit in LIMITS.items():
            setattr(self.pins_module, name, limit)

    @initialize(num_slots=st.sampled_from([16, 24, 40]))
    def start(self, num_slots: int) -> None:
        self.capacity, self.most = num_slots, int(SHARE * num_slots)
        self.cache = KVCache(num_slots)
        self.pins = self.pins_type(self.cache, self.most, REQUEST_SHARE, lambda: self.now)
        self.kept = KeptPins(lambda: self.now)

    # What the model says.

    def most_of(self, tenant: str | None) -> int:
        share = int(REQUEST_SHARE * self.cache.slots.budget)
        return self.most if tenant is None else min(self.most, share)

    def of(self, tenant: str | None) -> list[Model]:
        """The pins that share a limit with those of `tenant`."""
        return [each for each in self.models.values() if tenant in (None, each.tenant)]

    def displaceable(self, tenant: str | None) -> list[Model]:
        """Those that end for a pin of `tenant`."""
        return [each for each in self.of(tenant) if each.tenant is not None]

    def is_full(self, tenant: str | None) -> bool:
        """Whether a pin of `tenant` has no room to hold more."""
        of_all, of_same = (len(held_by(self.of(each))) for each in (None, tenant))
        return of_all >= self.most or of_same >= self.most_of(tenant)

    def cached_of(self, prefix: Prefix) -> int:
        there = tokens_in(self.cache)
        found = [each in there for each in tokens_of(prefix)]
        return found.index(False) if False in found else len(found)

    def look(self, may_have_ended: Callable[[Model], bool] = nobody) -> list[Model]:
        """Take over what pins hold now, and check what is told of them. Returns those that have
        ended.
        """
        listed: dict[str, PinState] = {each.id: each for each in self.pins.states()}
        assert listed.keys() <= self.models.keys(), "a pin comes from nowhere"
        gone = [self.models.pop(name) for name in self.models.keys() - listed.keys()]
        assert all(map(may_have_ended, gone)), "a pin ended that should not"
        self.is_news = self.is_news or bool(gone)
        for name, state in listed.items():
            model = self.models[name]
            wanted = model.wished or model.prefix.num_tokens
            assert (state.wanted, state.tenant) == (wanted, model.tenant)
            assert state.seconds_left == model.end - self.now, "a pin ends at another time"
            assert state.ttl == (model.seconds if model.renews else None)
            lost_all = model.held and not state.tokens
            model.held = state.tokens
            model.most_held = 0 if lost_all else max(model.most_held, state.tokens)
        self.tell_front()
        return gone

    def tell_front(self) -> None:
        if (changes := self.pins.changes()) is not None:
            self.kept.note(changes)
        assert {
            each.id: (each.prefix, each.tenant, each.seconds_left) for each in self.kept.again()
        } == {
            name: (each.prefix, each.tenant, each.end - self.now)
            for name, each in self.models.items()
        }, "the front knows other pins"
        assert {each.pin.id: each.num_held for each in self.kept.holding()} == {
            name: each.most_held for name, each in self.models.items() if each.most_held
        }, "the front knows of another number of tokens"

    def expect_all_held(self, model: Model) -> None:
        """It holds all that is cached, or as much as its shares allow when all have ended that give
        way to it.
        """
        could_hold = min(self.cached_of(model.prefix), self.most_of(model.tenant))
        assert model.held <= could_hold, "it holds more than there is"
        self.expect_share_kept(model.tenant)
        if model.held < could_hold:
            assert self.is_full(model.tenant), "it holds less than it could"
            assert set(self.displaceable(model.tenant)) <= {model}, "others should have ended"

    def expect_share_kept(self, tenant: str | None) -> None:
        assert len(held_by(self.of(tenant))) <= self.most_of(tenant), "more than a tenant's share"

    def expect_first_gave_way(self, before: dict[Model, int], num: int | None = None) -> None:
        """Of those that held something before, the first ones hold nothing, and the others what
        they held.
        """
        gave = [each for each in before if not each.held]
        kept = [each for each in before if each.held]
        assert num is None or len(gave) == num
        assert all(each.held == before[each] for each in kept), "a part was given up"
        last = max(map(place, gave), default=(False, 0))
        assert all(place(each) >= last for each in kept), "a pin gave way before its turn"

    def holding(self) -> dict[Model, int]:
        return {each: each.held for each in self.models.values() if each.held}

    # What requests do.

    def compute(self, prompt: Prefix) -> bool:
        """All K/V of `prompt` is there then; False if it has no room."""
        lease = self.cache.lease(prompt, prompt.num_tokens)
        if lease is None:
            return False
        with lease:
            lease.publish(prompt)
        return True

    @rule(prompt=PROMPTS, renews=st.booleans())
    def serve(self, prompt: tuple[str, list[int]], renews: bool) -> None:
        self.serve_prompt(prefix_of(*prompt), renews)

    @precondition(lambda self: self.models)
    @rule(which=WHICH, tail=TAIL, renews=st.booleans())
    def serve_pinned(self, which: int, tail: list[int], renews: bool) -> None:
        """A prompt that begins with what is pinned."""
        namespace, _, ids = list(self.models.values())[which % len(self.models)].tokens()[-1]
        self.serve_prompt(prefix_of(namespace, [*ids, *tail]), renews)

    def serve_prompt(self, prompt: Prefix, renews: bool) -> None:
        if not self.compute(prompt):
            return
        there, may_end = set(tokens_of(prompt)), self.displaceable(None)
        lacking = [each for each in self.models.values() if there & set(each.tokens()[each.held :])]
        self.pins.served(prompt, renews=renews)
        for name, each in list(self.models.items()):
            if renews and there >= set(each.tokens()):
                self.models[name] = self.models.pop(name)
                if each.renews:
                    each.end, self.is_news = self.now + each.seconds, True
        gone = self.look(lambda each: bool(lacking) and each in may_end)
        for each in lacking if not gone else ():
            self.expect_all_held(each)

    @rule(prompt=PROMPTS, num_tokens=st.integers(1, 9), seconds=SECONDS, tenant=REQUESTS)
    def wish(
        self, prompt: tuple[str, list[int]], num_tokens: int, seconds: int, tenant: str
    ) -> None:
        """A request has computed its prompt and asks for a pin on its beginning."""
        whole = prefix_of(*prompt)
        if not self.compute(whole):
            return
        self.num_named += 1
        wish = PinWish(id=f"p{self.num_named}", num_tokens=num_tokens, seconds=seconds)
        sampling = Sampling(max_tokens=1, seed=1)
        asked = Request(
            id="r", prompt_ids=prompt[1], sampling=sampling, tenant=tenant, pins=(wish,)
        )
        prefix, may_end = whole.first(num_tokens), self.displaceable(tenant)
        same = [n for n, e in self.models.items() if (e.prefix, e.tenant) == (prefix, tenant)]
        (outcome,) = self.pins.add_wishes(asked, whole)
        if outcome.status == "refused":
            self.look(lambda model: model in may_end)
            return
        name = same[0] if same else wish.id
        model = self.models.pop(name, None) or Model(prefix, tenant)
        model.prefix = whole.first(outcome.num_tokens)
        model.last(self.now, seconds, True, num_tokens)
        self.models[name], self.is_news = model, True
        self.look(lambda other: other in may_end and other is not model)
        self.expect_share_kept(tenant)
        assert model.held == outcome.num_tokens
        assert (outcome.status == "accepted") == (outcome.num_tokens == num_tokens)
        for other in self.of(tenant):
            is_shorter = set(other.tokens()) < set(model.tokens())
            assert not is_shorter or other.end > model.end, "a beginning of it is pinned still"

    # What operators do.

    @rule(prompt=PROMPTS, seconds=SECONDS, renews=st.booleans(), tenant=TENANTS)
    def pin(
        self, prompt: tuple[str, list[int]], seconds: int, renews: bool, tenant: str | None
    ) -> None:
        self.num_named += 1
        name, whole = f"p{self.num_named}", prefix_of(*prompt)
        prefix = whole.first(whole.num_tokens)
        asked = Pin(
            id=name,
            seconds=seconds,
            renews=renews,
            tenant=tenant,
            namespace=prefix.namespace,
            packed=prefix.tokens,
            num_public=prefix.num_public,
        )
        same = [n for n, e in self.models.items() if (e.prefix, e.tenant) == (prefix, tenant)]
        old = self.models.pop(same[0]) if same else None
        may_end, full = self.displaceable(tenant), self.is_full(tenant)
        told = self.pins.add(asked, prefix)
        if told.status == "refused":
            self.look(lambda each: each in may_end)
            assert old is None, "what is pinned already was refused"
            self.expect_reason_to_refuse(prefix, tenant, full)
            return
        assert told.id == (same[0] if same else name), "the same prefix is pinned twice"
        model = old or Model(prefix, tenant)
        model.last(self.now, seconds, renews)
        self.models[told.id], self.is_news = model, True
        gone = self.look(lambda each: each in may_end)
        assert set(gone) == set(may_end[: len(gone)]), "one ended that was used more recently"
        self.expect_all_held(model)
        assert told.tokens == model.held
        if told.status == "accepted":
            assert model.held == self.cached_of(model.prefix)
        else:
            assert prefix.num_tokens > self.most_of(tenant) or self.is_full(tenant)

    def expect_reason_to_refuse(self, prefix: Prefix, tenant: str | None, full: bool) -> None:
        models = self.models.values()
        wanted = sum(each.prefix.num_tokens for each in models) + prefix.num_tokens
        reasons = (
            not self.most_of(tenant),
            len(models) >= LIMITS["MAX_PINS"],
            tenant is not None and len(self.of(tenant)) >= LIMITS["MAX_OF_TENANT"],
            wanted > LIMITS["MAX_WANTED"],
            tenant is None and full,
        )
        assert any(reasons), "a pin was refused for no reason"
        assert reasons[0] or not self.displaceable(tenant), "another pin should have ended instead"

    @precondition(lambda self: self.models)
    @rule(which=WHICH)
    def unpin(self, which: int) -> None:
        name = list(self.models)[which % len(self.models)]
        ended = self.models[name]
        assert self.pins.remove(name) == ended.held
        assert self.pins.remove(name) is None
        assert self.look(lambda each: each is ended) == [ended]

    @rule(prompt=PROMPTS)
    def drop(self, prompt: tuple[str, list[int]]) -> None:
        namespace, tokens = prompt
        self.cache.drop(Branch(frozenset([namespace]), pack(tokens)))
        self.pins.dropped(Branch(frozenset([namespace]), pack(tokens)))
        there = tokens_in(self.cache).keys()
        over = [
            each
            for each in self.models.values()
            if any(follows(token, namespace, tuple(tokens)) for token in each.tokens())
            or not there >= held_by([each])
        ]
        assert set(self.look(lambda each: each in over)) == set(over), "a dropped pin is there"
        self.cache.slots.sweep(1 << 30)

    # What happens by itself.

    @precondition(lambda self: self.models)
    @rule(seconds=st.integers(1, 4))
    def time_goes_on(self, seconds: int) -> None:
        self.now += seconds
        self.pins.expire()
        over = [each for each in self.models.values() if each.end <= self.now]
        gone = self.look(lambda each: each in over)
        assert len(gone) == len(over), "a pin outlives its end"

    @rule()
    def evict(self) -> None:
        """All that nobody holds."""
        self.cache.slots.evict(self.capacity)
        assert tokens_in(self.cache).keys() == held_by(self.models.values())

    @precondition(lambda self: self.models)
    @rule()
    def give_way(self) -> None:
        """Slots are short: one lets go of all that it holds."""
        before = self.holding()
        assert self.pins.relent() == bool(before)
        self.look()
        self.expect_first_gave_way(before, min(1, len(before)))

    @rule(num_slots=st.integers(8, 40))
    def resize(self, num_slots: int) -> None:
        """First pins let go of what is more than their share of the new budget."""
        self.most = int(SHARE * min(num_slots, self.capacity))
        before = self.holding()
        self.pins.limit(self.most)
        self.look()
        self.expect_first_gave_way(before)
        self.cache.slots.resize(min(num_slots, self.capacity))

    @precondition(lambda self: self.is_news)
    @rule()
    def tell_tiers(self) -> None:
        told = self.pins.for_tiers(at_once=True)
        assert told is not None, "tiers are not told"
        last_used_first = [*reversed(self.models.values())]
        expected = sorted(last_used_first, key=lambda each: each.tenant is not None)
        assert [(each.prefix, each.tenant) for each in told] == [
            (each.prefix, each.tenant) for each in expected
        ]
        assert self.pins.for_tiers(at_once=True) is None, "tiers are told for nothing"
        self.is_news = False

    # What always holds.

    @invariant()
    def pins_hold_what_is_there_and_no_more_than_their_shares(self) -> None:
        self.cache.check()
        held, stats = held_by(self.models.values()), self.cache.stats()
        assert self.pins.num_tokens == stats.pinned == len(held) <= self.most
        assert stats.leases == len(self.pins.leases()) == len(self.holding())
        assert held <= tokens_in(self.cache).keys(), "what is held was evicted"
        assert len(self.models) <= LIMITS["MAX_PINS"]

    def teardown(self) -> None:
        """When all pins have ended nothing is held."""
        for name, limit in self.limits.items():
            setattr(self.pins_module, name, limit)
        if hasattr(self, "cache"):
            while self.models:
                self.unpin(0)
            self.cache.slots.evict(self.capacity)
            self.cache.check()
            assert not self.cache.tree.roots
