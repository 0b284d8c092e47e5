"""Codes in words of 32 bits, as the packages that write quantised checkpoints pack them."""

from __future__ import annotations

import hashlib

import pytest
import torch

from radixserve.checkpoints.packed_integers import (
    codes_in_columns,
    codes_in_rows,
    codes_of_awq,
    words_for,
)
from tests.checkpoints.quantised import Rounded, awq, gptq, packed

AS_PACKAGES_PACK = {
    ("compressed-tensors", 4, "weight_packed"): "f0579da38d6ea619",
    ("compressed-tensors", 4, "weight_zero_point"): "044944095bb62606",
    ("compressed-tensors", 8, "weight_packed"): "feb5fe5c95e7b8d6",
    ("compressed-tensors", 8, "weight_zero_point"): "42ec9f72bfebde8b",
    ("gptq", 4, "qweight"): "e1a36bd4dd9dfbc3",
    ("gptq", 4, "qzeros"): "3d45de0508003ec6",
    ("gptq", 8, "qweight"): "7a5929a834e447cf",
    ("gptq", 8, "qzeros"): "63b9889400ac66e7",
    ("awq", 4, "qweight"): "88ba9107f87f2d6a",
    ("awq", 4, "qzeros"): "4f3296a69481e836",
}
"""Digests of what compressed-tensors 0.20.1, AutoGPTQ 0.7.1 and AutoAWQ 0.2.9 made of `example`."""


def example(bits: int) -> Rounded:
    """A weight of 32 outputs and inputs in two groups, with all codes."""
    outputs, inputs, most = torch.arange(32)[:, None], torch.arange(32), (1 << bits) - 1
    codes = (outputs * 5 + inputs * 3) % (most + 1)
    zeros = 1 + (outputs * 7 + torch.arange(2) * 4) % most
    scales = (1 + torch.arange(64).view(32, 2)) / 64
    return Rounded(codes, scales.half(), zeros, bits, 16)


@pytest.mark.parametrize(("tool", "bits", "name"), AS_PACKAGES_PACK, ids=str)
def test_these_tests_pack_as_the_packages_do(tool: str, bits: int, name: str) -> None:
    pack = {"compressed-tensors": packed, "gptq": gptq, "awq": awq}[tool]
    content = pack(example(bits))[name].numpy().tobytes()
    assert hashlib.sha256(content).hexdigest()[:16] == AS_PACKAGES_PACK[tool, bits, name]


@pytest.mark.parametrize("bits", [4, 8])
def test_every_code_is_found(bits: int) -> None:
    weight = example(bits)
    codes, zeros = weight.codes.to(torch.uint8), weight.zeros.to(torch.uint8)
    assert torch.equal(codes_in_rows(packed(weight)["weight_packed"], bits, 32), codes)
    points = codes_in_columns(packed(weight)["weight_zero_point"], bits, 32)
    assert torch.equal(points.T, zeros)
    assert torch.equal(codes_in_columns(gptq(weight)["qweight"], bits, 32), codes)
    assert torch.equal(codes_in_rows(gptq(weight, less=0)["qzeros"], bits, 32).T, zeros)
    if bits == 4:
        assert torch.equal(codes_of_awq(awq(weight)["qweight"]), codes)
        assert torch.equal(codes_of_awq(awq(weight)["qzeros"]), zeros)


def test_a_last_word_may_be_filled_in_part() -> None:
    assert (words_for(9, 4), words_for(8, 4), words_for(5, 8)) == (2, 1, 2)
    codes = torch.arange(9) % 16
    words = packed(Rounded(codes[None], torch.ones(1, 1), torch.full((1, 1), 8), 4, 9))
    found = codes_in_rows(words["weight_packed"], 4, 9)
    assert torch.equal(found[0].long(), codes)
