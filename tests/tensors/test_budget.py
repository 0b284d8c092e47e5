"""From bytes to slots, and the pool they index."""

from __future__ import annotations

import pytest
import torch

from radixserve.errors import ConfigError
from radixserve.tensors import budget
from radixserve.tensors.budget import check_room, slots_for_budget
from radixserve.tensors.kv import KVPool, KVShape
from tests.tiny import CPU

SHAPE = KVShape(30, 3, 64, 64, torch.float32)  # 46,080 bytes per token
GIB = 1 << 30


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Free bytes, to be set by the test."""
    amount = [16 * GIB]
    monkeypatch.setattr(budget, "free_bytes", lambda device: amount[0])
    return amount


def test_a_slot_is_k_and_v_of_one_token_at_all_layers() -> None:
    assert SHAPE.slot_bytes == 46_080
    pool = KVPool(KVShape(2, 3, 8, 4, torch.float32), 10, CPU)
    assert pool.k.shape == (2, 10, 3, 8)
    assert pool.v.shape == (2, 10, 3, 4)
    assert pool.k.nbytes + pool.v.nbytes == 10 * pool.slot_bytes
    assert not pool.k.any()
    assert not pool.v.any()


def test_an_explicit_budget_is_never_exceeded() -> None:
    assert slots_for_budget(SHAPE.slot_bytes, 8192, CPU, 100 * 46_080 + 46_079) == 100


def test_a_budget_below_sixty_four_tokens_is_refused() -> None:
    with pytest.raises(ConfigError, match="holds 63 tokens at 46,080 bytes each"):
        slots_for_budget(SHAPE.slot_bytes, 8192, CPU, 64 * 46_080 - 1)


@pytest.mark.parametrize(
    ("free_bytes", "slots"),
    [
        (8 * GIB, 2 * GIB // 46_080),  # a quarter
        (100 * GIB, 4 * GIB // 46_080),  # four GiB at most
        (GIB, 8192),  # one context, although it is more than a quarter
        (GIB // 4, int(GIB // 4 * 0.6) // 46_080),  # not even that fits
    ],
)
def test_the_default_is_a_share_of_free_memory(
    free: list[int], free_bytes: int, slots: int
) -> None:
    free[0] = free_bytes
    assert slots_for_budget(SHAPE.slot_bytes, 8192, CPU) == slots


def test_no_more_is_taken_than_is_useful(free: list[int]) -> None:
    assert slots_for_budget(KVShape(2, 1, 8, 8, torch.float32).slot_bytes, 512, CPU) == 512 * 64


def test_a_machine_without_room_is_refused(free: list[int]) -> None:
    free[0] = 1 << 20
    with pytest.raises(ConfigError, match="Free memory holds"):
        slots_for_budget(SHAPE.slot_bytes, 8192, CPU)


def test_free_memory_is_read_from_this_machine() -> None:
    assert 1 << 20 < budget.free_bytes(CPU) < 1 << 62


def test_a_share_of_free_memory_is_taken_as_said(free: list[int]) -> None:
    free[0] = 46_080 * 1000
    assert slots_for_budget(SHAPE.slot_bytes, 8192, CPU, share=0.5) == 500
    assert slots_for_budget(SHAPE.slot_bytes, 8192, CPU, 46_080 * 100, share=0.5) == 100


@pytest.mark.parametrize(("model_gib", "budget_gib"), [(5, 10), (15, 0), (0, 15)])
def test_what_fits_is_loaded(free: list[int], model_gib: int, budget_gib: int) -> None:
    check_room(model_gib * GIB, SHAPE, CPU, budget_gib * GIB)


def test_a_budget_that_does_not_fit_beside_the_model_is_refused_with_the_numbers(
    free: list[int],
) -> None:
    with pytest.raises(ConfigError) as refused:
        check_room(GIB // 2, SHAPE, CPU, 100 * GIB)
    assert str(refused.value).startswith(
        "The model takes 0.50 GiB and kv_budget 100.00 GiB, but only 16.00 GiB of memory are free "
        "(the limit is "
    )


def test_a_model_that_does_not_fit_is_refused_without_a_budget_too(free: list[int]) -> None:
    with pytest.raises(
        ConfigError, match=r"takes 16\.00 GiB and keys and values of 64 tokens 0\.00"
    ):
        check_room(16 * GIB, SHAPE, CPU)


def test_a_budget_that_is_more_than_what_the_loaded_model_leaves_is_refused(
    free: list[int],
) -> None:
    with pytest.raises(ConfigError, match=r"kv_budget is 17\.00 GiB, but beside the model 16\.00"):
        slots_for_budget(SHAPE.slot_bytes, 8192, CPU, 17 * GIB)
