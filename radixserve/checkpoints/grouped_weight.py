"""Weights whose inputs share a scale by groups, as checkpoints of compressed-tensors, GPTQ and AWQ
have them:

    value = scale * (code - zero)

Whoever reads a checkpoint makes a `GroupedWeight` of each weight, with one code in a byte; `packed`
brings them into the form that kernels multiply. Knows no files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from radixserve.kernels.cpu.gemm.codes import Codes, Packing
from radixserve.kernels.cpu.gemm.formats import UNIT, Format

_BLOCKS = (128, 64, UNIT)
"""Inputs of a record. Where more share a scale, it is repeated in each record, so that one kernel
serves all larger groups.
"""
_SCALES = (torch.float16, torch.bfloat16, torch.float32)


@dataclass(frozen=True, slots=True)
class GroupedWeight:
    """One weight [outputs, inputs] as codes."""

    codes: torch.Tensor  # uint8 [outputs, inputs]
    bits: int  # of a code: 4 or 8
    group: int  # inputs that share a scale, a multiple of 32; the last group may have fewer
    scales: torch.Tensor  # [outputs, groups], float16, bfloat16 or float32
    zeros: torch.Tensor | int  # uint8 [outputs, groups], or one for all: the code of the value 0
    order: torch.Tensor | None = None  # the group of each input [inputs], where it is another one

    def __post_init__(self) -> None:
        """Raises ValueError, which says what does not fit together or is not supported."""
        self._refuse_codes()
        self._refuse_scales()
        self._refuse_zeros()
        if self.order is not None and not torch.equal(self.order.long(), self._in_order()):
            raise ValueError(
                "its groups are not neighbouring inputs (an order of activations), which is not "
                "supported"
            )

    @property
    def is_symmetric(self) -> bool:
        """Whether the code of the value 0 is everywhere the one in the middle."""
        return bool((torch.as_tensor(self.zeros) == 1 << (self.bits - 1)).all())

    @property
    def format(self) -> Format:
        """The format that it is packed in. Scales of half precision stay as they are where there
        are no minimums.
        """
        inputs = self.codes.shape[1]
        block = next(each for each in _BLOCKS if not self.group % each and not inputs % each)
        is_symmetric = self.is_symmetric
        scale_bits = 16 if is_symmetric and self.scales.dtype == torch.float16 else 32
        kind = "symmetric" if is_symmetric else "zeros"
        return Format(
            f"int{self.bits}_{kind}_{block}_{scale_bits}",
            (self.bits,),
            zero=1 << (self.bits - 1) if is_symmetric else 0,
            block=block,
            group=block,
            has_minimum=not is_symmetric,
            scale_bits=scale_bits,
        )

    def values(self) -> torch.Tensor:
        """The values [outputs, inputs] that are multiplied, float32. Those of scales in half
        precision or bfloat16 are exactly `scale * (code - zero)`. The kernels add the product
        `-scale * zero`, rounded to float32, so other values may differ in their last bits.
        """
        groups = self._in_order()
        scaled = self.scales.double()[:, groups] * self.codes
        return (scaled + self._minimums().double()[:, groups]).float()

    def as_codes(self) -> Codes:
        """What `format` makes the values of."""
        format = self.format
        records = torch.arange(0, self.codes.shape[1], format.block) // self.group
        dtype = torch.float16 if format.scale_bits == 16 else torch.float32
        return Codes(
            self.codes.numpy(),
            self.scales.to(dtype)[:, records].numpy(),
            self._minimums()[:, records].numpy() if format.has_minimum else None,
        )

    def _minimums(self) -> torch.Tensor:
        """The value of code 0 for each group, float32."""
        return -self.scales.float() * self.zeros

    def _in_order(self) -> torch.Tensor:
        """The group of each input if groups are neighbouring inputs."""
        return torch.arange(self.codes.shape[1]) // self.group

    def _refuse_codes(self) -> None:
        if self.bits not in (4, 8):
            raise ValueError(f"codes of {self.bits} bits are not supported, only of 4 or 8")
        if self.codes.dtype != torch.uint8 or self.codes.dim() != 2:
            raise ValueError("its codes are no matrix of bytes")
        if not self.codes.numel() or int(self.codes.max()) >> self.bits:
            raise ValueError(f"its codes are not numbers of {self.bits} bits")
        if self.codes.shape[1] % UNIT:
            raise ValueError(f"{self.codes.shape[1]} inputs are not a multiple of {UNIT}")
        if self.group < 1 or self.group % UNIT:
            raise ValueError(f"groups of {self.group} inputs are not a multiple of {UNIT}")
        if self.group > self.codes.shape[1]:
            raise ValueError(f"groups of {self.group} inputs, but it has {self.codes.shape[1]}")

    def _refuse_scales(self) -> None:
        if self.scales.dtype not in _SCALES:
            raise ValueError(f"scales of {self.scales.dtype} are not supported")
        shape = self.codes.shape[0], -(-self.codes.shape[1] // self.group)
        if tuple(self.scales.shape) != shape:
            raise ValueError(f"its scales are {list(self.scales.shape)} and not {list(shape)}")
        most = self.scales.float().abs().max() * 256
        if not most.isfinite():
            raise ValueError("its scales are not finite, or so large that its values are not")

    def _refuse_zeros(self) -> None:
        if isinstance(self.zeros, int):
            if not 0 <= self.zeros < 256:
                raise ValueError(f"its zero is {self.zeros}, which is no byte")
        elif self.zeros.dtype != torch.uint8 or self.zeros.shape != self.scales.shape:
            raise ValueError("its zeros are not a byte for each scale")


def packed(weights: Sequence[GroupedWeight]) -> Packing:
    """Weights of one format and number of inputs, one below the other, packed. Takes the memory of
    their codes, one a byte, once more.
    """
    joined = Codes.joined([each.as_codes() for each in weights])
    packing = Packing(weights[0].format, joined.codes.shape)
    packing.put(0, joined)
    return packing
