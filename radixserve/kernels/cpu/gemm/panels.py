"""Weights packed into panels of 64 outputs, the order in which GEMM kernels read them.

    weight [out, in]  ->  float32   [panels][in][64]
                          bfloat16  [panels][in / 2][64][2], inputs padded to a multiple of 32
                          codes     see `formats`

Outputs are padded to whole panels; all padding is zeros. A weight of floats is kept in the smallest
form that gives back every value, bit for bit: codes of 4 or 8 bits, bfloat16, float32. A weight
that comes in codes keeps them. Knows nothing of how rows are multiplied.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from radixserve.kernels.cpu.amx import STEP
from radixserve.kernels.cpu.gemm.codes import Packing
from radixserve.kernels.cpu.gemm.formats import Format
from radixserve.kernels.cpu.gemm.panel_products import WIDTH
from radixserve.kernels.cpu.gemm.quantised import packed_codes
from radixserve.kernels.cpu.pages import empty

FLOAT_BITS, BFLOAT_BITS = 32, 16
_LOWER_HALF = 0xFFFF
_CHECKED = 1 << 20  # values that are looked at in one go


@dataclass(frozen=True, slots=True)
class Panels:
    """One packed weight."""

    memory: torch.Tensor  # flat, seen as float32 whatever it holds
    bits: int  # of a number: 32, 16 (bfloat16), or those of a code
    shape: tuple[int, int]  # (out, in), without padding
    padded: int  # inputs, with padding
    format: Format | None = None  # of codes

    @classmethod
    def of(cls, weight: torch.Tensor) -> Panels:
        """Pack a weight [out, in], float32 or bfloat16, on the CPU. It is not changed.

        Cost: reading and writing it some times. Looking for codes takes some 10 ns per value and
        thread if there are any.
        """
        shape = weight.shape[0], weight.shape[1]
        if weight.dtype == torch.float32:
            whole = _with_whole_panels(weight).contiguous()
            packing = packed_codes(whole)
            if packing is not None:
                return replace(cls.of_codes(packing), shape=shape)
            if not fits_bfloat16(weight):
                return cls(_packed(whole), FLOAT_BITS, shape, shape[1])
        padded = -(-shape[1] // STEP) * STEP
        halves = F.pad(_with_whole_panels(weight.bfloat16()), (0, padded - shape[1])).contiguous()
        # Pairs of inputs stay together, so they are moved as one word.
        return cls(_packed(halves.view(torch.float32)), BFLOAT_BITS, shape, padded)

    @classmethod
    def of_codes(cls, packing: Packing) -> Panels:
        """A weight that was packed as codes."""
        format, shape = packing.format, packing.shape
        return cls(packing.memory, format.bits, shape, shape[1], format)


def fits_bfloat16(weight: torch.Tensor) -> bool:
    """Whether bfloat16 holds every value of a float32 tensor exactly: the lower half of its bits is
    zero.
    """
    rows = max(1, _CHECKED // weight.shape[1])
    parts = torch.split(weight.contiguous().view(torch.int32), rows)
    return all(not bool((part & _LOWER_HALF).any()) for part in parts)


def _packed(words: torch.Tensor) -> torch.Tensor:
    """Words [out, in] of 4 bytes in the order of panels, flat."""
    panels = words.view(torch.int32).view(-1, WIDTH, words.shape[1]).transpose(1, 2)
    memory = empty(panels.numel())
    memory.view(torch.int32).view(panels.shape).copy_(panels)
    return memory


def _with_whole_panels(weight: torch.Tensor) -> torch.Tensor:
    missing = -len(weight) % WIDTH
    return F.pad(weight, (0, 0, 0, missing)) if missing else weight
