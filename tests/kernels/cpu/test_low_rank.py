"""The kernel of adapters against torch, and that a row's bits depend on nothing but the row and its
adapter.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from radixserve.kernels.arrays import Longs
from radixserve.kernels.cpu.low_rank import (
    INNER,
    PackedAdapter,
    Part,
    add_products,
    groups_of,
    room_for,
)

LINEAR = 1  # of the two that adapters have here


def parts_of(seed: int, inputs: int, sizes: Sequence[int], ranks: Sequence[int]) -> list[Part]:
    """Random factors for a linear that is fused of parts with these outputs."""
    torch.manual_seed(seed)
    found, output = [], 0
    for size, rank in zip(sizes, ranks, strict=True):
        if rank:
            first, second = torch.randn(rank, inputs), torch.randn(size, rank)
            found.append(Part(first, second, 0.25 + seed, output))
        output += size
    return found


def packed(parts: Sequence[Part]) -> PackedAdapter:
    sizes = [(len(each.first), each.first.shape[1], len(each.second)) for each in parts]
    found = PackedAdapter(2, sum(room_for(*each) for each in sizes))
    found.add(LINEAR, parts)
    return found


def addresses(adapters: Sequence[PackedAdapter | None]) -> Longs:
    return np.array([0 if each is None else each.address for each in adapters], np.int64)


def added(
    x: torch.Tensor, out: torch.Tensor, adapters: Sequence[PackedAdapter | None]
) -> torch.Tensor:
    """`out` with what the adapter of each row adds."""
    found = out.clone()
    add_products(x, found, groups_of(addresses(adapters)), LINEAR, torch.empty(len(x) * INNER))
    return found


def expected(x: torch.Tensor, out: torch.Tensor, parts: Sequence[Part]) -> torch.Tensor:
    total = out.double()
    for part in parts:
        inner = part.scale * (x.double() @ part.first.double().T)
        total[:, part.output : part.output + len(part.second)] += inner @ part.second.double().T
    return total


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("factors", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("inputs", "sizes", "ranks"),
    [(64, (64, 32, 32), (8, 8, 8)), (100, (70, 30), (3, 17)), (1100, (33, 7, 64), (0, 5, 1))],
)
def test_it_adds_what_torch_adds(
    inputs: int,
    sizes: tuple[int, ...],
    ranks: tuple[int, ...],
    factors: torch.dtype,
    dtype: torch.dtype,
) -> None:
    parts = [
        Part(each.first.to(factors), each.second.to(factors), each.scale, each.output)
        for each in parts_of(0, inputs, sizes, ranks)
    ]
    x = torch.randn(6, inputs).to(dtype)
    out = torch.randn(6, sum(sizes)).to(dtype)
    found = added(x, out, [packed(parts)] * 6)
    step = 2**-8 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(found.double(), expected(x, out, parts), rtol=step, atol=1e-3)


def test_a_rows_bits_depend_on_the_row_and_its_adapter_alone() -> None:
    sizes = (64, 40)
    adapters = [packed(parts_of(seed, 130, sizes, (4, 9 + seed))) for seed in range(3)]
    x, out = torch.randn(40, 130), torch.randn(40, 104)
    whose = [None if i % 5 == 4 else adapters[i // 7 % 3] for i in range(40)]
    together = added(x, out, whose)
    for i, adapter in enumerate(whose):
        alone = added(x[i : i + 1], out[i : i + 1], [adapter])
        assert torch.equal(together[i], alone[0])
        assert adapter is not None or torch.equal(together[i], out[i])
    for count in (2, 3, 4, 5, 9):
        some = added(x[:count], out[:count], [adapters[0]] * count)
        one = added(x[count - 1 : count], out[count - 1 : count], [adapters[0]])
        assert torch.equal(some[-1], one[0])


def test_a_linear_that_an_adapter_leaves_alone_keeps_its_bits() -> None:
    x, out = torch.randn(3, 64), torch.randn(3, 64)
    found = out.clone()
    adapter = packed(parts_of(0, 64, (64,), (4,)))
    add_products(x, found, groups_of(addresses([adapter] * 3)), 0, torch.empty(3 * INNER))
    assert torch.equal(found, out)
