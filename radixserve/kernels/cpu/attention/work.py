"""Divides one step of CPU attention into work items over tiles of 64 positions.

This decides about speed only; the kernel's numbers do not depend on it. Rows of a long chunk are
cut into blocks, and each block walks all its tiles. Rows of short chunks (decode) share tiles:
where several sequences have the same slots in a group of tiles or in a tile, one item loads it once
for all of them; their contributions are stored, one for each row and item, and combined afterwards.

    sequence A: tiles 0 1 2 3 4 5'      items: (0-3; rows of A, B), (4; rows of A, B),
    sequence B: tiles 0 1 2 3 4 5"             (5'; row of A), (5"; row of B)

Layers with a sliding window have work of their own, which leaves out tiles before all windows of an
item's rows. Every row of an item sees some position of each of its tiles, except in long chunks
(windows of later rows begin later) and in tiles that the first rows of a chunk do not reach.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from radixserve.kernels.arrays import Bools, Ints, Longs
from radixserve.kernels.step import Spans

TILE = 64
GROUP = 4
"""Tiles whose contributions are combined among themselves first; groups begin at absolute multiples
of it.
"""

NO_WINDOW = 1 << 40
"""A window that is longer than any sequence."""

_SHORT = 16  # rows up to which a chunk is short: its tiles are shared with other sequences
# Weights of the digest that finds equal tiles.
_FACTORS = np.random.default_rng(0).integers(1, 2**62, TILE, np.int64)
_BLOCK = 96  # query rows, times heads per key head, that share one load of a long chunk's tile


ITEM = np.dtype(
    [
        ("first", np.int64),  # index in `TileWork.rows` of its first row
        ("num_rows", np.int64),
        ("sequence", np.int64),  # whose slots it loads, among the short or the long chunks
        ("begin", np.int64),  # index in the table of the slot of position 0
        ("tile", np.int64),  # its tiles are [tile, end_tile)
        ("end_tile", np.int64),
        ("stop", np.int64),  # the position behind the last one that it loads
        ("stores", np.int64),  # 1: it stores contributions; 0: it finishes its rows
    ]
)
"""The tiles of some positions for some rows, which a thread computes at one key head at a time."""

SPLIT_ROW = np.dtype([("row", np.int64), ("begin", np.int64), ("end", np.int64)])
"""A row whose contributions are stored, at the places [begin, end)."""

Records = npt.NDArray[np.void]


@dataclass(frozen=True)
class TileWork:
    """The items, the most expensive first, and where each row's contributions are stored."""

    items: Records  # [items] of ITEM
    rows: Ints  # rows of the items, one item after the other
    # for each entry of `rows`: index of the contribution that the item stores, or the row itself
    # if the item finishes it
    places: Ints
    split_rows: Records  # [rows whose contributions are stored] of SPLIT_ROW
    opens: Ints  # [contributions]: whether it is the first of its group
    max_rows: int  # of one item

    @classmethod
    def of(cls, spans: Spans, leaders: Longs, group: int, window: int | None = None) -> TileWork:
        """The work of a step for layers with that window, or with none. `leaders` are those of
        `leaders_of`; `group` is the number of query heads per key head. Cost: O(tiles of short
        chunks).
        """
        window, short = window or NO_WINDOW, _is_short(spans)
        split = _Split.of(spans.where(short), leaders, window)
        parts = [_blocks(spans.where(~short), group, window), split.items()]
        items, rows, places = _joined(parts)
        order = np.argsort(-items["num_rows"] * _num_tiles(items), kind="stable")
        most = int(items["num_rows"].max(initial=0))
        return cls(items[order], rows, places, split.rows(), split.opens(), most)

    @property
    def num_tiles(self) -> int:
        """How many tiles the items load, per key head."""
        return int(_num_tiles(self.items).sum())

    def move_on(self, spans: Spans) -> None:
        """Make this the work of another step, with the same `kind_of_step`."""
        sequence, end = self.items["sequence"], self.items["end_tile"] * TILE
        self.items["begin"] = spans.begin[sequence]
        self.items["stop"] = np.minimum(end, spans.stop[sequence])


def kind_of_step(spans: Spans, leaders: Longs, window: int | None = None) -> bytes | None:
    """Steps for which this is equal have the same work, except for places in the table and where
    items stop. None for a step with chunks of several rows: those have work of their own.

    Decode steps follow each other, and in 63 of 64 a sequence stays in its tile.
    """
    if (spans.count != 1).any():
        return None
    tiles = _first_tiles(spans.start, window or NO_WINDOW), spans.start // TILE
    return b"".join(each.tobytes() for each in (spans.row, *tiles, leaders))


_Items = tuple[Records, Ints, Ints]  # `items`, `rows` and `places` as in `TileWork`


def _num_tiles(items: Records) -> Longs:
    """How many tiles each item loads, per key head."""
    tiles: Longs = items["end_tile"] - items["tile"]
    return tiles


