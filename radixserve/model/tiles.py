"""Who computes what in one step of CPU attention: work items over tiles of 64 positions.

Decides about speed only; the kernel's numbers do not depend on it. Rows of a long chunk are cut
into blocks that walk all their tiles. Rows of short chunks (decode) share: wherever several
sequences have the same slots in a group of tiles or in a tile, one item loads it for all of them;
their contributions are stored, one per item, and combined afterwards.

    sequence A: tiles 0 1 2 3 4 5'      items: (0-3; rows of A, B), (4; rows of A, B),
    sequence B: tiles 0 1 2 3 4 5"             (5'; row of A), (5"; row of B)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

TILE = 64
GROUP = 4
"""Tiles whose contributions are combined among themselves first, at absolute multiples."""

_SHORT = 16  # rows up to which a chunk's tiles are shared with other sequences
_FACTORS = np.random.default_rng(0).integers(
    1, 2**62, TILE, np.int64
)  # of the digest that finds equal tiles
_BLOCK = 96  # query rows times heads per key head that one loaded tile of a long chunk serves

Ints = npt.NDArray[np.int32]
Longs = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Spans:
    """A step's chunks as vectors: rows [row, row + count) hold positions [start, start + count),
    slots from begin.
    """

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

    def where(self, mask: Bools) -> Spans:
        return Spans(self.row[mask], self.count[mask], self.begin[mask], self.start[mask])


@dataclass(frozen=True)
class TileWork:
    """Items as columns, the costliest first, and where each row's contributions go."""

    # [items, 7]: first and number in `rows`, table begin, first tile, end tile, end position,
    # stores
    items: Longs
    rows: Ints  # rows of the items, one after the other
    # of these rows: where the item stores its contribution; the row itself if it finishes the row
    places: Ints
    # [rows whose contributions are stored, 3]: row, its first place, the end of its places
    split_rows: Longs
    opens: Ints  # [places]: whether the contribution is the first of its group
    max_rows: int

    @classmethod
    def of(cls, spans: Spans, table: Ints, group: int) -> TileWork:
        """`group` is the number of query heads per key head. Cost: O(slots in the table of short
        chunks).
        """
        short = spans.count <= _SHORT
        split = _Split.of(spans.where(short), table)
        parts = [_blocks(spans.where(~short), group), split.items()]
        items, rows, places = _joined(parts)
        order = np.argsort(-items[:, 1] * (items[:, 4] - items[:, 3]), kind="stable")
        items = np.ascontiguousarray(items[order])
        return cls(
            items, rows, places, split.rows(), split.opens(), int(items[:, 1].max(initial=0))
        )

    @property
    def num_tiles(self) -> int:
        """Tiles that are loaded, per key head."""
        return int((self.items[:, 4] - self.items[:, 3]).sum())


_Items = tuple[Longs, Ints, Ints]  # items as in TileWork, their rows, the places of these


