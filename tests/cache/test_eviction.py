from __future__ import annotations

from radixserve.cache.eviction import Evictor
from radixserve.cache.policies.policy import Policy
from radixserve.cache.policies.ranked import Ranked, least_recently_used
from radixserve.cache.radix import Node, RadixTree
from radixserve.prefix import pack


def family(policy: Policy | None = None) -> tuple[RadixTree, Evictor, dict[str, Node]]:
    """A system prompt of 4 tokens with two users below it (3 and 2 tokens), used in the order user
    A, user B.
    """
    tree = RadixTree()
    evictor = Evictor(tree, policy or least_recently_used())
    root = tree.root("public")
    system = tree.insert(root, pack([1, 2, 3, 4]), [(0, 4)])
    nodes = {"root": root, "system": system}
    nodes["a"] = tree.insert(system, pack([5, 6, 7]), [(10, 3)])
    nodes["b"] = tree.insert(system, pack([8, 9]), [(20, 2)])
    for name in ("a", "b"):
        use(evictor, nodes[name])
    return tree, evictor, nodes


def use(evictor: Evictor, node: Node) -> None:
    evictor.pin(node)
    evictor.touch(node)
    evictor.unpin(node)


def test_a_pinned_node_pins_its_parent_once() -> None:
    _, evictor, nodes = family()
    for name in ("a", "b", "b", "system"):
        evictor.pin(nodes[name])
    assert {name: node.pins for name, node in nodes.items()} == {
        "root": 1,
        "system": 3,
        "a": 1,
        "b": 2,
    }
    assert evictor.pinned_tokens == 9
    evictor.check([nodes["a"], nodes["b"], nodes["b"], nodes["system"]])
    evictor.unpin(nodes["b"])
    evictor.unpin(nodes["a"])
    assert {name: node.pins for name, node in nodes.items()} == {
        "root": 1,
        "system": 2,
        "a": 0,
        "b": 1,
    }
    assert evictor.pinned_tokens == 6
    evictor.check([nodes["b"], nodes["system"]])


def test_the_least_recently_used_leaf_goes_first_and_the_last_one_only_loses_its_tail() -> None:
    tree, evictor, nodes = family()
    assert evictor.evict(1) == [(12, 1)]
    assert evictor.evict(3) == [(10, 2), (21, 1)]
    assert (nodes["b"].edge, tree.num_tokens) == (pack([8]), 5)
    evictor.check([])


def test_a_parent_goes_after_its_children_with_the_recency_of_the_latest() -> None:
    tree, evictor, nodes = family()
    other = tree.insert(nodes["root"], pack([77]), [(30, 1)])
    use(evictor, other)
    use(evictor, nodes["a"])
    assert evictor.evict(3) == [(20, 2), (30, 1)]
    assert evictor.evict(100) == [(10, 3), (0, 4)]
    assert (tree.num_tokens, tree.num_nodes, tree.roots) == (0, 0, {})


def test_what_is_pinned_stays_however_much_is_asked() -> None:
    tree, evictor, nodes = family()
    evictor.pin(nodes["system"])
    assert evictor.evictable_tokens == 5
    assert evictor.evict(100) == [(10, 3), (20, 2)]
    assert evictor.evict(100) == []
    assert tree.num_tokens == evictor.pinned_tokens == 4


def test_an_empty_namespace_goes_with_its_last_pin() -> None:
    tree = RadixTree()
    evictor = Evictor(tree, least_recently_used())
    root = tree.root("public")
    evictor.pin(root)
    evictor.unpin(root)
    assert tree.roots == {}


def test_a_policy_may_be_a_rank() -> None:
    _, evictor, _ = family(Ranked(lambda node: -node.last_use))
    assert evictor.evict(2) == [(20, 2)]


def test_leaves_of_equal_rank_go_in_the_order_they_were_made() -> None:
    _, evictor, _ = family(Ranked(lambda node: 0))
    assert evictor.evict(5) == [(10, 3), (20, 2)]