def _joined(parts: list[_Items]) -> _Items:
    """The items of several makers in one list, their row indices shifted to the common list of
    rows.
    """
    first = 0
    for items, rows, _ in parts:
        items["first"] += first
        first += len(rows)
    columns = list(zip(*parts, strict=True))
    return np.concatenate(columns[0]), np.concatenate(columns[1]), np.concatenate(columns[2])


def _items(num_rows: Longs, **columns: Longs | int) -> Records:
    """Items from the columns of ITEM. The rows of an item follow those of the item before."""
    return _records(ITEM, first=np.cumsum(num_rows) - num_rows, num_rows=num_rows, **columns)


def _records(dtype: np.dtype[np.void], **columns: Longs | int) -> Records:
    """Records from all their columns, of which a number stands for itself in every record."""
    length = max(len(column) for column in columns.values() if not isinstance(column, int))
    records = np.empty(length, dtype)
    assert columns.keys() == set(dtype.names or ()), "every field gets its column"
    for name, column in columns.items():
        records[name] = column
    return records


def _ranges(first: Longs, count: Longs) -> Ints:
    """Ranges one after the other: first[0], first[0] + 1, ... (count[0] numbers), first[1], ...

    first 5 9, count 3 2  ->  5 6 7 9 10
    """
    ends = np.cumsum(count)
    return (np.arange(count.sum()) - np.repeat(ends - count - first, count)).astype(np.int32)


def _is_short(spans: Spans) -> Bools:
    short: Bools = spans.count <= _SHORT
    return short


def _first_tiles(positions: Longs, window: int) -> Longs:
    """The first tile that a row at each position sees."""
    tiles: Longs = np.maximum(0, positions + (1 - window)) // TILE
    return tiles


