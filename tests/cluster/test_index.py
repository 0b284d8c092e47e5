"""The index beside plain sets."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from radixserve.cluster.index import PrefixIndex

SERVERS = st.integers(0, 70)  # more than a machine word has bits
KEYS = st.lists(st.integers(0, 9), max_size=6)
STORE = st.tuples(st.just("store"), SERVERS, KEYS)
REMOVE = st.tuples(st.just("remove"), SERVERS, KEYS)
CLEAR = st.tuples(st.just("clear"), SERVERS, KEYS)
Change = tuple[str, int, list[int]]


@given(st.lists(STORE | REMOVE | CLEAR, max_size=30), KEYS)
def test_depths_are_those_of_sets(changes: list[Change], keys: list[int]) -> None:
    index = PrefixIndex(100)
    sets: dict[int, set[int]] = {server: set() for server in range(71)}
    for change, server, blocks in changes:
        if change == "store":
            index.store(server, blocks)
            sets[server].update(blocks)
        elif change == "remove":
            index.remove(server, blocks)
            sets[server].difference_update(blocks)
        else:
            index.clear(server)
            sets[server].clear()
    expected = {}
    for server, cached in sets.items():
        depth = next((i for i, key in enumerate(keys) if key not in cached), len(keys))
        if depth:
            expected[server] = depth
    assert index.depths(keys) == expected
    assert len(index) == len(set().union(*sets.values()))


def test_it_is_bounded() -> None:
    index = PrefixIndex(3)
    index.store(0, [1, 2, 3])
    index.store(1, [4])
    assert len(index) == 3
    assert index.depths([1, 2]) == {}
    assert index.depths([4]) == {1: 1}
