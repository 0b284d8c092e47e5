"""Weights as codes of any format: every value comes back, and a row of a product has the same bits
whatever the number of rows.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from radixserve.checkpoints.gguf_blocks import FORMATS as GGUF
from radixserve.kernels.cpu import levels, threads
from radixserve.kernels.cpu.gemm.block import COUNTERS
from radixserve.kernels.cpu.gemm.call import Gemm
from radixserve.kernels.cpu.gemm.codes import Codes, Packing
from radixserve.kernels.cpu.gemm.formats import Format
from radixserve.kernels.cpu.gemm.lookup import Lookup
from radixserve.kernels.cpu.gemm.panels import Panels
from radixserve.kernels.cpu.gemm.stacked import StackedGemm
from radixserve.kernels.cpu.levels import Level

SHAPE = (130, 512)
FORMATS = [
    *(GGUF[name] for name in ("Q8_0", "Q5_1", "Q6_K", "Q2_K")),
    Format("wide", (8,), block=128, group=128, has_minimum=True, scale_bits=32),
]
CASES = [(FORMATS[3], Level.AVX2), *((each, levels.highest()) for each in FORMATS[2:])]


def of(format: Format, shape: tuple[int, int] = SHAPE) -> tuple[Codes, torch.Tensor]:
    """Random codes, and their values by the definition of a format, in float64, rounded once."""
    draw, groups = np.random.default_rng(0), (shape[0], shape[1] // format.group)
    codes = draw.integers(0, 1 << format.bits, shape, dtype=np.uint8)
    numbers = draw.normal(size=(2, shape[0], shape[1] // format.block)) / 100
    scales, minimums = numbers.astype(np.float16 if format.scale_bits == 16 else np.float32)
    factors = draw.integers(-32, 64, (2, *groups)).astype(np.int8)
    wide = [np.repeat(each.astype(np.float64), format.groups, 1) for each in (scales, minimums)]
    if format.is_nested:
        wide = [each * by for each, by in zip(wide, factors, strict=True)]
    scale, minimum = (np.repeat(each, format.group, 1) for each in wide)
    offset = minimum if format.has_minimum else 0.0
    values = (scale * (codes.astype(np.float64) - format.zero) + offset).astype(np.float32)
    found = Codes(
        codes,
        scales,
        minimums if format.has_minimum else None,
        factors[0] if format.is_nested else None,
        factors[1] if format.is_nested and format.has_minimum else None,
    )
    return found, torch.from_numpy(values)


def packed(format: Format) -> tuple[Packing, torch.Tensor]:
    """A weight that is packed in two parts."""
    codes, values = of(format)
    packing = Packing(format, SHAPE)
    packing.put(0, codes.rows(0, 64))
    packing.put(64, codes.rows(64, SHAPE[0]))
    return packing, values


@pytest.mark.parametrize("format", FORMATS, ids=lambda each: each.name)
def test_every_value_of_a_format_comes_back(format: Format) -> None:
    packing, values = packed(format)
    assert packing.memory.nbytes == 192 * SHAPE[1] // format.block * format.record_words // 64 * 4
    found = Lookup(Panels.of_codes(packing), torch.float32)(torch.arange(SHAPE[0]))
    assert torch.equal(found, values)


@pytest.mark.parametrize(("format", "level"), CASES, ids=lambda each: each.name)
def test_a_product_is_right_and_its_rows_do_not_depend_on_their_number(
    format: Format, level: Level
) -> None:
    packing, values = packed(format)
    gemm = Gemm(packing, level=level)
    x = torch.randn(100, SHAPE[1], generator=torch.Generator().manual_seed(1))
    x[5] *= 1000
    whole = gemm(x)
    exact = x.double() @ values.double().T
    size = x.double().abs() @ values.double().abs().T
    assert (whole.double() - exact).abs().le(size * 2.0**-20).all()
    for rows in (1, 2, 3, 4, 5, 7, 33, 97):
        assert torch.equal(gemm(x[:rows]), whole[:rows]), rows
        assert torch.equal(gemm(x[-rows:]), whole[-rows:]), rows


def test_inputs_that_are_not_whole_blocks_are_refused() -> None:
    with pytest.raises(ValueError, match="100 inputs are not whole blocks of 32"):
        Packing(FORMATS[0], (64, 100))


def test_weights_of_different_formats_are_multiplied_as_one() -> None:
    parts = [Gemm(packed(format)[0], torch.randn(SHAPE[0])) for format in (FORMATS[2], FORMATS[4])]
    stacked, x = StackedGemm(parts), torch.randn(40, SHAPE[1])
    for rows in (0, 1, 3, 40):
        expected = torch.cat([each(x[:rows]) for each in parts], 1)
        assert torch.equal(stacked(x[:rows]), expected)
    out, counter = torch.empty(1, 2 * SHAPE[0]), np.zeros(COUNTERS, np.int64)
    address, block = stacked.launch(x[:1], out, counter)
    threads.run(address, block.address, True)
    assert torch.equal(out, expected[:1])
