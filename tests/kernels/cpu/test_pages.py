"""Memory in large pages: what was copied is there, and nothing overlaps."""

from __future__ import annotations

import pytest
import torch

from radixserve.kernels.cpu.pages import in_large_pages


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_copies_are_equal_apart_and_begin_at_cache_lines(dtype: torch.dtype) -> None:
    sources = [torch.randn(count).to(dtype) for count in (1, 33, 1 << 20, 3, 6 << 20, 2 << 20, 7)]
    copies = [in_large_pages(source) for source in sources]
    for source, copy in zip(sources, copies, strict=True):
        assert torch.equal(copy, source)
        assert copy.data_ptr() % 64 == 0
    copies[0].fill_(0)
    assert all(
        torch.equal(copy, source) for copy, source in zip(copies[1:], sources[1:], strict=True)
    )
