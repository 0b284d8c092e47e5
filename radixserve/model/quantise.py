"""Quantises weights of floats while a model is loaded (the setting `quantize`): one weight at a
time, whatever they were stored as.

    int8    value = scale * (code - 128)        8.5 bits a value
    int4    value = scale * code + minimum      5 bits

32 inputs share a scale and a minimum, in half precision: the formats of Q8_0 and Q4_1 in GGUF
files, whose kernels are used. Without minimums, or with 64 inputs, int4 would take 4.5 bits and be
off by a tenth more (root mean square, for normally distributed weights). What is quantised is
decided by whoever packs the layers of a model (`model.rowwise`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from radixserve.checkpoints.gguf_blocks import FORMATS
from radixserve.errors import ModelRefused
from radixserve.kernels.cpu.gemm.call import Gemm
from radixserve.kernels.cpu.gemm.codes import Codes, Packing
from radixserve.kernels.cpu.gemm.formats import UNIT, Format
from radixserve.kernels.cpu.gemm.panel_products import WIDTH
from radixserve.tensors.origins import Origin, note, origin_of

Quantize = Literal["none", "int8", "int4"]
"""The values of the setting."""

QUANTISED = "quantised"
"""The function of an origin (`tensors.origins`) that is `packing_of`."""

BITS: dict[Quantize, int | None] = {"none": None, "int8": 8, "int4": 4}
"""The bits of a code, by the value of the setting."""

OUTPUT_BITS = 8
"""The bits of a code in the output layer: with 4 of them it alone changes the logits more than all
layers do.
"""
_FORMATS = {8: FORMATS["Q8_0"], 4: FORMATS["Q4_1"]}
_AT_A_TIME = 1 << 18  # values
_MOST_ERROR = 2.0**-10  # of a product, as a part of the sum of the sizes of what is added


@dataclass(frozen=True, slots=True)
class Quantised:
    """One weight [out, in] as codes."""

    packing: Packing
    product: torch.Tensor  # of the values that the codes stand for, with `_probe`, [out], float32
    size: torch.Tensor  # the same of the absolute values


def packed_linear(weight: torch.Tensor, bias: torch.Tensor | None, bits: int | None) -> Gemm:
    """The packed weight [out, in] of a linear, quantised to codes of 4 or 8 bits if `bits` says so.
    It keeps its values if its inputs are not whole groups, or if half precision does not hold them.

    Raises:
        ModelRefused: the codes multiply to something else than their values do.
    """
    if bits is None or weight.shape[1] % UNIT:
        return Gemm(weight, bias)
    found = _quantised(weight, _FORMATS[bits])
    if not found.product.isfinite().all():
        return Gemm(weight, bias)
    origin = origin_of(weight)
    note(found.packing.memory, None if origin is None else Origin(QUANTISED, (origin, bits)))
    gemm = Gemm(found.packing, bias, weight.dtype)
    _refuse_wrong(gemm, found)
    return gemm


def packing_of(weight: torch.Tensor, bits: int) -> Packing:
    """The codes of a weight that was quantised by `packed_linear` at an earlier start."""
    return _quantised(weight, _FORMATS[bits]).packing


def fewer_bytes(sizes: Sequence[int], dtype: torch.dtype, bits: int) -> int:
    """How many bytes fewer than as `dtype` weights of so many values take as codes, while they are
    quantised one after the other: the largest is there as `dtype`, too.
    """
    values, largest = sum(sizes), max(sizes, default=0)
    return (values - largest) * dtype.itemsize - num_bytes(values, bits)


def num_bytes(num_values: int, bits: int) -> int:
    """Bytes that so many values take as codes."""
    return num_values // UNIT * _FORMATS[bits].record_words * 4 // WIDTH


def _quantised(weight: torch.Tensor, format: Format) -> Quantised:
    outputs, inputs = weight.shape
    packing = Packing(format, (outputs, inputs))
    step = max(1, _AT_A_TIME // (inputs * WIDTH)) * WIDTH
    x, products, sizes = _probe(inputs), [], []
    for first in range(0, outputs, step):
        groups = weight[first : first + step].float().reshape(-1, inputs // UNIT, UNIT)
        codes = _with_minimum(groups) if format.has_minimum else _symmetric(groups)
        packing.put(first, codes)
        values = _values(codes, format)
        products.append(values @ x)
        sizes.append(values.abs() @ x.abs())
    return Quantised(packing, torch.cat(products), torch.cat(sizes))


def _symmetric(groups: torch.Tensor) -> Codes:
    """Codes of 8 bits for groups [rows, groups, inputs]."""
    scales = (groups.abs().amax(-1, keepdim=True) / 127).half()
    codes = (groups / _divisors(scales)).round_().clamp_(-127, 127) + 128
    return Codes(codes.to(torch.uint8).flatten(1).numpy(), scales[..., 0].numpy())


def _with_minimum(groups: torch.Tensor) -> Codes:
    """Codes of 4 bits for groups [rows, groups, inputs]."""
    low, high = groups.aminmax(dim=-1, keepdim=True)
    scales, minimums = ((high - low) / 15).half(), low.half()
    codes = ((groups - minimums.float()) / _divisors(scales)).round_().clamp_(0, 15)
    numbers = (each[..., 0].numpy() for each in (scales, minimums))
    return Codes(codes.to(torch.uint8).flatten(1).numpy(), *numbers)


def _divisors(scales: torch.Tensor) -> torch.Tensor:
    """Scales to divide by, in float32. A group whose scale is 0 has one value, whatever its codes
    are.
    """
    wide = scales.float()
    return wide.where(wide > 0, 1)


def _values(codes: Codes, format: Format) -> torch.Tensor:
    """The values [rows, inputs] of codes, float32."""
    numbers = [codes.scales] if codes.minimums is None else [codes.scales, codes.minimums]
    scales, *minimums = (torch.from_numpy(each).float()[..., None] for each in numbers)
    rows, groups = codes.scales.shape
    values = torch.from_numpy(codes.codes).view(rows, groups, UNIT).float() - format.zero
    values *= scales
    return (values + minimums[0] if minimums else values).flatten(1)


def _probe(inputs: int) -> torch.Tensor:
    """Random numbers [inputs] that a weight is tried with."""
    return torch.randn(inputs, generator=torch.Generator().manual_seed(0)).bfloat16().float()


def _refuse_wrong(gemm: Gemm, found: Quantised) -> None:
    """Compare a product with the packed codes to that with their values."""
    x = _probe(gemm.in_features).to(gemm.dtype)
    bias = torch.zeros(gemm.out_features) if gemm.bias is None else gemm.bias
    wrong = (gemm.unrounded(x[None])[0] - bias - found.product).abs()
    if not wrong.le(_MOST_ERROR * (found.size + bias.abs())).all():
        raise ModelRefused(
            "The codes of a quantised weight multiply to something else than their values do."
        )
