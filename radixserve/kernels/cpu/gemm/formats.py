"""How weights that are kept as codes lie in memory.

A *format* says how a value is made of a code, and how many inputs share the numbers for that:

    value = scale * (code - zero)
    value = scale * code + minimum
    value = (scale * byte) * code + minimum * byte

In the last one a block of inputs has a scale and a minimum, and each group of the block has bytes
for both; there may be bytes without minimums, too, with a `zero`. What follows the product of scale
and byte, which is exact, is rounded once, as one fused multiply-add. Nothing here depends on where
codes come from: a format is a value of `Format`, whoever reads a file makes `Codes` of it
(`codes`), and one family of kernels multiplies them all (`decoding`, `integers`, `vectors`).

A panel of 64 outputs is one record for each `block` inputs. All numbers of a record are for 64
outputs, one behind the other:

    scales     64 of half precision or float32
    minimums   the same, if the format has them
    bytes      64 int8 for each group, if the format is nested; then those of the minimums
    codes      for each 32 inputs (a unit) one plane behind the other

A plane holds some bits of the codes, the lowest bits first, such as 4 and 2 of codes of 6 bits. Its
words of 32 bits hold four consecutive inputs of an output, a quad, one in each byte; a plane of
4 bits has two quads in a word, one of 2 bits four:

    bits of a byte     7 6 5 4     3 2 1 0
    plane of 4 bits    quad 1      quad 0          word 1: quads 3 and 2, ... word 3: 7 and 6
"""

from __future__ import annotations

from dataclasses import dataclass

from radixserve.kernels.cpu.gemm.panel_products import WIDTH

UNIT = 32
"""Inputs whose codes lie together, and which activations are scaled by."""

QUAD = 4
"""Inputs of a word."""

QUADS = UNIT // QUAD
"""Quads of a unit."""

_WORD = 32  # bits


@dataclass(frozen=True, slots=True)
class Format:
    """One format; see the top. Kernels are compiled for each."""

    name: str  # letters, digits and underscores
    planes: tuple[int, ...]  # bits of each plane, 1, 2, 4 or 8, the lowest bits of a code first
    zero: int = 0  # the code of the value 0, where there is no minimum
    block: int = UNIT  # inputs of a record, which share a scale and a minimum
    group: int = UNIT  # inputs that share bytes: 16, or a multiple of 32; without bytes `block`
    has_minimum: bool = False
    is_nested: bool = False  # groups have bytes
    scale_bits: int = 16  # of scales and minimums: 16 (half precision) or 32 (float32)

    @property
    def bits(self) -> int:
        """Bits of a code."""
        return sum(self.planes)

    @property
    def groups(self) -> int:
        """Groups of a record."""
        return self.block // self.group

    @property
    def units(self) -> int:
        """Units of a record."""
        return self.block // UNIT

    @property
    def scale_words(self) -> int:
        """Words of the scales of a record, and of its minimums if it has them."""
        return WIDTH * self.scale_bits // _WORD

    @property
    def bytes_at(self) -> int:
        """The word of a record at which its bytes begin."""
        return self.scale_words * (1 + self.has_minimum)

    @property
    def codes_at(self) -> int:
        """The word of a record at which its codes begin."""
        words = self.groups * WIDTH // QUAD
        return self.bytes_at + self.is_nested * words * (1 + self.has_minimum)

    @property
    def unit_words(self) -> int:
        """Words of the codes of a unit."""
        return WIDTH * self.bits

    @property
    def record_words(self) -> int:
        """Words of a record."""
        return self.codes_at + self.units * self.unit_words

    @property
    def unit_share(self) -> int:
        """Words of a record for each of its units, rounded up."""
        return -(-self.record_words // self.units)

    def words(self, inputs: int) -> int:
        """Words of a panel of so many inputs, a multiple of `block`."""
        return inputs // self.block * self.record_words


def halves_of(format: Format) -> int:
    """How many parts of a unit have scales of their own: 2 where groups are of 16 inputs."""
    return 2 if format.group < UNIT else 1


def grid(bits: int) -> Format:
    """The format of 32 inputs whose values lie on any grid of 4 or 8 bits (`quantised`)."""
    return Format(f"grid_{bits}", (bits,), has_minimum=True, scale_bits=_WORD)
