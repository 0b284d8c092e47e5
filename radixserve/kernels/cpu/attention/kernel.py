"""The CPU attention kernel: exact, aware of grouped queries, reads K/V by slot. Its arithmetic is
that of float32; activations are float32 or bfloat16, and K/V has a type of its own. `amx` and
`pairs` are kernels with the same walk over tiles that multiply in bfloat16. Compiled by numba at
first use.

The context is cut into tiles of 64 positions at absolute multiples of 64. For one query row, a
tile's contribution (largest score, sum of weights, weighted sum of V) depends on that row and that
tile alone. Contributions are combined in the order of the tiles, first within groups of four, which
lie at absolute places too, then group after group. So no chunking, no other sequence of the batch,
no slot, no thread and no sharing of loaded tiles can change a bit; `work` decides only which
thread computes what.

Two contributions, with largest scores p <= p', sums of weights w and w', sums of V v and v',
combine like this, where e is never raised to a power above 0:

    largest score     p'
    sum of weights    w * e**(p - p') + w'
    sum of V          v * e**(p - p') + v'

The result is the sum of V over the sum of weights; a sink adds its weight to that at the very end.
This is the online softmax of Milakov &
Gimelshein 2018 (arXiv:1805.02867).

For one item a thread walks its tiles like this:

    load_queries
    for each tile:  load_tile -> scores = q @ K, softmax, sums = sums * old + scores @ V * new
                    last tile of a group: add the sums to the total, or store them
    write the result, if nothing was stored; else `_finish` combines the stored sums of all items
"""

# mypy: disable-error-code="untyped-decorator"
# (numba has no type hints)

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch

from radixserve.kernels.cpu.attention.block import AttentionBlock, StepBlock
from radixserve.kernels.cpu.attention.loads import (
    Run,
    Tile,
    folded_from,
    load_queries,
    load_tile,
    load_tile_widened,
    part_of,
    settled,
    without_rows,
)
from radixserve.kernels.cpu.attention.memory import ROWS, Scratch, Sums, scratch_of
from radixserve.kernels.cpu.attention.scores import PLAIN, SPECIAL, Rules
from radixserve.kernels.cpu.attention.softmax import add_scores, tile_weights
from radixserve.kernels.cpu.attention.work import GROUP, TILE
from radixserve.kernels.cpu.compile import LINE_BYTES, compiled
from radixserve.kernels.cpu.products import Fold, Rows, multiply_rows, panel_of
from radixserve.kernels.cpu.vector import (
    add_atomically,
    copy,
    exp,
    fma,
    put_number,
)

_ONE = np.float32(1)


class Means(NamedTuple):
    """The means of a kernel to load a tile and to add it to sums: compiled functions that depend on
    the type of the numbers and on the instructions. The walk over items and tiles is the same for
    all kernels. A scratch memory has at least `begins`, `ends`, `places`, `sums`, `total` and
    `finished` as in `memory.Scratch`.
    """

    scratch_of: Any  # (addresses, thread) -> scratch
    load_queries: Any  # (layer, step, key head, first row, number of rows, scratch)
    load_tile: Any  # (layer, step, run, later run, scratch) -> tile
    # (layer, scratch, number of query rows, position where the tile starts, tile, fresh): adds the
    # tile to `scratch.sums`; if `fresh`, it is the first one
    add_tile: Any


class Item(NamedTuple):
    """What a thread takes at a time: an ITEM of `work` at one key head."""

    kv: Any  # key head
    first: Any
    num_rows: Any
    begin: Any
    tile: Any
    end_tile: Any
    stop: Any
    stores: Any


