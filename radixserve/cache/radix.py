"""The radix tree: token sequences with computed K/V, and the slots that hold it.

One tree per namespace, over single token ids. Where a prefix begins with public tokens, the tree of
its own namespace hangs below them. It owns the shape (nodes, edges, slot runs) and its operations:
match, split, insert, truncate, detach. It does not know who leases a node or which node is evicted
first (eviction.py), nor which slots are free (slots.py); it carries `pins` and `last_use` for them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from radixserve.cache.block_watch import BlockWatch
from radixserve.cache.slots import Run, append_runs, split_runs
from radixserve.prefix import TOKEN_BYTES, Prefix, owner_of


class Node:
    """The tokens between two branchings of the tree, and the slots that hold their K/V.

    After "the cat sat" and "the cat ran" were published (a word stands for a token here):

        root of namespace "public"        edge b""           runs []
        '- the                            edge "the cat"     runs [(0, 2)]   by first token:
           |- sat                         edge "sat"         runs [(2, 1)]
           '- ran                         edge "ran"         runs [(7, 1)]

    Siblings begin with different tokens, edges other than a root's are never empty, and the runs of
    a node hold as many slots as its edge has tokens, in the same order.

    If "the cat" is a public prefix, what tenants add to it stands below roots of their own there,
    which have their namespaces as keys (`RadixTree.root_below`):

        root of namespace "public"        edge b""
        '- the cat                        edge "the cat"
           |- root of "A/0f3c"            edge b""
           |  '- sat                      edge "sat"
           '- root of "B/77e1"            edge b""
              '- sat                      edge "sat"
    """

    __slots__ = (
        "before",
        "blocks",
        "born",
        "children",
        "edge",
        "expired",
        "hits",
        "key",
        "last_use",
        "owner",
        "parent",
        "pins",
        "place",
        "queue",
        "runs",
        "seen",
        "serial",
        "start",
        "ticket",
        "uses",
    )

    def __init__(
        self, key: int | str, edge: bytes, runs: list[Run], parent: Node | None, serial: int
    ) -> None:
        # in the parent's children, or among the roots: the first token id; of a root the namespace
        self.key = key
        self.edge = edge
        self.runs = runs
        self.parent = parent
        self.children: dict[int | str, Node] = {}
        # a tenant, or "" without one
        self.owner: str = parent.owner if parent is not None and edge else owner_of(str(key))
        self.serial = serial  # order of creation
        self.born = serial  # order of publication: both halves of a split keep it
        self.start = 0  # tokens from the root to the beginning of the edge
        self.blocks: list[int] = []  # see `block_watch`; empty where nobody watches
        self.expired = False  # a pin held it, and its time is over
        self.pins = 0  # leases that end here + children with pins > 0
        # logical time of the latest release of a lease that ended here, or in a child since gone
        self.last_use = 0
        self.hits = 0  # leases that found something and began here, or in a child since gone
        self.uses = 0  # leases that ended here, or in a child since gone, and were released
        self.before = 0  # uses of what this continues, or of the same before it was evicted
        # The policy's own: its place in a line while it stands in one, which line, its number in
        # it, and how many uses were taken into account.
        self.place: tuple[int | tuple[int, ...], int, Node] | None = None
        self.queue = 0
        self.ticket = 0
        self.seen = 0

    @property
    def num_tokens(self) -> int:
        return len(self.edge) // TOKEN_BYTES

    @property
    def is_root(self) -> bool:
        """Whether a namespace begins here."""
        return not self.edge


class Point(NamedTuple):
    """A place in the tree: behind the first `offset` tokens of `node`'s edge, `depth` tokens from
    the root.
    """

    node: Node
    offset: int
    depth: int


class RadixTree:
    """Every published token sequence, by namespace."""

    def __init__(self) -> None:
        self.roots: dict[str, Node] = {}  # by namespace, without those below public tokens
        self._roots_below: dict[Node, None] = {}  # these, whether or not they can be found
        self.detached: dict[Node, None] = {}  # the tops of subtrees that cannot be found any more
        self.num_tokens = 0
        self.tokens_of: Counter[str] = Counter()  # of them, by owner
        self.num_nodes = 0  # roots not counted
        self.watch: BlockWatch | None = None  # told of every change; set before the first one
        self._serial = 0

    def number_behind(self, serial: int) -> None:
        """Serial numbers of nodes begin behind `serial`. To be called while there are none."""
        assert not self.roots, "nodes have numbers already"
        self._serial = serial

    def _node(self, key: int | str, edge: bytes, runs: list[Run], parent: Node | None) -> Node:
        self._serial += 1
        return Node(key, edge, runs, parent, self._serial)

    def root(self, namespace: str) -> Node:
        """The root of a namespace, made if it is new."""
        root = self.roots.get(namespace)
        if root is None:
            root = self.roots[namespace] = self._node(namespace, b"", [], None)
        return root

    def root_below(self, node: Node, namespace: str) -> Node:
        """The root of a namespace below `node`, in which public tokens end; made if it is new."""
        root = node.children.get(namespace)
        if root is None:
            root = node.children[namespace] = self._node(namespace, b"", [], node)
            root.start = node.start + node.num_tokens
            self._roots_below[root] = None
        return root

    def all_roots(self) -> list[Node]:
        """Every root that can be found; those below public tokens stand behind the others."""
        return [*self.roots.values(), *filter(self.is_findable, self._roots_below)]

    def find(self, prefix: Prefix) -> Point | None:
        """How far `prefix` agrees with the tree; None if its namespace has no root."""
        root = self.roots.get(prefix.namespace_at(0))
        return None if root is None else self.walk(root, 0, prefix)

    def walk(self, node: Node, depth: int, prefix: Prefix) -> Point:
        """How far `prefix` agrees with the tree below `node`, which ends `depth` tokens from the
        beginning.

        Changes nothing. Costs one dict lookup and one memcmp per edge.
        """
        if depth < prefix.num_public:
            point = self._walk(node, depth, prefix.tokens[: prefix.num_public * TOKEN_BYTES])
            node, depth = point.node, point.depth
            if depth < prefix.num_public or point.offset < node.num_tokens:
                return point
        if depth == prefix.num_public and not node.is_root:
            below = node.children.get(prefix.namespace)
            if below is None:
                return Point(node, node.num_tokens, depth)
            node = below
        return self._walk(node, depth, prefix.tokens)

    def _walk(self, node: Node, depth: int, tokens: bytes) -> Point:
        """The same within one namespace."""
        token_ids = memoryview(tokens).cast("i")
        num_tokens = len(token_ids)
        while depth < num_tokens:
            child = node.children.get(token_ids[depth])
            if child is None:
                break
            edge = child.edge
            if not tokens.startswith(edge, depth * TOKEN_BYTES):
                offset = _shared_tokens(edge, tokens, depth)
                return Point(child, offset, depth + offset)
            node = child
            depth += len(edge) // TOKEN_BYTES
        return Point(node, node.num_tokens, depth)

    def continuation(self, prefix: Prefix, most: int) -> bytes:
        """At most `most` tokens that stand behind all of `prefix` in its namespace; where the tree
        branches, those that were published last. Empty if `prefix` is not there, or ends there.

        Costs what `find` does.
        """
        point = self.find(prefix)
        if point is None or point.depth < prefix.num_tokens:
            return b""
        node, found = point.node, point.node.edge[point.offset * TOKEN_BYTES :]
        while len(found) < most * TOKEN_BYTES:
            # The roots of other namespaces may stand here, too, if public tokens end here.
            children = [child for child in node.children.values() if not child.is_root]
            if not children:
                break
            node = max(children, key=lambda child: child.born)
            found += node.edge
        return found[: most * TOKEN_BYTES]

    def split(self, point: Point) -> Node:
        """The node that ends at `point`, cut off the upper end of `point.node` if the point lies
        inside its edge.

        The node that was there stays the lower part, so leases that end in it and its children need
        no change. A split is not undone later: the halves differ in recency, and the lower one may
        go while the upper one stays. (The upper one starts with no `last_use` and no `uses` of its
        own: it inherits the lower one's before its turn can come.)
        """
        lower, offset, _ = point
        if offset == lower.num_tokens:
            return lower
        assert lower.parent is not None, "a top root has no inside"
        assert 0 < offset < lower.num_tokens, "a point inside an edge has tokens on both sides"
        head, tail = split_runs(lower.runs, offset)
        cut = offset * TOKEN_BYTES
        upper = self._node(lower.key, lower.edge[:cut], head, lower.parent)
        upper.pins = 1 if lower.pins else 0
        upper.born, upper.before = lower.born, lower.before
        upper.start, upper.expired = lower.start, lower.expired
        lower.start += offset
        lower.parent.children[upper.key] = upper
        lower.edge, lower.runs, lower.parent = lower.edge[cut:], tail, upper
        lower.key = _first_token(lower.edge)
        upper.children[lower.key] = lower
        self.num_nodes += 1
        if self.watch is not None:
            self.watch.split(upper, lower)
        return upper

    def insert(self, parent: Node, edge: bytes, runs: list[Run]) -> Node:
        """A new leaf below `parent`; the tree owns the slots of `runs` from now on."""
        key = _first_token(edge)
        assert key not in parent.children, (
            "walk() before insert(): a child begins with the same token"
        )
        leaf = parent.children[key] = self._node(key, edge, runs, parent)
        leaf.start = parent.start + parent.num_tokens
        self.num_nodes += 1
        self._count(leaf, leaf.num_tokens)
        if self.watch is not None:
            self.watch.grown(leaf)
        return leaf

    def extend(self, leaf: Node, edge: bytes, runs: list[Run]) -> None:
        """Add tokens and their slots at the end of a leaf, so that a growing sequence stays one
        node; O(len(leaf.edge)).
        """
        assert leaf.edge, "a root cannot be extended"
        assert not leaf.children, "only a leaf can be extended"
        leaf.edge += edge
        append_runs(leaf.runs, runs)
        self._count(leaf, len(edge) // TOKEN_BYTES)
        if self.watch is not None:
            self.watch.grown(leaf)

    def truncate(self, leaf: Node, num_tokens: int) -> list[Run]:
        """Drop all but the first `num_tokens` (at least one) tokens of a leaf; their slots are the
        caller's.
        """
        assert not leaf.children, "only a leaf can be truncated"
        assert 0 < num_tokens < leaf.num_tokens, "a truncated leaf keeps some of its tokens"
        leaf.runs, dropped = split_runs(leaf.runs, num_tokens)
        self._count(leaf, num_tokens - leaf.num_tokens)
        leaf.edge = leaf.edge[: num_tokens * TOKEN_BYTES]
        if self.watch is not None:
            self.watch.shrunk(leaf)
        return dropped

    def remove(self, leaf: Node) -> list[Run]:
        """Take a leaf, or a root without children, out of the tree; its slots are the caller's."""
        assert not leaf.children, "only a leaf can be removed"
        assert not leaf.pins, "a pinned node cannot be removed"
        if leaf in self.detached:
            del self.detached[leaf]
        elif leaf.parent is None:
            del self.roots[str(leaf.key)]
        else:
            del leaf.parent.children[leaf.key]
        self._roots_below.pop(leaf, None)
        if not leaf.is_root:
            self.num_nodes -= 1
            self._count(leaf, -leaf.num_tokens)
        if self.watch is not None:
            self.watch.removed(leaf)
        return leaf.runs

    def _count(self, leaf: Node, num_tokens: int) -> None:
        """Add to the totals; an owner of nothing is forgotten."""
        self.num_tokens += num_tokens
        self.tokens_of[leaf.owner] += num_tokens
        if not self.tokens_of[leaf.owner]:
            del self.tokens_of[leaf.owner]

    def detach(self, node: Node) -> None:
        """Make a node (a root, too) and everything below it unfindable; O(1), or O(nodes)
        with a watch.

        The subtree keeps its slots and its pins. It goes on pinning its parent, so leases in it
        still find their whole path. Nothing is added to it; its nodes are removed as leaves, one
        by one.
        """
        if node.parent is None:
            del self.roots[str(node.key)]
        else:
            del node.parent.children[node.key]
        self.detached[node] = None
        if self.watch is not None:
            self.watch.detached(node)

    def has(self, node: Node) -> bool:
        """Whether `node` is there, be it in a subtree that was detached."""
        if node in self.detached:
            return True
        if node.parent is None:
            return self.roots.get(str(node.key)) is node
        return node.parent.children.get(node.key) is node

    def is_findable(self, node: Node) -> bool:
        """Whether `node` is there and not detached; O(depth)."""
        above: Node | None = node
        while above is not None:
            if above in self.detached or not self.has(above):
                return False
            above = above.parent
        return True

    def nodes(self) -> Iterator[Node]:
        """Every node, roots and detached ones included, parents before children; O(nodes)."""
        stack = [*self.roots.values(), *self.detached]
        while stack:
            node = stack.pop()
            yield node
            stack.extend(node.children.values())

    def check(self) -> None:
        """Assert the shape: links, keys, edges, runs and totals; O(nodes)."""
        nodes = list(self.nodes())
        for node in nodes:
            assert len(node.edge) % TOKEN_BYTES == 0, "an edge holds half a token"
            assert node.num_tokens == sum(length for _, length in node.runs), (
                "a node has a slot for every token"
            )
            assert all(length > 0 for _, length in node.runs), "a node owns an empty run"
            for key, child in node.children.items():
                assert child.start == node.start + node.num_tokens, "a node starts elsewhere"
                assert child.parent is node, "a child does not know its parent"
                assert child.is_root == (child in self._roots_below), "an edge is empty"
                assert key == child.key, "a child stands under another key"
                assert child.is_root or key == _first_token(child.edge), (
                    "a child stands under another's first token"
                )
                assert not (child.is_root and node.is_root), "a root stands below a root"
        for namespace, root in self.roots.items():
            assert (root.key, root.edge, root.parent) == (namespace, b"", None), (
                "a root is not a root"
            )
        num_roots = sum(node.is_root for node in nodes)
        assert self._roots_below.keys() <= set(nodes), "a root is not where it was made"
        assert self.num_nodes == len(nodes) - num_roots, "the count of nodes is off"
        counted: Counter[str] = Counter()
        for node in nodes:
            counted[node.owner] += node.num_tokens
        assert self.tokens_of == +counted, "an owner's count of tokens is off"
        assert self.num_tokens == counted.total(), "the count of tokens is off"


def path_runs(node: Node, top: Node | None) -> list[Run]:
    """The slot runs from below `top` (None: from the root) down to the end of `node`, in the order
    of positions.
    """
    path: list[list[Run]] = []
    above: Node | None = node
    while above is not None and above is not top:
        path.append(above.runs)
        above = above.parent
    return [run for runs in reversed(path) for run in runs]


def root_of(node: Node) -> Node:
    """The root of the namespace in which `node` is; O(depth)."""
    while not node.is_root:
        assert node.parent is not None, "a node without a parent is a root"
        node = node.parent
    return node


def path_prefix(node: Node) -> Prefix:
    """All tokens from position 0 down to the end of `node`; O(tokens)."""
    root, edges = root_of(node), [node.edge]
    while node.parent is not None:
        node = node.parent
        edges.append(node.edge)
    return Prefix(str(root.key), b"".join(reversed(edges)), num_public=root.start)


def _first_token(edge: bytes) -> int:
    return memoryview(edge).cast("i")[0]


def _shared_tokens(edge: bytes, tokens: bytes, depth: int) -> int:
    """How many tokens of `edge` agree with those of `tokens` from `depth` on. The first one must be
    known to agree.

    Bisection over slices: each step compares with memcmp what the steps before left open, so the
    bytes compared add up to about the edge's length, in log2(tokens of the edge) steps.
    """
    low, high = 1, min(len(edge) // TOKEN_BYTES, len(tokens) // TOKEN_BYTES - depth)
    while low < high:
        middle = (low + high + 1) // 2
        if tokens.startswith(
            edge[low * TOKEN_BYTES : middle * TOKEN_BYTES], (depth + low) * TOKEN_BYTES
        ):
            low = middle
        else:
            high = middle - 1
    return low
