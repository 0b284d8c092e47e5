"""Which whole blocks of tokens a tree holds, told as changes.

A block belongs to the node that has its last token. With blocks of four tokens (letters here):

    root - "abcdef"  has the block abcd
              |- "ghij"  has the block efgh, whose first half is above; "ij" is no whole block yet
              '- "xy"    has the block efxy

The tree itself calls its watch behind each change of its shape. Blocks of what was detached are
removed at once, because nobody can find them, though their slots are given back later.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from radixserve.blocks import BlocksRemoved, BlocksStored, block_hash
from radixserve.prefix import TOKEN_BYTES

if TYPE_CHECKING:
    from radixserve.cache.radix import Node


class BlockWatch:
    """The changes of one tree since they were taken last. `Node.blocks` holds the hashes of the
    blocks that belong to a node: none for one that was detached.
    """

    def __init__(self, block_tokens: int, medium: str) -> None:
        """`medium` says where the K/V of this tree is; see `blocks`."""
        self.block_tokens, self.medium = block_tokens, medium
        self._changes: list[BlocksStored | BlocksRemoved] = []

    def take(self) -> list[BlocksStored | BlocksRemoved]:
        """The changes since the last call, in their order."""
        taken, self._changes = self._changes, []
        return taken

    def grown(self, node: Node) -> None:
        """`node` is new, or has more tokens. O(new tokens), and O(depth) of nodes."""
        first, last = node.start // self.block_tokens + len(node.blocks), self._num_blocks(node)
        if first == last:
            return
        tokens = _tokens_from(node, first * self.block_tokens)[: self._bytes(last - first)]
        namespace, parent = _namespace(node), _block_before(node)
        stored = BlocksStored([], parent, tokens, namespace, self.medium)
        for at in range(0, len(tokens), self._bytes(1)):
            parent = block_hash(parent, namespace, tokens[at : at + self._bytes(1)])
            stored.hashes.append(parent)
        node.blocks += stored.hashes
        self._note_stored(stored)

    def shrunk(self, node: Node) -> None:
        """`node` has fewer tokens than before."""
        kept = self._num_blocks(node) - node.start // self.block_tokens
        self._note_removed(node.blocks[kept:])
        del node.blocks[kept:]

    def removed(self, node: Node) -> None:
        """`node` is gone."""
        self._note_removed(node.blocks)
        node.blocks = []

    def split(self, upper: Node, lower: Node) -> None:
        """`upper` was cut off the upper end of `lower`. Changes nothing that can be found."""
        cut = lower.start // self.block_tokens - upper.start // self.block_tokens
        upper.blocks, lower.blocks = lower.blocks[:cut], lower.blocks[cut:]

    def detached(self, top: Node) -> None:
        """Nothing from `top` on can be found any more. O(nodes below it)."""
        for node in _below(top):
            self.removed(node)

    def _num_blocks(self, node: Node) -> int:
        """Whole blocks from position 0 to the end of `node`."""
        return (node.start + node.num_tokens) // self.block_tokens

    def _bytes(self, num_blocks: int) -> int:
        return num_blocks * self.block_tokens * TOKEN_BYTES

    def _note_stored(self, stored: BlocksStored) -> None:
        last = self._changes[-1] if self._changes else None
        if isinstance(last, BlocksStored) and _goes_on(last, stored):
            last.hashes += stored.hashes
            last.tokens += stored.tokens
        else:
            self._changes.append(stored)

    def _note_removed(self, hashes: list[int]) -> None:
        if not hashes:
            return
        deepest_first = hashes[::-1]
        last = self._changes[-1] if self._changes else None
        if isinstance(last, BlocksRemoved):
            last.hashes += deepest_first
        else:
            self._changes.append(BlocksRemoved(deepest_first, self.medium))


def _goes_on(last: BlocksStored, stored: BlocksStored) -> bool:
    """Whether `stored` follows `last` in its namespace."""
    return (last.hashes[-1], last.namespace) == (stored.parent, stored.namespace)


def _below(top: Node) -> Iterator[Node]:
    """`top` and all nodes below it, each behind those below it."""
    found, stack = [], [top]
    while stack:
        node = stack.pop()
        found.append(node)
        stack.extend(node.children.values())
    return reversed(found)


def _tokens_from(node: Node, position: int) -> bytes:
    """The tokens from `position`, in `node` or above it, to the end of `node`."""
    edges, first = [node.edge], node
    while first.start > position:
        assert first.parent is not None, "positions begin in the first node"
        first = first.parent
        edges.append(first.edge)
    return b"".join(reversed(edges))[(position - first.start) * TOKEN_BYTES :]


def _block_before(node: Node) -> int | None:
    """The hash of the last block up to the end of `node`; None if there is none yet."""
    above: Node | None = node
    while above is not None:
        if above.blocks:
            return above.blocks[-1]
        above = above.parent
    return None


def _namespace(node: Node) -> str:
    while not node.is_root:
        assert node.parent is not None, "a node without a parent is a root"
        node = node.parent
    return str(node.key)
