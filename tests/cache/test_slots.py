from __future__ import annotations

import numpy as np
import pytest

from radixserve.cache.slots import SlotAllocator, append_runs, split_runs, write_slots


def allocator_with_free(num_slots: int, free: list[tuple[int, int]]) -> SlotAllocator:
    allocator = SlotAllocator(num_slots)
    assert allocator.allocate(num_slots) == [(0, num_slots)]
    allocator.free(free)
    allocator.check()
    return allocator


def test_the_shortest_run_that_is_long_enough_is_taken() -> None:
    allocator = allocator_with_free(30, [(0, 10), (12, 4), (20, 6)])
    assert allocator.allocate(4) == [(12, 4)]
    assert allocator.allocate(5) == [(20, 5)]
    assert allocator.free_runs() == [(0, 10), (25, 1)]
    allocator.check()


def test_where_no_run_is_long_enough_the_longest_come_first_and_the_rest_fits_best() -> None:
    allocator = allocator_with_free(30, [(0, 10), (12, 4), (20, 6)])
    assert allocator.allocate(13) == [(0, 10), (12, 3)]
    assert allocator.free_runs() == [(15, 1), (20, 6)]
    allocator.check()


def test_too_many_slots_give_none_and_change_nothing() -> None:
    allocator = allocator_with_free(30, [(0, 10), (12, 4)])
    assert allocator.allocate(15) is None
    assert allocator.num_free == 14
    assert allocator.free_runs() == [(0, 10), (12, 4)]


def test_no_slots_are_no_runs() -> None:
    assert SlotAllocator(3).allocate(0) == []
    assert SlotAllocator(0).allocate(0) == []
    assert SlotAllocator(0).allocate(1) is None


def test_a_freed_run_coalesces_with_both_neighbours() -> None:
    allocator = allocator_with_free(10, [(0, 3), (6, 4)])
    allocator.free([(3, 3)])
    assert allocator.free_runs() == [(0, 10)]
    allocator.check()


@pytest.mark.parametrize("again", [(2, 3), (0, 3), (4, 2), (3, 1), (0, 10)])
def test_freeing_a_slot_that_is_free_raises_whatever_the_overlap(again: tuple[int, int]) -> None:
    allocator = allocator_with_free(10, [(2, 3)])
    with pytest.raises(AssertionError, match="freed twice"):
        allocator.free([again])


@pytest.mark.parametrize("outside", [(-1, 2), (9, 2), (3, 0)])
def test_freeing_what_never_existed_raises(outside: tuple[int, int]) -> None:
    allocator = allocator_with_free(10, [])
    with pytest.raises(AssertionError, match="never existed"):
        allocator.free([outside])


def test_runs_are_split_between_and_inside_them() -> None:
    runs = [(10, 3), (20, 2)]
    assert split_runs(runs, 0) == ([], [(10, 3), (20, 2)])
    assert split_runs(runs, 2) == ([(10, 2)], [(12, 1), (20, 2)])
    assert split_runs(runs, 3) == ([(10, 3)], [(20, 2)])
    assert split_runs(runs, 5) == ([(10, 3), (20, 2)], [])
    with pytest.raises(AssertionError, match="1 slots fewer"):
        split_runs(runs, 6)


def test_runs_that_meet_are_joined() -> None:
    runs = [(10, 3)]
    append_runs(runs, [(13, 2), (20, 1)])
    assert runs == [(10, 5), (20, 1)]


def test_a_table_names_the_slots_of_its_runs_in_order() -> None:
    table = np.full(7, -1, np.int32)
    write_slots([(40, 3), (7, 1), (9, 2)], table[:6])
    assert table.tolist() == [40, 41, 42, 7, 9, 10, -1]
    write_slots([(3, 2)], table[5:])
    assert table.tolist() == [40, 41, 42, 7, 9, 3, 4]
    write_slots([], table[:0])


def test_the_highest_free_slots_are_held_back_and_the_lowest_of_them_given_back() -> None:
    allocator = allocator_with_free(20, [(2, 3), (8, 4), (16, 2)])
    allocator.hold_back(5)
    allocator.check()
    assert (allocator.held, allocator.free_runs()) == ([(9, 3), (16, 2)], [(2, 3), (8, 1)])
    assert (allocator.num_slots, allocator.capacity) == (15, 20)
    allocator.free([(12, 4)])
    allocator.hold_back(1)
    assert allocator.held == [(12, 6)], "what lies lower is free again, and joined"
    allocator.give_back(4)
    allocator.check()
    assert (allocator.held, allocator.num_slots) == ([(16, 2)], 18)
    with pytest.raises(AssertionError, match="freed twice"):
        allocator.free([(17, 1)])


def test_a_swap_hands_out_the_lowest_slots_free_or_held_back() -> None:
    allocator = allocator_with_free(20, [(2, 3), (8, 4)])
    allocator.hold_back(5)
    assert allocator.swap([(15, 5)]) == [(2, 3), (8, 2)]
    allocator.check()
    assert (allocator.held, allocator.free_runs()) == ([(15, 5)], [(10, 2)])
