"""Products of a few rows with a panel of quantised weights, as LLVM instructions for numba.

As in `products` each output is one chain of fused multiply-adds, in ascending order. Decoding is
interleaved with multiplying: while rows are multiplied by one row of a block, the same row of the
next block is decoded into its place. The two use different units of the processor, which overlaps
them only if they are close to each other: it looks a few hundred instructions ahead at most.
"""

# mypy: disable-error-code="untyped-decorator"
# (numba has no type hints)

from __future__ import annotations

from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, register_jitable

from radixserve.kernels.cpu.compile import Intrinsic
from radixserve.kernels.cpu.gemm.panel_products import WIDTH, chains_of
from radixserve.kernels.cpu.products import add_product, store_all, store_row, vectors_at
from radixserve.kernels.cpu.vector import LANES, LINE, VECTOR, element_at, prefetch_line, vector_fma

GROUP = 32
"""Inputs of a panel that share scales and offsets."""

PREFETCH_BYTES = 256
"""Bytes of the next K/V to prefetch per input of the weight."""

_WORD = 32  # bits
_FRACTION = 23  # bits of a float's fraction
_INTEGERS = ir.VectorType(ir.IntType(_WORD), LANES)
_ROTATE = ir.FunctionType(_INTEGERS, [_INTEGERS] * 3)


class Records(NamedTuple):
    """Encoded inputs of one panel: one record for each GROUP of them. See `quantised` for the
    layout.
    """

    data: Any  # flat float32
    begin: Any  # element at which the first record begins
    ahead: Any  # floats from a record to the one that is prefetched while it is decoded
    bits: Any  # bits of a code: 4 or 8