def _joined(parts: list[_Items]) -> _Items:
    """Items of several makers behind each other, with their places in the common list of rows."""
    first = 0
    for items, rows, _ in parts:
        items[:, 0] += first
        first += len(rows)
    columns = list(zip(*parts, strict=True))
    return np.concatenate(columns[0]), np.concatenate(columns[1]), np.concatenate(columns[2])


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
    none = np.zeros_like(stop)
    rows = _ranges(spans.row[owner] + offset, count)
    return _item_columns(count, spans.begin[owner], none, -(-stop // TILE), stop, none), rows, rows


@dataclass(frozen=True)
class _Split:
    """Short chunks. A contribution is stored for a whole group of tiles if it has one leader, else
    for each tile.
    """

    spans: Spans
    leader: Longs  # [sequences, tiles]: the sequence whose slots an item loads
    whole: Bools  # [sequences, tiles]: whether the tile is of a whole group
    stored: Bools  # [sequences, tiles]: whether a contribution begins there
    before: Longs  # [sequences, tiles + 1]: contributions before a tile
    owner: Longs  # [rows]: their sequences
    first: Longs  # [rows]: where their contributions begin

    @classmethod
    def of(cls, spans: Spans, table: Ints) -> _Split:
        end, itself = -(-spans.stop // TILE), np.arange(len(spans))
        groups = -(-int(end.max(initial=0)) // GROUP)
        leader = _leaders(spans, table, groups * GROUP)
        grouped = leader.reshape(len(spans), groups, GROUP)
        one = ((grouped == grouped[:, :, :1]) & (grouped >= 0)).all(-1)
        whole, tile = np.repeat(one, GROUP, axis=1), np.arange(groups * GROUP)
        stored = (tile < end[:, None]) & (~whole | (tile % GROUP == 0))
        before = np.cumsum(np.pad(stored, ((0, 0), (1, 0))), axis=1)
        owner = np.repeat(itself, spans.count)
        number = before[owner, -1]
        leader = np.where(leader < 0, itself[:, None], leader)
        return cls(spans, leader, whole, stored, before, owner, np.cumsum(number) - number)

    def items(self) -> _Items:
        """One for all sequences with the same leader in the same tiles: one contribution of each of
        their rows.
        """
        member, tile = np.nonzero(self.stored)
        end, lead = tile + np.where(self.whole[member, tile], GROUP, 1), self.leader[member, tile]
        order = np.lexsort((member, lead, end, tile))
        member, tile, end, lead = member[order], tile[order], end[order], lead[order]
        rows, places = self._rows_and_places(member, tile)
        starts = np.flatnonzero(np.any(np.diff([tile, end, lead], axis=1, prepend=-1), axis=0))
        counts = np.add.reduceat(self.spans.count[member], starts) if len(starts) else starts
        tile, end, lead = tile[starts], end[starts], lead[starts]
        stop = np.minimum(end * TILE, self.spans.stop[lead])
        return (
            _item_columns(counts, self.spans.begin[lead], tile, end, stop, np.ones_like(stop)),
            rows,
            places,
        )

    def _rows_and_places(self, member: Longs, tile: Longs) -> tuple[Ints, Ints]:
        count = self.spans.count
        index = _ranges((np.cumsum(count) - count)[member], count[member])
        places = self.first[index] + self.before[self.owner[index], np.repeat(tile, count[member])]
        return _ranges(self.spans.row[member], count[member]), places.astype(np.int32)

    def rows(self) -> Longs:
        """As in `TileWork`: each row has the tiles up to its own position."""
        row, position = (
            _ranges(column, self.spans.count) for column in (self.spans.row, self.spans.start)
        )
        end = self.first + self.before[self.owner, position // TILE + 1]
        return np.ascontiguousarray(np.stack([row, self.first, end], 1).astype(np.int64))

    def opens(self) -> Ints:
        """As in `TileWork`."""
        _, tile = np.nonzero(self.stored[self.owner])
        return np.asarray(tile % GROUP == 0, np.int32)


def _leaders(spans: Spans, table: Ints, tiles: int) -> Longs:
    """[sequences, tiles]: the first sequence with the same slots in that tile; -1 where not all of
    it is seen.
    """
    inside = np.arange(tiles) < ((spans.start + 1) // TILE)[:, None]
    where = np.minimum(spans.begin[:, None] + np.arange(tiles * TILE), len(table) - 1)
    slots = table[where].reshape(len(spans), tiles, TILE)
    digest = np.where(inside, slots @ _FACTORS, 0)  # equal slots have equal digests; wraps around
    order = np.lexsort(
        (np.broadcast_to(np.arange(len(spans))[:, None], digest.shape), digest), axis=0
    )
    in_order = np.take_along_axis(digest, order, 0)
    fresh = np.concatenate([np.ones((1, tiles), bool), in_order[1:] != in_order[:-1]])
    place = np.maximum.accumulate(np.where(fresh, np.arange(len(spans))[:, None], 0), axis=0)
    leader = np.empty_like(order)
    np.put_along_axis(leader, order, np.take_along_axis(order, place, 0), 0)
    same = (slots == slots[leader, np.arange(tiles)]).all(-1) & inside[leader, np.arange(tiles)]
    return np.where(inside, np.where(same, leader, np.arange(len(spans))[:, None]), -1)
