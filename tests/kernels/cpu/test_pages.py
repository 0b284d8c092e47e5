"""Memory in large pages: what was written is there, and nothing overlaps."""

from __future__ import annotations

from radixserve.kernels.cpu.pages import empty


def test_tensors_lie_apart_and_begin_at_cache_lines() -> None:
    tensors = [empty(count) for count in (1, 33, 1 << 20, 3, 6 << 20, 2 << 20, 7)]
    for number, tensor in enumerate(tensors):
        assert tensor.data_ptr() % 64 == 0
        tensor.fill_(number)
    assert all(bool((tensor == number).all()) for number, tensor in enumerate(tensors))
