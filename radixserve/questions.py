"""What the front may ask the engine about its cache, and the answers, as plain values.

A question is answered between two steps, however many requests wait. Each type names the type of
its answer, so `EngineClient.ask` returns that type.
"""

from __future__ import annotations

from typing import ClassVar, Generic, Literal, TypeVar

import msgspec

from radixserve.adapters import AdapterInfo, AdapterSource
from radixserve.prefix import Prefix
from radixserve.step import PinStatus

T_co = TypeVar("T_co", covariant=True)


class Question(msgspec.Struct, Generic[T_co], frozen=True, kw_only=True, omit_defaults=True):
    """A question whose answer is a T_co. One that `outlives_engine` is asked again when the engine
    dies before it has answered, and waits for the next engine; all others fail then. One that is
    `open_to_tenants` is not asked by administrators only, so few of them may wait at a time.
    """

    outlives_engine: ClassVar[bool] = False
    open_to_tenants: ClassVar[bool] = False


# Dropping.


class Dropped(msgspec.Struct, tag="dropped", frozen=True, kw_only=True, omit_defaults=True):
    """What cannot be found any more."""

    tokens: int = 0  # on the device, whose slots are free now
    nodes: int = 0
    # on the device, in use by requests that run; freed when these end
    leased_tokens: int = 0
    tiers: dict[str, int] = {}  # tokens in each tier below the device
    # tiers that have not confirmed yet: they find nothing of it, unless this process is killed now
    pending: list[str] = []


class Drop(Question[Dropped], tag="drop", frozen=True, kw_only=True):
    """Make cached K/V unfindable at once, in all tiers: all of it, or what every field that is
    given says.
    """

    outlives_engine: ClassVar[bool] = True
    namespaces: list[str] | None = None  # K/V of these; None: of all
    tenant: str | None = None  # K/V of this tenant, whose name its namespaces begin with
    prefix: list[int] = []  # K/V of these tokens and of all that follow them
    older_than: float = 0.0  # seconds since the last use
    node: int | None = None  # of a tree, with everything below it
    tier: str = "device"  # whose tree the node is of; it is dropped from all tiers


# Looking.


class NamespaceTokens(msgspec.Struct, frozen=True):
    """How much a namespace has on the device."""

    namespace: str
    tokens: int
    nodes: int
    hits: int  # requests that found some of it; of public tokens those of all tenants
    age_seconds: float  # since its last use


class TierSummary(msgspec.Struct, frozen=True, kw_only=True):
    """How full a tier is."""

    name: str  # device, or that of a tier below
    budget_bytes: int
    used_bytes: int
    budget_tokens: int | None = None  # None: the tier counts bytes
    used_tokens: int | None = None
    leased_tokens: int | None = None  # of the used ones, in use by requests that run
    pinned_tokens: int | None = None  # of the used ones, held by pins


class Summary(msgspec.Struct, tag="summary", frozen=True, kw_only=True):
    """The state of the cache."""

    enabled: bool
    tiers: list[TierSummary]
    nodes: int
    num_namespaces: int
    namespaces: list[NamespaceTokens]  # those with the most tokens
    oldest_seconds: float | None = None  # since the last use of what was not used for longest
    evicted_tokens_total: int = 0
    dropping_tokens: int = 0  # dropped, but still in use or not freed yet


class Summarize(Question[Summary], tag="summarize", frozen=True, kw_only=True):
    """How full is the cache, and of what? With `namespaces` only these are counted."""

    namespaces: list[str] | None = None
    most_namespaces: int = 20


