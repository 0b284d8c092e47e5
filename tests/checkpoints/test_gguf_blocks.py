"""Blocks of GGUF files: the values of every type are those that the `gguf` package dequantises."""

from __future__ import annotations

import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants

from radixserve.checkpoints.gguf_blocks import FORMATS, codes_of
from radixserve.checkpoints.gguf_header import KINDS
from radixserve.kernels.cpu.gemm.codes import Codes
from radixserve.kernels.cpu.gemm.formats import Format

_HALVES = {"Q2_K": (80, 82), "Q3_K": (108,), "Q6_K": (208,)}  # where blocks hold half precision
_SIZES = {kind.name: kind.size for kind in KINDS.values()}


def random_rows(kind: str, rows: int, blocks: int) -> np.ndarray:
    """Blocks of any bytes, with scales of a usual size."""
    draw, size = np.random.default_rng(1), _SIZES[kind]
    found = draw.integers(0, 256, (rows * blocks, size), dtype=np.uint8)
    usual = (0, 2) if kind in ("Q4_1", "Q5_1", "Q4_K", "Q5_K") else (0,)
    for at in _HALVES.get(kind, usual):
        numbers = (draw.normal(size=(len(found), 1)) / 3000).astype(np.float16)
        found[:, at : at + 2] = numbers.view(np.uint8)
    return found.reshape(rows, blocks * size)


def values_of(format: Format, codes: Codes) -> np.ndarray:
    """Values by the definition of a format, in float64, rounded once."""

    def wide(numbers: np.ndarray, factors: np.ndarray | None) -> np.ndarray:
        groups = np.repeat(numbers.astype(np.float64), format.groups, 1)
        return np.repeat(groups if factors is None else groups * factors, format.group, 1)

    scaled = wide(codes.scales, codes.scale_bytes) * (codes.codes.astype(np.float64) - format.zero)
    if codes.minimums is not None:
        scaled = scaled + wide(codes.minimums, codes.minimum_bytes)
    return scaled.astype(np.float32)


@pytest.mark.parametrize("kind", FORMATS)
def test_values_are_those_of_the_reference(kind: str) -> None:
    rows = random_rows(kind, 7, 3)
    expected = quants.dequantize(rows, GGMLQuantizationType[kind])
    assert np.array_equal(values_of(FORMATS[kind], codes_of(kind, rows)), expected)


def test_sizes_of_blocks_are_those_of_the_reference() -> None:
    for number, kind in KINDS.items():
        traits = quants.GGML_QUANT_SIZES[GGMLQuantizationType(number)]
        assert (GGMLQuantizationType(number).name, *traits) == (kind.name, kind.values, kind.size)
