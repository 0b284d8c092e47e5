"""Weights with scales by group: values, products by the packed weight, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from radixserve.checkpoints.grouped_weight import GroupedWeight, packed
from radixserve.kernels.cpu.gemm.call import Gemm
from radixserve.kernels.cpu.gemm.lookup import Lookup
from radixserve.kernels.cpu.gemm.panels import Panels

# bits, inputs, group, dtype of scales, symmetric
CASES = [
    (4, 256, 128, torch.float16, True),
    (4, 256, 128, torch.float16, False),
    (4, 288, 128, torch.bfloat16, False),  # the last group has 32 inputs
    (4, 192, 64, torch.float32, True),
    (8, 384, 384, torch.bfloat16, True),
    (8, 96, 32, torch.float16, False),
]


def weight(
    bits: int, inputs: int, group: int, dtype: torch.dtype, symmetric: bool, outputs: int = 70
) -> GroupedWeight:
    """A random weight."""
    draw = torch.Generator().manual_seed(0)
    groups = -(-inputs // group)

    def numbers(*shape: int) -> torch.Tensor:
        return torch.randint(0, 1 << bits, shape, generator=draw).to(torch.uint8)

    scales = (torch.rand(outputs, groups, generator=draw) / 100 + 0.001).to(dtype)
    zeros = 1 << (bits - 1) if symmetric else numbers(outputs, groups)
    return GroupedWeight(numbers(outputs, inputs), bits, group, scales, zeros)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_values_are_those_of_the_definition_and_of_the_packed_weight(case: Any) -> None:
    grouped = weight(*case)
    outputs, inputs = grouped.codes.shape
    zeros = torch.as_tensor(grouped.zeros).expand(grouped.scales.shape)
    each = torch.arange(inputs) // grouped.group
    offsets = grouped.codes.double() - zeros.double()[:, each]
    assert torch.equal(grouped.values(), (grouped.scales.double()[:, each] * offsets).float())
    panels = Panels.of_codes(packed([grouped]))
    assert torch.equal(Lookup(panels, torch.float32)(torch.arange(outputs)), grouped.values())


@pytest.mark.parametrize("case", CASES[1:3], ids=str)
def test_a_product_is_right_and_its_rows_do_not_depend_on_their_number(case: Any) -> None:
    grouped = weight(*case)
    x = torch.randn(40, grouped.codes.shape[1], generator=torch.Generator().manual_seed(1))
    gemm = Gemm(packed([grouped]))
    whole = gemm(x)
    size = x.double().abs() @ (grouped.scales.double().amax(1) * 15).expand(x.shape[1], -1)
    exact = x.double() @ grouped.values().double().T
    assert (whole.double() - exact).abs().le(size * 2.0**-20).all()
    for rows in (1, 2, 3, 5, 33):
        assert torch.equal(gemm(x[-rows:]), whole[-rows:]), rows


def test_weights_of_one_format_are_packed_as_one() -> None:
    parts = [weight(*CASES[0], outputs=outputs) for outputs in (70, 30)]
    joined = Lookup(Panels.of_codes(packed(parts)), torch.float32)(torch.arange(100))
    assert torch.equal(joined, torch.cat([each.values() for each in parts]))


def test_zeros_that_are_all_in_the_middle_need_no_minimums() -> None:
    grouped = weight(*CASES[0])
    named = replace(grouped, zeros=torch.full(grouped.scales.shape, 8, dtype=torch.uint8))
    assert named.format == grouped.format
    assert not named.format.has_minimum
    assert torch.equal(named.values(), grouped.values())


SOUND = weight(*CASES[1])
BROKEN: dict[str, dict[str, Any]] = {
    "codes of 3 bits": {"bits": 3},
    "not numbers of 4 bits": {"codes": SOUND.codes + 16},
    "no matrix of bytes": {"codes": SOUND.codes.int()},
    "250 inputs": {"codes": SOUND.codes[:, :250]},
    "groups of 48": {"group": 48},
    "groups of 512 inputs, but it has 256": {"group": 512},
    "scales are": {"scales": SOUND.scales[:, :1]},
    "scales are not finite": {"scales": SOUND.scales * torch.nan},
    "so large": {"scales": torch.full(SOUND.scales.shape, 3e38)},
    "scales of torch.float64": {"scales": SOUND.scales.double()},
    "zeros are not": {"zeros": SOUND.zeros[:, :1]},  # type: ignore[index]
    "zero is 256": {"zeros": 256},
    "order of activations": {"order": torch.arange(255, -1, -1) // 128},
}


@pytest.mark.parametrize("says", BROKEN)
def test_what_does_not_fit_together_is_refused(says: str) -> None:
    with pytest.raises(ValueError, match=says):
        replace(SOUND, **BROKEN[says])
