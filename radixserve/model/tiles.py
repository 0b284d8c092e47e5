"""Who computes what in one step of CPU attention: work items over tiles of 64 positions.

Decides about speed only; the kernel's numbers do not depend on it. Rows of a long chunk are cut into blocks that walk
all their tiles. Rows of short chunks (decode) share: wherever several sequences have the same slots in a tile, one item
loads it for all of them; their contributions are stored per tile and combined afterwards.

    sequence A: tiles 0 1 2 3 4'        items: (0-3; rows of A, B), (4; row of C) ...
    sequence B: tiles 0 1 2 3 5'               (4'; row of A), (5'; row of B)
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

TILE = 64
_SHORT = 16  # rows up to which a chunk's tiles are shared with other sequences
_RUN = 4  # tiles per shared item: small enough that the items of one long context spread over the cores
_FACTORS = np.random.default_rng(0).integers(1, 2**62, TILE, np.int64)  # of the digest that finds equal tiles
_BLOCK = 96  # query rows times heads per key head that one loaded tile of a long chunk serves

Ints = npt.NDArray[np.int32]
Longs = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Spans:
    """A step's chunks as vectors: rows [row, row + count) hold positions [start, start + count), slots from begin."""

    row: Longs
    count: Longs
    begin: Longs
    start: Longs

    def __len__(self) -> int:
        return len(self.row)

    @property
    def columns(self) -> tuple[Longs, Longs, Longs, Longs]:
        return self.row, self.count, self.begin, self.start

    @property
    def stop(self) -> Longs:
        return self.start + self.count

    def where(self, mask: npt.NDArray[np.bool_]) -> Spans:
        return Spans(self.row[mask], self.count[mask], self.begin[mask], self.start[mask])


@dataclass(frozen=True)
class TileWork:
    """Items as columns, the costliest first, and where each row's contributions go."""

    items: Longs  # [items, 6]: first and number in `rows`, table begin, first tile, end tile, end position
    rows: Ints  # rows of the items, one after the other
    partial_begin: Longs  # [rows of the step]: index of tile 0's contribution; -1: the row's own item combines
    num_partials: int
    max_rows: int

    @classmethod
    def of(cls, spans: Spans, table: Ints, group: int) -> TileWork:
        """`group` is the number of query heads per key head. Cost: O(slots in the table of short chunks)."""
        short = spans.count <= _SHORT
        split = spans.where(short)
        items, rows = _joined([_blocks(spans.where(~short), group), _shared(split, table), _tails(split)])
        begin, num_partials = _partials(split, int(spans.count.sum()))
        order = np.argsort(-items[:, 1] * (items[:, 4] - items[:, 3]), kind="stable")
        return cls(np.ascontiguousarray(items[order]), rows, begin, num_partials, int(items[:, 1].max(initial=0)))

    @property
    def split_rows(self) -> Longs:
        """Rows whose contributions are combined at the end."""
        return np.flatnonzero(self.partial_begin >= 0)

    @property
    def num_tiles(self) -> int:
        """Tiles that are loaded, per key head."""
        return int((self.items[:, 4] - self.items[:, 3]).sum())


_Items = tuple[Longs, Ints]  # items as in TileWork, their rows


def _joined(parts: list[_Items]) -> _Items:
    """Items of several makers behind each other, with their places in the common list of rows."""
    first = 0
    for items, rows in parts:
        items[:, 0] += first
        first += len(rows)
    return np.concatenate([items for items, _ in parts]), np.concatenate([rows for _, rows in parts])


def _item_columns(rows_each: Longs, *columns: Longs) -> Longs:
    first = np.cumsum(rows_each) - rows_each
    return np.stack([first, rows_each, *columns], 1).astype(np.int64)


def _ranges(first: Longs, count: Longs) -> Ints:
    """first[0], first[0] + 1, ... (count[0] of them), first[1], ..."""
    ends = np.cumsum(count)
    return (np.arange(count.sum()) - np.repeat(ends - count - first, count)).astype(np.int32)


