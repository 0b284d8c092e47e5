from __future__ import annotations

import pytest

from radixserve.cache.radix import RadixTree, path_prefix
from radixserve.prefix import Prefix, pack

SYSTEM = list(range(100, 140))


def of(token_ids: list[int]) -> Prefix:
    return Prefix.of("public", token_ids)


def tree_of_two() -> RadixTree:
    """SYSTEM 1 2 in slots 0..41, and SYSTEM 3 whose last token is in slot 50."""
    tree = RadixTree()
    root = tree.root("public")
    tree.insert(root, pack([*SYSTEM, 1, 2]), [(0, 30), (30, 12)])
    upper = tree.split(tree.walk(root, 0, of([*SYSTEM, 3])))
    tree.insert(upper, pack([3]), [(50, 1)])
    tree.check()
    return tree


def test_pack_is_four_bytes_per_token() -> None:
    assert pack([1, 2**31 - 1]) == b"\x01\0\0\0\xff\xff\xff\x7f"
    with pytest.raises(OverflowError):
        pack([2**31])


def test_a_split_shares_out_edge_and_slots_and_keeps_the_lower_node() -> None:
    tree = RadixTree()
    leaf = tree.insert(tree.root("public"), pack([5, 6, 7, 8]), [(0, 3), (9, 1)])
    upper = tree.split(tree.walk(tree.root("public"), 0, of([5, 6, 1])))
    assert (upper.edge, upper.runs, upper.parent) == (pack([5, 6]), [(0, 2)], tree.root("public"))
    assert (leaf.edge, leaf.runs, leaf.parent) == (pack([7, 8]), [(2, 1), (9, 1)], upper)
    assert (tree.num_nodes, tree.num_tokens) == (2, 4)
    tree.check()


@pytest.mark.parametrize("agreeing", range(1, 42))
def test_a_walk_finds_the_first_difference_wherever_in_an_edge_it_is(agreeing: int) -> None:
    tree = RadixTree()
    tokens = [*SYSTEM, 1, 2]
    tree.insert(tree.root("public"), pack(tokens), [(0, 42)])
    point = tree.walk(tree.root("public"), 0, of([*tokens[:agreeing], 9, *tokens[agreeing + 1 :]]))
    assert (point.offset, point.depth) == (agreeing, agreeing)
    assert tree.walk(tree.root("public"), 0, of(tokens[:agreeing])).depth == agreeing


def test_a_walk_goes_on_from_any_node() -> None:
    tree = tree_of_two()
    whole = tree.walk(tree.root("public"), 0, of([*SYSTEM, 3]))
    assert (whole.node.runs, whole.offset, whole.depth) == ([(50, 1)], 1, 41)
    assert tree.walk(whole.node.parent, 40, of([*SYSTEM, 1, 2, 9])).depth == 42  # type: ignore[arg-type]


def test_tokens_that_agree_only_in_their_low_bytes_differ() -> None:
    tree = RadixTree()
    tree.insert(tree.root("public"), pack([7, 0x0101]), [(0, 2)])
    assert tree.walk(tree.root("public"), 0, of([7, 0x0201])).depth == 1
    assert tree.walk(tree.root("public"), 0, of([7, 0x0102])).depth == 1


def test_namespaces_share_nothing() -> None:
    tree = tree_of_two()
    assert tree.walk(tree.root("other"), 0, Prefix.of("other", SYSTEM)).depth == 0


def test_what_tenants_add_to_public_tokens_hangs_below_them_apart() -> None:
    tree = tree_of_two()
    prompt = Prefix.of("a/0", [*SYSTEM, 1], num_public=40)
    system = tree.walk(tree.root("public"), 0, prompt)
    assert (system.node.edge, system.depth) == (pack(SYSTEM), 40)  # the public 1 is not its own
    root = tree.root_below(system.node, "a/0")
    leaf = tree.insert(root, pack([1]), [(60, 1)])
    assert tree.root_below(system.node, "a/0") is root
    point = tree.find(prompt)
    assert point is not None
    assert (point.node, point.depth) == (leaf, 41)
    assert path_prefix(leaf) == prompt
    assert leaf.owner == "a"
    assert tree.tokens_of == {"": 43, "a": 1}
    other = tree.find(Prefix.of("b/0", [*SYSTEM, 1], num_public=40))
    assert other is not None
    assert other.depth == 40
    assert tree.find(Prefix.of("a/0", [*SYSTEM, 1])) is None
    tree.check()


@pytest.mark.parametrize("num_public", range(1, 45))
def test_a_walk_takes_no_more_than_the_public_part_from_public_edges(num_public: int) -> None:
    tree = tree_of_two()
    point = tree.walk(tree.root("public"), 0, Prefix.of("a/0", [*SYSTEM, 1, 2], num_public))
    assert point.depth == min(num_public, 42)


def test_a_leaf_grows_and_shrinks_at_its_end() -> None:
    tree = tree_of_two()
    leaf = tree.walk(tree.root("public"), 0, of([*SYSTEM, 3])).node
    tree.extend(leaf, pack([4, 5]), [(51, 1), (60, 1)])
    assert (leaf.runs, tree.num_tokens) == ([(50, 2), (60, 1)], 45)
    assert tree.truncate(leaf, 1) == [(51, 1), (60, 1)]
    assert (leaf.edge, leaf.runs, tree.num_tokens) == (pack([3]), [(50, 1)], 43)
    tree.check()


def test_a_second_child_with_the_same_first_token_is_refused() -> None:
    tree = tree_of_two()
    with pytest.raises(AssertionError, match="begins with the same token"):
        tree.insert(tree.root("public"), pack(SYSTEM[:1]), [(60, 1)])


def test_half_a_token_is_refused() -> None:
    with pytest.raises(TypeError):
        RadixTree().walk(RadixTree().root("public"), 0, Prefix("public", b"\0\0"))