def _blocks(spans: Spans, group: int, window: int) -> _Items:
    """Long chunks, cut into blocks of rows: one item each, which walks all tiles from the first one
    that its first row sees to the last one that its last row sees.
    """
    size = max(8, _BLOCK // group)
    if spans.count.sum() < 4 * size:  # fewer blocks than keep the cores busy
        size = max(8, size // 2)
    blocks = -(-spans.count // size)
    owner = np.repeat(np.arange(len(spans)), blocks)
    offset = _ranges(np.zeros_like(blocks), blocks).astype(np.int64) * size
    count = np.minimum(size, spans.count[owner] - offset)
    start = spans.start[owner] + offset
    stop, tile = start + count, _first_tiles(start, window)
    rows = _ranges(spans.row[owner] + offset, count)
    begin, end_tile = spans.begin[owner], -(-stop // TILE)
    items = _items(
        count, sequence=owner, begin=begin, tile=tile, end_tile=end_tile, stop=stop, stores=0
    )
    return items, rows, rows


@dataclass(frozen=True)
class _Split:
    """Short chunks. A row stores one contribution for a whole group of tiles if all tiles of the
    group have the same leader and every row of its chunk sees all of them, else one for each tile.

    In the picture at the top (sequences 0 and 1, one row each, tile 5 not full) the arrays are:

        tile               0  1  2  3     4  5  6  7
        leader of 0        0  0  0  0     0  0  0  0
        leader of 1        0  0  0  0     0  1  1  1
        whole              1  1  1  1     0  0  0  0     tiles 0-3 are one group with one leader
        stored             1  0  0  0     1  1  0  0     each sequence stores three contributions
        before             0  1  1  1  1  2  3  3  3     how many of these begin before a tile

    `first` is 0 and 3: sequence 0 stores to places 0, 1, 2 and sequence 1 to places 3, 4, 5.
    """

    spans: Spans
    window: int
    leader: Longs  # [sequences, tiles]: the sequence whose slots the item loads, maybe itself
    whole: Bools  # [sequences, tiles]: whether one item covers the tile's whole group
    stored: Bools  # [sequences, tiles]: whether a contribution begins there
    before: Longs  # [sequences, tiles + 1]: how many contributions begin before a tile
    owner: Longs  # [rows]: the sequence of each row
    position: Longs  # [rows]
    first: Longs  # [rows]: index of the row's first contribution

    @classmethod
    def of(cls, spans: Spans, leader: Longs, window: int) -> _Split:
        # `end` is the number of tiles of each sequence; arrays have tiles for whole groups.
        end, itself = -(-spans.stop // TILE), np.arange(len(spans))
        earliest, latest = (
            _first_tiles(position, window)[:, None] for position in (spans.start, spans.stop - 1)
        )
        grouped = leader.reshape(len(spans), leader.shape[1] // GROUP, GROUP)
        same = ((grouped == grouped[:, :, :1]) & (grouped >= 0)).all(-1)
        one = same & (np.arange(grouped.shape[1]) * GROUP >= latest)
        whole, tile = np.repeat(one, GROUP, axis=1), np.arange(leader.shape[1])
        stored = (tile >= earliest) & (tile < end[:, None]) & (~whole | (tile % GROUP == 0))
        before = np.cumsum(np.pad(stored, ((0, 0), (1, 0))), axis=1)
        owner = np.repeat(itself, spans.count)
        number = before[owner, -1]  # contributions of each row: all those of its sequence
        leader = np.where(leader < 0, itself[:, None], leader)
        position = _ranges(spans.start, spans.count).astype(np.int64)
        first = np.cumsum(number) - number
        return cls(spans, window, leader, whole, stored, before, owner, position, first)

    def items(self) -> _Items:
        """One item for all sequences that have the same leader in the same tiles. It computes one
        contribution for each of their rows that sees the tiles.

        Every contribution that begins somewhere is a triple (first tile, end tile, leader) of one
        sequence. Sorted by the triple, sequences that share an item stand side by side, and an item
        begins where the triple changes. In the picture at the top:

            (tile, end, lead)    0 4 0   0 4 0   4 5 0   4 5 0   5 6 0   5 6 1
            member                   0       1       0       1       0       1
            starts                   ^               ^               ^       ^
        """
        member, tile = np.nonzero(self.stored)
        end, lead = tile + np.where(self.whole[member, tile], GROUP, 1), self.leader[member, tile]
        order = np.lexsort((member, lead, end, tile))
        member, tile, end, lead = member[order], tile[order], end[order], lead[order]
        count = self._seeing(member, tile)
        rows, places = self._rows_and_places(member, tile, count)
        starts = np.flatnonzero(np.any(np.diff([tile, end, lead], axis=1, prepend=-1), axis=0))
        counts = np.add.reduceat(count, starts) if len(starts) else starts
        tile, end, lead = tile[starts], end[starts], lead[starts]
        begin, stop = self.spans.begin[lead], np.minimum(end * TILE, self.spans.stop[lead])
        items = _items(
            counts, sequence=lead, begin=begin, tile=tile, end_tile=end, stop=stop, stores=1
        )
        return items, rows, places

    def _seeing(self, member: Longs, tile: Longs) -> Longs:
        """How many rows of each (sequence, tile) pair have windows that begin before the tile's
        end: the first ones.
        """
        edges = (tile + 1) * TILE + self.window - 1
        rows: Longs = np.minimum(edges - self.spans.start[member], self.spans.count[member])
        return rows

    def _rows_and_places(self, member: Longs, tile: Longs, count: Longs) -> tuple[Ints, Ints]:
        """The first `count` rows of each (sequence, tile) pair, one pair after the other, and the
        index at which each row stores its contribution of that tile.
        """
        # Index of each row among the rows of short chunks, as in `owner` and `first`.
        index = _ranges((np.cumsum(self.spans.count) - self.spans.count)[member], count)
        places = self.first[index] + self.before[self.owner[index], np.repeat(tile, count)]
        return _ranges(self.spans.row[member], count), places.astype(np.int32)

    def rows(self) -> Records:
        """`TileWork.split_rows`. A row combines the contributions of tiles from the first one that
        it sees to the one of its own position.
        """
        row = _ranges(self.spans.row, self.spans.count).astype(np.int64)
        begin, end = (
            self.first + self.before[self.owner, tile]
            for tile in (_first_tiles(self.position, self.window), self.position // TILE + 1)
        )
        return _records(SPLIT_ROW, row=row, begin=begin, end=end)

    def opens(self) -> Ints:
        """`TileWork.opens`."""
        _, tile = np.nonzero(self.stored[self.owner])
        return np.asarray(tile % GROUP == 0, np.int32)


def leaders_of(spans: Spans, table: Ints) -> Longs:
    """Who shares tiles, among the short chunks of a step, whatever the window: [sequences, tiles],
    with tiles for whole groups. Cost: O(slots in the table of short chunks).
    """
    spans = spans.where(_is_short(spans))
    groups = -(-int(spans.stop.max(initial=0)) // (TILE * GROUP))
    return _leaders(spans, table, groups * GROUP)


def _leaders(spans: Spans, table: Ints, tiles: int) -> Longs:
    """[sequences, tiles]: the first sequence that has the same slots in that tile; -1 for tiles
    that reach behind the first row of the sequence.

    Comparing all pairs of sequences would cost their number squared. Instead each tile column is
    sorted by a digest of the 64 slots, equal digests by sequence; the first of each run of equal
    digests leads the run. A digest that is equal by chance does no harm: the slots themselves are
    compared, and a sequence whose slots differ leads itself. One column:

        sequence      0  1  2  3        sorted (`order`)       1  3  0  2
        digest        7  4  9  4        `fresh`                1  0  1  1
                                        `place`                0  0  2  3
        leader        0  1  2  1        order[place]           1  1  0  2
    """
    inside = np.arange(tiles) < ((spans.start + 1) // TILE)[:, None]
    if len(spans) == 1:
        return np.where(inside, 0, -1)
    where = np.minimum(spans.begin[:, None] + np.arange(tiles * TILE), len(table) - 1)
    slots = table[where].reshape(len(spans), tiles, TILE)
    digest = np.where(inside, slots @ _FACTORS, 0)  # int64 that wraps around
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