def _blocks(spans: Spans, group: int) -> _Items:
    """Blocks of rows of long chunks: each walks all tiles that its last row sees."""
    size = max(8, _BLOCK // group)
    if spans.count.sum() < 4 * size:  # fewer blocks than keep the cores busy
        size = max(8, size // 2)
    blocks = -(-spans.count // size)
    owner = np.repeat(np.arange(len(spans)), blocks)
    offset = _ranges(np.zeros_like(blocks), blocks).astype(np.int64) * size
    count = np.minimum(size, spans.count[owner] - offset)
    stop = spans.start[owner] + offset + count
    items = _item_columns(count, spans.begin[owner], np.zeros_like(stop), -(-stop // TILE), stop)
    return items, _ranges(spans.row[owner] + offset, count)


def _full_tiles(spans: Spans) -> Longs:
    """Tiles that every row of a span sees whole."""
    return (spans.start + 1) // TILE


def _shared(spans: Spans, table: Ints) -> _Items:
    """Runs of whole tiles, each for all sequences that have the same slots there."""
    full = _full_tiles(spans)
    if full.max(initial=0) == 0:
        return np.zeros((0, 6), np.int64), np.zeros(0, np.int32)
    leader = _leaders(spans, table, full)  # [sequences, tiles]
    changes = np.any(leader[:, 1:] != leader[:, :-1], axis=0)
    since = np.concatenate([[0], np.flatnonzero(changes) + 1, [leader.shape[1]]])
    bounds = [start for a, b in pairwise(since) for start in range(a, b, _RUN)]
    first = np.array(bounds, np.int64)
    end = np.append(first[1:], leader.shape[1])
    run, member = np.nonzero(leader[:, first].T >= 0)
    lead = leader[member, first[run]]
    order = np.lexsort((member, lead, run))
    run, member, lead = run[order], member[order], lead[order]
    starts = np.flatnonzero(np.concatenate([[True], (np.diff(run) != 0) | (np.diff(lead) != 0)]))
    counts = np.add.reduceat(spans.count[member], starts)
    tiles = (first[run[starts]], end[run[starts]])
    items = _item_columns(counts, spans.begin[lead[starts]], *tiles, tiles[1] * TILE)
    return items, _ranges(spans.row[member], spans.count[member])


def _leaders(spans: Spans, table: Ints, full: Longs) -> Longs:
    """[sequences, tiles]: the first sequence with the same slots in that tile; -1 beyond a sequence's whole tiles."""
    tiles = int(full.max())
    inside = np.arange(tiles) < full[:, None]
    where = np.minimum(spans.begin[:, None] + np.arange(tiles * TILE), len(table) - 1)
    slots = table[where].reshape(len(spans), tiles, TILE)
    digest = np.where(inside, slots @ _FACTORS, 0)  # equal slots have equal digests; wraps around
    order = np.lexsort((np.broadcast_to(np.arange(len(spans))[:, None], digest.shape), digest), axis=0)
    in_order = np.take_along_axis(digest, order, 0)
    fresh = np.concatenate([np.ones((1, tiles), bool), in_order[1:] != in_order[:-1]])
    place = np.maximum.accumulate(np.where(fresh, np.arange(len(spans))[:, None], 0), axis=0)
    leader = np.empty_like(order)
    np.put_along_axis(leader, order, np.take_along_axis(order, place, 0), 0)
    same = (slots == slots[leader, np.arange(tiles)]).all(-1) & inside[leader, np.arange(tiles)]
    return np.where(inside, np.where(same, leader, np.arange(len(spans))[:, None]), -1)


def _tails(spans: Spans) -> _Items:
    """What lies behind a short chunk's whole tiles: its own."""
    full, end = _full_tiles(spans), -(-spans.stop // TILE)
    has = end > full
    own = spans.where(has)
    return _item_columns(own.count, own.begin, full[has], end[has], own.stop), _ranges(own.row, own.count)


def _partials(spans: Spans, num_rows: int) -> tuple[Longs, int]:
    begin = np.full(num_rows, -1, np.int64)
    tiles = np.repeat(-(-spans.stop // TILE), spans.count)
    begin[_ranges(spans.row, spans.count)] = np.cumsum(tiles) - tiles
    return begin, int(tiles.sum())