@register_jitable  # compiled code calls it, too
def record_size(bits: int) -> int:
    """The length of a record in words of 32 bits (float32 or int32): 64 scales, 64 offsets, then
    the codes of GROUP inputs in rows of 64 words. With 4 bits it is 384, with 8 bits 640.
    """
    return (2 + GROUP * bits // _WORD) * WIDTH


def _coded_panel(rows: int) -> Intrinsic:
    """Generates sums[r, 0:64] += x[r, 0:depth] @ block[0:depth, 0:64] for `rows` rows of x, which
    also overwrites `block` with the next block, decoded from `later`.

    `later` is `Records`; `depth` is a multiple of GROUP. The other arguments are those of
    `panel_products`. For each input, PREFETCH_BYTES of the next K/V are prefetched, from the
    address `upcoming` on.
    """

    @intrinsic
    def multiply(
        typingctx: Any,
        x: Any,
        at: Any,
        inputs: Any,
        block: Any,
        sums: Any,
        to: Any,
        depth: Any,
        later: Any,
        upcoming: Any,
    ) -> Any:
        def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
            kinds, index = signature.args, args[6].type
            zero = ir.Constant(index, 0)
            starts = ((0, args[1]), (3, zero), (4, args[5]))
            x_data, values, out = (
                element_at(context, builder, kinds[i], args[i], start) for i, start in starts
            )
            outs, chains = chains_of(builder, out, rows)
            decoder = _Decoder(context, builder, kinds[7], args[7])
            groups = builder.udiv(args[6], ir.Constant(index, GROUP))
            with cgutils.for_range(builder, groups) as outer:
                record = decoder.record(outer.index)
                with cgutils.for_range(builder, ir.Constant(index, GROUP)) as loop:
                    place = builder.add(
                        builder.mul(outer.index, ir.Constant(index, GROUP)), loop.index
                    )
                    row = builder.gep(values, [builder.mul(place, ir.Constant(index, WIDTH))])
                    columns = vectors_at(builder, row, WIDTH // LANES)
                    for r in range(rows):
                        element = builder.add(builder.mul(ir.Constant(index, r), args[2]), place)
                        add_product(builder, builder.gep(x_data, [element]), columns, chains[r])
                    # This row has been read: the decoded row of the next block takes its place.
                    store_row(builder, decoder.row(record, loop.index), row)
                    _prefetch_upcoming(builder, args[8], place)
            for pointer, chain in zip(outs, chains, strict=True):
                store_all(builder, chain, pointer)
            return context.get_dummy_value()

        n = types.intp
        return types.void(x, n, n, block, sums, n, n, later, n), generate

    return multiply  # type: ignore[no-any-return]


def _prefetch_upcoming(builder: ir.IRBuilder, address: Any, i: Any) -> None:
    """Prefetch the i-th PREFETCH_BYTES from an address on. Every second cache line is enough,
    because processors load its neighbour with it.
    """
    place = builder.add(address, builder.mul(i, ir.Constant(i.type, PREFETCH_BYTES)))
    for offset in range(0, PREFETCH_BYTES, 2 * LINE * 4):
        line = builder.add(place, ir.Constant(i.type, offset))
        prefetch_line(builder, builder.inttoptr(line, ir.IntType(8).as_pointer()))


class _Record(NamedTuple):
    """One record whose scales and offsets are in registers."""

    begin: Any  # pointer to its first word
    scales: list[Any]  # vectors of LANES floats
    offsets: list[Any]  # vectors of LANES floats


class _Decoder:
    """Decodes rows of `Records`: offset + scale * (1 + code / 2**bits) for one input and 64
    outputs.

    The codes of an output stand in the bits of its words one behind the other. So input i of a
    record begins at bit i * bits: in word i * bits // 32 of the codes, i * bits % 32 bits up.
    """

    def __init__(self, context: Any, builder: ir.IRBuilder, kind: Any, records: Any) -> None:
        data, at, self._ahead, self._bits = (
            builder.extract_value(records, i) for i in range(len(Records._fields))
        )
        self._builder, self._index = builder, self._bits.type
        self._begin = element_at(context, builder, kind[0], data, at)
        self._size = builder.mul(builder.add(self._bits, self._number(2)), self._number(WIDTH))
        self._highest = builder.sub(self._number(_FRACTION), self._bits)
        one = self._number(1)
        self._kept = self._splat(
            builder.shl(builder.sub(builder.shl(one, self._bits), one), self._highest)
        )

    def record(self, i: Any) -> _Record:
        """Record i, with its scales and offsets loaded."""
        begin = self._builder.gep(self._begin, [self._builder.mul(i, self._size)])
        second = self._builder.gep(begin, [self._number(WIDTH)])
        return _Record(
            begin, *(vectors_at(self._builder, at, WIDTH // LANES) for at in (begin, second))
        )

    def row(self, record: _Record, i: Any) -> list[Any]:
        """Input i of a record, 64 floats as vectors. It also prefetches a part of the record
        `ahead`.
        """
        builder = self._builder
        self._prefetch_part(record.begin, i)
        bit = builder.mul(i, self._bits)
        word = builder.add(builder.udiv(bit, self._number(_WORD)), self._number(2))
        words = vectors_at(
            builder,
            builder.gep(record.begin, [builder.mul(word, self._number(WIDTH))]),
            WIDTH // LANES,
        )
        back = builder.urem(bit, self._number(_WORD))
        places = self._splat(builder.sub(builder.add(self._highest, self._number(_WORD)), back))
        codes = [self._code(each, places) for each in words]
        return [
            vector_fma(builder, *each)
            for each in zip(record.scales, codes, record.offsets, strict=True)
        ]

    def _prefetch_part(self, record: Any, i: Any) -> None:
        """Prefetch the i-th of GROUP equal parts of the record `ahead` floats further on: 12 floats
        of 4-bit codes, 20 of 8-bit codes. Two cache lines cover such a part wherever it begins.
        """
        place = self._builder.mul(i, self._builder.udiv(self._size, self._number(GROUP)))
        for line in range(2):
            further = self._builder.add(place, self._number(line * LINE))
            prefetch_line(
                self._builder, self._builder.gep(record, [self._builder.add(self._ahead, further)])
            )

    def _code(self, words: Any, places: Any) -> Any:
        """1 + code / 2**bits for each lane.

        A float in [1, 2) is the exponent of 1 and a fraction of 23 bits. `places` rotates each word
        until the code lies in the highest bits of the fraction, a mask keeps only these, and the
        exponent is set: rotate, and, or.
        """
        builder, whole = self._builder, self._builder.bitcast(words, _INTEGERS)
        rotate = cgutils.get_or_insert_function(
            builder.module, _ROTATE, f"llvm.fshl.v{LANES}i{_WORD}"
        )
        moved = builder.call(rotate, [whole, whole, places])
        one = ir.Constant(_INTEGERS, [127 << _FRACTION] * LANES)
        return builder.bitcast(builder.or_(builder.and_(moved, self._kept), one), VECTOR)

    def _number(self, value: int) -> Any:
        return ir.Constant(self._index, value)

    def _splat(self, scalar: Any) -> Any:
        """A vector of int32 that holds a scalar in every lane."""
        builder, number = self._builder, ir.IntType(_WORD)
        short, empty = self._builder.trunc(scalar, number), ir.Constant(_INTEGERS, ir.Undefined)
        vector = builder.insert_element(empty, short, ir.Constant(number, 0))
        return builder.shuffle_vector(vector, vector, ir.Constant(_INTEGERS, [0] * LANES))


coded_0, coded_1, coded_2, coded_3, coded_4 = (_coded_panel(rows) for rows in range(5))
