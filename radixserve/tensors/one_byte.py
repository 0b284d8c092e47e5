"""K/V in one byte per number: how numbers become a row of a pool, and a row becomes numbers again.

Each head of each token has a scale of its own, which is written once, together with the numbers. So
a row's bytes depend on that row alone, and whoever reads them reads the same numbers: answers are
exact with respect to K/V of this dtype.

    numbers      -3.0   0.5   1.5         largest of all absolute values: 3.0
    scale        3.0 / 127 = 0.0236       (fp8: 3.0 / 448)
    int8         -127   21    64          number / scale, to the nearest integer, ties to even
    row          81 15 40 | 0.0236        bytes of the numbers, then 4 bytes of the scale (float32)
    read again   -3.0   0.496 1.512       byte * scale

A row that holds NaN or an infinity gets the scale NaN: all of its numbers are NaN when they are
read. A row whose scale would be below the normal floats becomes zeros. `kernels.cpu.rows` writes
and `kernels.cpu.attention.loads` reads the same bits on the CPU.
"""

from __future__ import annotations

import torch

from radixserve.tensors.kv import SCALE_BYTES, SCALED

_LARGEST = {torch.int8: 127.0, torch.uint8: 448.0}  # numbers of one byte


def rows_of(numbers: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Rows of a pool of `dtype` for numbers [..., dim] of any floating dtype: [..., dim], or [...,
    dim + SCALE_BYTES] where the dtype has scales.
    """
    if dtype not in SCALED:
        return numbers.to(dtype)
    numbers = numbers.float()
    scale = _scale(numbers, dtype)
    ratios = torch.where(scale > 0, numbers / scale, torch.zeros_like(numbers))
    codes = ratios.round() if dtype == torch.int8 else ratios.to(torch.float8_e4m3fn)
    codes = codes.to(torch.int8) if dtype == torch.int8 else codes
    return torch.cat([codes.view(dtype), scale.contiguous().view(dtype)], -1)


def numbers_of(rows: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The numbers [..., dim] of rows of a pool of `dtype`: float32 where the dtype has scales, else
    the rows themselves.
    """
    if dtype not in SCALED:
        return rows
    codes, scale = rows[..., :-SCALE_BYTES], rows[..., -SCALE_BYTES:].contiguous()
    codes = codes if dtype == torch.int8 else codes.contiguous().view(torch.float8_e4m3fn)
    return codes.float() * scale.view(torch.float32)


def _scale(numbers: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The scale of each row, float32 [..., 1]."""
    scale = numbers.abs().amax(-1, keepdim=True) / _LARGEST[dtype]
    scale = torch.where(scale < torch.finfo(torch.float32).tiny, 0.0, scale)
    return torch.where(scale.isfinite(), scale, torch.nan)