class TreeNode(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A node of the radix tree, with the sums of everything below it."""

    id: int
    parent: int | None = None  # None: the root of a namespace
    depth: int  # tokens before it
    tokens: int
    hits: int = 0  # requests that found some of it, or went on below it
    age_seconds: float = 0.0  # since the last use of it or of anything below it
    leased: bool = False  # in use by requests that run
    pinned: bool = False
    # of a node whose parent is not listed or is in another namespace
    namespace: str | None = None
    children: int = 0
    below_tokens: int = 0  # of all nodes below it, whether or not these are listed
    below_nodes: int = 0
    first_tokens: list[int] = []
    # how many of its tokens each tier has; a tier that did not answer in time is left out
    tiers: dict[str, int] = {}


class Tree(msgspec.Struct, tag="tree", frozen=True, kw_only=True):
    """A part of a tier's tree. Parents stand before their children; of nodes with a common parent
    those with the most tokens below them are listed, as many as there is room for.
    """

    nodes: list[TreeNode]
    num_nodes: int  # of the part that was asked for, listed or not
    num_tokens: int


class ShowTree(Question[Tree], tag="show_tree", frozen=True, kw_only=True):
    """The nodes up to `depth` levels below `node`, at most `most`; without `node` below the roots
    of all namespaces. Each tier has a tree of its own. A node that is gone, or a tier that is not
    there, is answered with `Failed`.
    """

    tier: str = "device"
    node: int | None = None
    depth: int = 4
    most: int = 500
    namespaces: list[str] | None = None  # only nodes of these
    num_first_tokens: int = 0  # tokens of each node that are listed


# Explaining.


class Compared(msgspec.Struct, frozen=True, kw_only=True):
    """What a prompt was compared with: an earlier prompt of its session, a recent prompt, or a
    branch of the tree.
    """

    kind: Literal["session", "recent", "stored"]
    tokens: int
    shared: int
    age_seconds: float


class Explanation(msgspec.Struct, tag="explanation", frozen=True, kw_only=True):
    """What of a prompt the cache would give, and why not more.

    `lost` divides the tokens that it would not give, but for the last one, which is always
    computed, by cause. `differs_at` is the first token that differs from what it was compared with,
    whose tokens around that place are `theirs`, from `theirs_from` on.
    """

    matched: dict[str, int]  # tokens, by the tier that they come from
    lost: dict[str, int]
    gone_seconds: float | None = None  # since the first of the lost tokens were evicted or dropped
    gone_for: int | None = None  # for how many tokens room was made then
    compared: Compared | None = None
    differs_at: int | None = None
    theirs: list[int] = []
    theirs_from: int = 0


class Explain(Question[Explanation], tag="explain", frozen=True, kw_only=True):
    """What of this prompt would be found in the cache, and why not more? Changes nothing, recency
    included.
    """

    open_to_tenants: ClassVar[bool] = True
    namespace: str
    tokens: list[int]
    num_public: int = 0
    session: str = ""
    reads_cache: bool = True
    most_theirs: int = 2048


# Pinning.


class Pinned(msgspec.Struct, tag="pinned", frozen=True, kw_only=True):
    """What became of the wish to pin. Of `wanted` tokens `tokens` are held; `why` not more."""

    status: PinStatus
    wanted: int
    tokens: int = 0
    why: str = ""
    id: str = ""  # of the pin; that of an older one if the same prefix was pinned; none if refused
    seconds_left: float = 0.0


class Pin(Question[Pinned], tag="pin", frozen=True, kw_only=True):
    """Keep what is cached of a prefix, and what will be, from being evicted for a while.
    `packed` are its token ids (`prefix.pack`); or `node` is the last node of it. One that `renews`
    lasts `seconds` from its last hit on. What a request of `tenant` asked for is held within that
    tenant's share, and gives way to what operators pin.
    """

    id: str
    seconds: float
    renews: bool
    seconds_left: float = 0.0  # until its end, if that is not `seconds` from now
    tenant: str | None = None  # whose request asked for it; None: an operator did
    kv_quota: float = 0.0  # that tenant's, as `Tenant.kv_quota`
    namespace: str = ""
    packed: bytes = b""
    num_public: int = 0  # of these tokens, shared among all tenants
    node: int | None = None
    num_wanted: int = 0  # tokens of the wish, if it was clipped to what is named here

    @property
    def prefix(self) -> Prefix:
        """What is pinned, unless a node names it."""
        given = Prefix(self.namespace, self.packed, self.num_public)
        return given.first(given.num_tokens)


class Unpinned(msgspec.Struct, tag="unpinned", frozen=True):
    """A pin has ended; what it held may be evicted."""

    tokens: int


class Unpin(Question[Unpinned], tag="unpin", frozen=True, kw_only=True):
    """End a pin. One that is unknown is answered with `Failed`."""

    outlives_engine: ClassVar[bool] = True
    id: str


class PinState(msgspec.Struct, frozen=True, kw_only=True):
    """A pin as it is now."""

    id: str
    namespace: str
    tokens: int  # that it holds
    wanted: int  # tokens that were to be pinned
    seconds_left: float
    ttl: float | None  # seconds that it lasts from its last hit on; None: its end is fixed
    hits: int
    first_tokens: list[int]
    tenant: str | None = None  # whose request asked for it; None: an operator did


class PinList(msgspec.Struct, tag="pin_list", frozen=True):
    """All pins, those that end first before others."""

    pins: list[PinState]


class ListPins(Question[PinList], tag="list_pins", frozen=True, kw_only=True):
    """What is pinned?"""


class RestorePins(Question[PinList], tag="restore_pins", frozen=True, kw_only=True):
    """Pin again what an earlier server has left in the tiers below; all pins then."""


# Settings.


class Configured(msgspec.Struct, tag="configured", frozen=True, kw_only=True, omit_defaults=True):
    """What a change of settings did at once, by tier (device or host)."""

    evicted_tokens: dict[str, int] = {}
    # what running requests hold, or may still need, beyond the new budget; it follows as they end
    excess_bytes: dict[str, int] = {}


class Configure(Question[Configured], tag="configure", frozen=True, kw_only=True):
    """Change the settings that are given. The front has checked that their values are possible."""

    outlives_engine: ClassVar[bool] = True
    kv_budget: int | None = None  # bytes
    host_budget: int | None = None  # bytes
    eviction_policy: str | None = None
    prefill_share: float | None = None
    max_running: int | None = None


# Adapters.


class AdapterLoaded(msgspec.Struct, tag="adapter_loaded", frozen=True):
    """An adapter is served from now on, by its digest."""

    info: AdapterInfo


class LoadAdapter(Question[AdapterLoaded], tag="load_adapter", frozen=True, kw_only=True):
    """Load an adapter. If it cannot be served the answer is `Failed`, as refused."""

    source: AdapterSource


class AdapterUnloaded(msgspec.Struct, tag="adapter_unloaded", frozen=True):
    """No further request is served with an adapter; its memory follows when those that run with it
    have ended.
    """

    num_running: int


class UnloadAdapter(Question[AdapterUnloaded], tag="unload_adapter", frozen=True, kw_only=True):
    """Serve no further request with the adapter of this digest."""

    digest: str


# The messages.


class Failed(msgspec.Struct, tag="failed", frozen=True, kw_only=True):
    """There is no answer; the sentence says why."""

    message: str
    not_found: bool = False  # what the question names is not there
    refused: bool = False  # what the question asks for is not possible


AnyQuestion = (
    Drop
    | Summarize
    | ShowTree
    | Explain
    | Pin
    | Unpin
    | ListPins
    | RestorePins
    | Configure
    | LoadAdapter
    | UnloadAdapter
)
AnyAnswer = (
    Dropped
    | Summary
    | Tree
    | Explanation
    | Pinned
    | Unpinned
    | PinList
    | Configured
    | AdapterLoaded
    | AdapterUnloaded
    | Failed
)


class Asked(msgspec.Struct, tag="asked", frozen=True):
    """To the engine: a question. Its answer carries the same id."""

    id: int
    question: AnyQuestion


class Answered(msgspec.Struct, tag="answered", frozen=True):
    """To the front: the answer."""

    id: int
    answer: AnyAnswer
