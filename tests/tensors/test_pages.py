"""Zeroed tensors whose memory is made page by page."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from radixserve.tensors.kv import KVPool, KVShape
from radixserve.tensors.pages import fill, release, zeroed

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reserves memory on Linux only")

GIB = 1 << 30


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn])
def test_all_values_are_zero_and_can_be_written(dtype: torch.dtype) -> None:
    tensor = zeroed((3, 5, 7), dtype)
    assert tensor.dtype == dtype
    assert tensor.shape == (3, 5, 7)
    assert torch.equal(tensor.float(), torch.zeros(3, 5, 7))
    tensor[1, 2] = torch.ones(7).to(dtype)
    assert tensor.float().sum() == 7


def test_a_pool_takes_memory_only_where_it_is_written() -> None:
    before = resident()
    pool = KVPool(KVShape(4, 2, 64, 64, torch.float32), 1 << 20, torch.device("cpu"))
    assert pool.num_slots * pool.slot_bytes == 4 * GIB
    pool.k[:, 7] = 1.0
    assert resident() - before < GIB // 8
    assert pool.k[:, 6:9].sum() == 4 * 2 * 64


def test_filling_makes_the_memory_and_changes_nothing() -> None:
    tensor = zeroed((256, 1 << 16), torch.float32)
    tensor[3] = 1.0
    before = resident()
    fill(tensor).join()
    if resident() - before < tensor.nbytes // 2:
        pytest.skip("this system makes pages only when they are touched")
    assert tensor[3].sum() == 1 << 16
    assert tensor.sum() == 1 << 16


def test_released_memory_is_given_back_and_is_zero_and_the_rest_stays() -> None:
    tensor = zeroed((2, 1 << 24), torch.float32)
    tensor.fill_(1.0)
    before = resident()
    release(tensor[:, 1 << 23 :])
    assert before - resident() > 0.9 * tensor.nbytes / 2
    assert tensor[:, : 1 << 23].sum() == 1 << 24
    assert tensor[:, 1 << 23 :].sum() == 0
    tensor[:, -1] = 3.0
    assert tensor.sum() == (1 << 24) + 6


def test_of_pages_that_others_share_nothing_is_released() -> None:
    tensor = zeroed((2, 1 << 14), torch.float32)
    tensor.fill_(1.0)
    release(tensor[:, 100:200])
    assert tensor.sum() == 1 << 15


def test_filling_ends_when_memory_is_given_back() -> None:
    pool = KVPool(KVShape(4, 2, 64, 64, torch.float32), 1 << 18, torch.device("cpu"))
    pool.k[:, 5] = 2.0
    before = resident()
    pool.release(64)
    pool.fill(pool.num_slots)
    assert resident() - before < GIB // 4
    assert pool.k[:, 5].sum() == 2 * 4 * 2 * 64
