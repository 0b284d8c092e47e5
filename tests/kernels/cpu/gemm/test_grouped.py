"""Rows in groups, each multiplied by its own weight: the bits that each weight alone gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from radixserve.kernels.cpu import threads
from radixserve.kernels.cpu.gemm.block import COUNTERS
from radixserve.kernels.cpu.gemm.call import Gemm
from radixserve.kernels.cpu.gemm.grouped import GroupedGemm
from radixserve.kernels.cpu.levels import Level, available
from tests.kernels.cpu.gemm.test_gemm import DTYPES, FORMS, made, rows_of

SHAPES = ((130, 100), (192, 96))
COUNTS = (3, 0, 100, 1, 0, 0, 17, 300)


def multiplied(weights: GroupedGemm, x: torch.Tensor, counts: tuple[int, ...]) -> torch.Tensor:
    out = torch.empty(len(x), weights.out_features, dtype=x.dtype)
    starts = np.array([0, *np.cumsum(counts)], np.int64)
    counters = np.zeros((len(weights), COUNTERS), np.int64)
    kernel, block = weights.launch(x, out, starts, counters)
    threads.run(kernel, block.address, True)
    return out


@pytest.mark.parametrize("level", available(), ids=lambda level: level.name)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_each_group_has_the_bits_of_its_weight_alone(
    shape: tuple[int, int], dtype: torch.dtype, level: Level
) -> None:
    forms = FORMS if shape[1] == 96 else FORMS[:2]
    gemms: list[Gemm] = [made(level, forms[i % len(forms)], dtype, shape) for i in range(8)]
    weights = GroupedGemm(gemms)
    x = rows_of(sum(COUNTS), shape[1], dtype)
    parts = torch.split(x, list(COUNTS))
    expected = torch.cat([gemm(part) for gemm, part in zip(gemms, parts, strict=True)])
    assert torch.equal(multiplied(weights, x, COUNTS), expected)
    few = (0, 0, 2, 0, 1, 0, 0, 0)
    expected = torch.cat([gemms[2](x[:2]), gemms[4](x[2:3])])
    assert torch.equal(multiplied(weights, x[:3], few), expected)