@cache
def multiplier(wide: bool) -> Any:
    """`multiply` for a level; `wide` is for processors with AVX-512."""
    panel = panel_of(wide)
    multiply_1, multiply_2, multiply_3 = (multiply_rows(rows, wide) for rows in (1, 2, 3))
    multiply_4, multiply_6 = multiply_rows(4, wide), multiply_rows(6, wide)

    @compiled
    def multiply(
        rows: int,
        a: Any,
        at: int,
        lda: int,
        b: Rows,
        columns: int,
        c: Any,
        to: int,
        fold: Fold,
        later: Rows,
    ) -> None:
        """c = a[0:rows, 0:b.count] @ b[:, 0:columns] for at most 6 rows, folded into c as `fold`
        says. a and c begin at elements `at` and `to`.

        The columns are computed panel by panel. The rows of `later` are prefetched meanwhile, for
        each panel an equal share of their width.
        """
        # Numbers of each later row to prefetch per panel, in whole cache lines.
        line = LINE_BYTES // later.data.itemsize
        share = -(-later.width * panel // (columns * line)) * line
        whole = later
        for column in range(0, columns, panel):
            later = part_of(whole, column // panel * share, share)
            here = to + column
            if rows == 6:
                multiply_6(a, at, lda, b, column, c, here, columns, fold, later)
            elif rows >= 4:
                multiply_4(a, at, lda, b, column, c, here, columns, fold, later)
                if rows == 5:  # 4 + 1: too rare for a loop of its own
                    last, nothing = folded_from(fold, 4), without_rows(later)
                    multiply_1(
                        a,
                        at + 4 * lda,
                        lda,
                        b,
                        column,
                        c,
                        here + 4 * columns,
                        columns,
                        last,
                        nothing,
                    )
            elif rows == 3:
                multiply_3(a, at, lda, b, column, c, here, columns, fold, later)
            elif rows == 2:
                multiply_2(a, at, lda, b, column, c, here, columns, fold, later)
            else:
                multiply_1(a, at, lda, b, column, c, here, columns, fold, later)

    return multiply


@compiled
def _factors(before: Any, peak: Any) -> Any:
    """The factors of the old and the new sums, when `before` and `peak` are their largest scores: e
    to the difference for the smaller, 1 for the larger.
    """
    grows = peak > before
    less = exp(before - peak if grows else peak - before)
    return (less, _ONE) if grows else (_ONE, less)


@compiled
def _contribute(
    multiply: Any,
    rules: Rules,
    layer: AttentionBlock,
    scratch: Scratch,
    block: int,
    count: int,
    start: int,
    tile: Tile,
    fresh: bool,
) -> None:
    """Add the loaded tile, which begins at position `start`, to the group's sums of rows [block,
    block + count) of the item. If `fresh`, it is the first tile of these sums. `multiply` is that
    of `multiplier`.
    """
    scores, sums, k_dim = scratch.scores, scratch.sums, tile.keys.count
    plain = Fold(scratch.old, scratch.new, 0, 0)
    multiply(
        count,
        scratch.queries,
        block * k_dim,
        k_dim,
        tile.keys,
        TILE,
        scores,
        0,
        plain,
        tile.later_keys,
    )
    for r in range(count):
        row, at = block + r, r * TILE
        begin, end = rules.begin(scratch, row, start), scratch.ends[row] - start
        rules.change(layer, scratch, row, at, start, _ONE)  # queries are scaled
        scratch.peaks[r], scratch.weights[r] = tile_weights(scores, at, begin, end)
    add_scores(sums, block, count, scratch, fresh)
    width = scratch.values.shape[0] // TILE
    fold = Fold(scratch.old, scratch.new, 0, 0 if fresh else 1)
    multiply(
        count,
        scores,
        0,
        TILE,
        tile.values,
        width,
        sums.values,
        block * width,
        fold,
        tile.later_values,
    )


@compiled
def _combine(total: Sums, index: int, part: Sums, place: int, width: int) -> None:
    """total[index] = total[index] combined with part[place]; rows of V are `width` floats. See the
    top for the formula.
    """
    old, new = _factors(total.peaks[index], part.peaks[place])
    into, values = total.values[index * width :][:width], part.values[place * width :][:width]
    for d in range(width):
        into[d] = fma(values[d], new, into[d] * old)
    total.weights[index] = fma(part.weights[place], new, total.weights[index] * old)
    if part.peaks[place] > total.peaks[index]:
        total.peaks[index] = part.peaks[place]


@compiled
def _copy(target: Sums, index: int, source: Sums, place: int, width: int) -> None:
    """target[index] = source[place]."""
    copy(source.values, place * width, target.values, index * width, width)
    target.peaks[index], target.weights[index] = source.peaks[place], source.weights[place]


@compiled
def _add(total: Sums, index: int, part: Sums, place: int, width: int, fresh: bool) -> None:
    """`_combine`; or `_copy` if the total is empty."""
    if fresh:
        _copy(total, index, part, place, width)
    else:
        _combine(total, index, part, place, width)


@compiled
def _close_group(step: StepBlock, scratch: Any, item: Item, most: int, tile: int) -> None:
    """The loaded tile is the last one of its group in this item. Add the group's sums to the item's
    totals, or store them as contributions. Rows that do not see these tiles are left out.
    """
    width, group = step.width, tile // GROUP * GROUP
    start, behind = max(item.tile, group) * TILE, (tile + 1) * TILE
    for i in range(most):
        if scratch.ends[i] <= start or scratch.begins[i] >= behind:
            continue
        if item.stores:
            _copy(step.partials, scratch.places[i], scratch.sums, i, width)
        else:
            first = scratch.begins[i] >= group * TILE  # the row's first group
            _add(scratch.total, i, scratch.sums, i, width, first)


@compiled
def _sink_weight(sink: Any, peak: Any) -> Any:
    """The weight of a sink relative to the largest score: e to their difference, at most e**87."""
    return _ONE / exp(peak - sink) if sink > peak else exp(sink - peak)


@compiled
def _write(layer: AttentionBlock, step: StepBlock, place: int, total: Sums, index: int) -> None:
    """Write the result of one row at one head, its weighted mean of V, to row `place` of the
    output.
    """
    width, dim, weight = step.width, step.v_dim, total.weights[index]
    if layer.sinks.shape[0] > 0:
        weight += _sink_weight(layer.sinks[place % step.heads], total.peaks[index])
    values = total.values[index * width :][:width]
    for d in range(dim):
        put_number(layer.out, place * dim + d, values[d] / weight)


@compiled
def _item(step: StepBlock, number: int) -> Item:
    """Entry `number` of the items times key heads; an item without tiles if there is no such entry,
    as for the one that would follow the last.
    """
    index = number // step.kv_heads
    if index >= step.items.shape[0]:
        return Item(0, 0, 0, 0, 0, 0, 0, 0)
    i = step.items[index]
    kv = number % step.kv_heads
    return Item(kv, i.first, i.num_rows, i.begin, i.tile, i.end_tile, i.stop, i.stores)


@compiled
def _run(item: Item, tile: int) -> Run:
    """The positions of the item that lie in `tile`."""
    return Run(item.kv, item.begin + tile * TILE, max(0, min(TILE, item.stop - tile * TILE)))


@compiled
def rows_that_see(rules: Rules, scratch: Any, first: int, end: int, start: int) -> Any:
    """Those of the item's rows [first, end) that see the tile at position `start`. They stand side
    by side: positions of rows ascend, unless all of them see the tile.
    """
    while first < end and scratch.ends[first] <= start:
        first += 1
    while first < end and rules.begin(scratch, end - 1, start) >= TILE:
        end -= 1
    return first, end


@compiled
def rows_alike(rules: Rules, scratch: Any, first: int, end: int, start: int, fresh: bool) -> Any:
    """The end of those rows from `first` on, before `end`, for which the tile at position `start`
    is the first of their group, or those for which it is not; and whether it is. `fresh` says that
    it is the first for all, else it is for rows whose windows begin in it.
    """
    cut = first if fresh else end
    while cut > first and rules.begin(scratch, cut - 1, start) >= 0:
        cut -= 1
    return (cut, False) if cut > first else (end, True)


@cache
def _adder(wide: bool, special: bool) -> Any:
    """`add_tile` for a level; `wide` is for processors with AVX-512, `special` for layers
    that are not plain.
    """
    multiply, rules = multiplier(wide), SPECIAL if special else PLAIN

    @compiled
    def add_tile(
        layer: AttentionBlock, scratch: Scratch, most: int, start: int, tile: Tile, fresh: bool
    ) -> None:
        """Add the loaded tile, which begins at position `start`, to all rows that see it."""
        for block in range(0, most, ROWS):
            first, end = rows_that_see(rules, scratch, block, min(block + ROWS, most), start)
            while first < end:
                cut, new = rows_alike(rules, scratch, first, end, start, fresh)
                _contribute(multiply, rules, layer, scratch, first, cut - first, start, tile, new)
                tile, first = settled(tile), cut  # the first ones have prefetched the next tile

    return add_tile


@compiled
def _attend_item(
    means: Means,
    layer: AttentionBlock,
    step: StepBlock,
    scratch: Any,
    item: Item,
    following: Item,
) -> None:
    """Compute one item: its rows are finished then, or their contributions stored. The last tile
    prefetches the first one of `following`, the item that this thread takes next.
    """
    most = item.num_rows * (step.heads // step.kv_heads)
    means.load_queries(layer, step, item.kv, item.first, item.num_rows, scratch)
    for tile in range(item.tile, item.end_tile):
        more = tile + 1 < item.end_tile
        later = _run(item, tile + 1) if more else _run(following, following.tile)
        loaded = means.load_tile(layer, step, _run(item, tile), later, scratch)
        fresh = tile == item.tile or tile % GROUP == 0
        means.add_tile(layer, scratch, most, tile * TILE, loaded, fresh)
        if not more or tile % GROUP == GROUP - 1:
            _close_group(step, scratch, item, most, tile)
    if not item.stores:
        for i in range(most):
            _write(layer, step, scratch.places[i], scratch.total, i)


@compiled
def _finish_group(
    step: StepBlock, total: Sums, first: int, end: int, width: int, fresh: bool
) -> None:
    """Combine the stored contributions [first, end) to one row, which are those of one group, and
    add them to the row's totals. Heads lie side by side.
    """
    heads = step.heads
    for head in range(heads):
        if end > first + 1:
            _copy(total, heads + head, step.partials, first * heads + head, width)
            for place in range(first + 1, end):
                _combine(total, heads + head, step.partials, place * heads + head, width)
            _add(total, head, total, heads + head, width, fresh)
        else:
            _add(total, head, step.partials, first * heads + head, width, fresh)


@compiled
def _finish_row(layer: AttentionBlock, step: StepBlock, split: Any, total: Sums) -> None:
    """Combine all stored contributions to one row in the order of the tiles, and write it. `split`
    is a SPLIT_ROW.
    """
    first, width = split.begin, step.width
    while first < split.end:
        after = first + 1
        while after < split.end and not step.opens[after]:
            after += 1
        _finish_group(step, total, first, after, width, first == split.begin)
        first = after
    for head in range(step.heads):
        _write(layer, step, split.row * step.heads + head, total, head)


@compiled
def _attend(means: Means, layer: AttentionBlock, step: StepBlock, scratch: Any) -> None:
    """Compute items until none is left, then wait until the other threads have done theirs."""
    num_items = step.items.shape[0] * step.kv_heads
    taken = add_atomically(layer.taken, 0, 1)
    while taken < num_items:
        following = add_atomically(layer.taken, 0, 1)
        _attend_item(means, layer, step, scratch, _item(step, taken), _item(step, following))
        add_atomically(layer.done, 0, 1)
        taken = following
    while add_atomically(layer.done, 0, 0) < num_items:
        pass  # spins: items are sorted by cost, so the last ones are cheap


@compiled
def _finish(layer: AttentionBlock, step: StepBlock, scratch: Any) -> None:
    """Combine the rows whose contributions are stored until none is left."""
    taken = add_atomically(layer.finished, 0, 1)
    while taken < step.split_rows.shape[0]:
        _finish_row(layer, step, step.split_rows[taken], scratch.finished)
        taken = add_atomically(layer.finished, 0, 1)


@compiled
def attend(means: Means, layer: AttentionBlock) -> None:
    """One thread's part of a layer."""
    step = StepBlock.read(layer.step)
    scratch = means.scratch_of(step.scratch, add_atomically(layer.threads, 0, 1))
    _attend(means, layer, step, scratch)
    _finish(layer, step, scratch)


@cache
def work_of(
    numbers: torch.dtype, kv: torch.dtype, wide: bool, special: bool
) -> Callable[[Any], None]:
    """The kernel for q and out of the dtype `numbers`, and a pool of the dtype `kv`; `wide` is for
    processors with AVX-512, `special` for layers that are not plain. Every thread calls it with the
    address of an `AttentionBlock`. `native` compiles it.
    """
    load = load_tile if kv == torch.float32 else load_tile_widened
    means = Means(scratch_of, load_queries, load, _adder(wide, special))
    read = AttentionBlock.reader(numbers, kv)

    def work(address: Any) -> None:
        attend(means, read(address))

    width, kind = "wide" if wide else "narrow", "_special" if special else ""
    work.__name__ = f"work_{numbers}_{kv}_{width}{kind}".replace("torch.", "")
    return work
