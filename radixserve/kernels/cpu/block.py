"""How kernels get their arguments: as one block of memory with named fields.

A thread of a kernel is given one pointer. So a kernel's arguments are declared once, as a class:

    class ScaleBlock(Block):
        source: Numbers  # [rows * width]
        weight: Float32s  # [width]
        rows: Int

Python writes the fields by name, and compiled code reads all of them by name:

    block = ScaleBlock(source=tensor, weight=weight, rows=3)
    threads.run(native.address(scale), block.address, parallel=True)

    def scale(address):  # compiled
        block = ScaleBlock.read(address)
        block.source[0] * block.weight[0]

In memory a field is one or more words of 8 bytes, in the order of the declaration: an array is its
address and its number of elements, a number is one word, a block within a block is its own words.
"""

# mypy: disable-error-code="untyped-decorator"
# (numba has no type hints)

from __future__ import annotations

from collections import namedtuple
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Self, get_args, get_origin, get_type_hints

import numba
import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, typeof_impl

from radixserve.kernels.cpu.compile import LINE_BYTES, Intrinsic, array_of

WORD = 8
"""Bytes of a word."""


@dataclass(frozen=True)
class Elements:
    """The kind of a field that holds a flat array, and the types that its elements may have. All
    fields of a block with the same `group` have the same type.
    """

    allowed: tuple[np.dtype[Any], ...]
    group: str = ""

    words: ClassVar[int] = 2

    @classmethod
    def of(cls, dtype: Any) -> Elements:
        """Elements of one type, which may be a numpy type of records with named fields."""
        return cls((np.dtype(dtype),))


@dataclass(frozen=True)
class Number:
    """The kind of a field that holds a number: an int64, or a float32 in the lower half of the
    word.
    """

    is_float: bool

    words: ClassVar[int] = 1

    @property
    def step(self) -> int:
        """How many numbers of this type a word has room for."""
        return 2 if self.is_float else 1


_ACTIVATIONS = (np.dtype(np.float32), np.dtype(np.uint16))
_ONE_BYTE = (np.dtype(np.int8), np.dtype(np.uint8))

Numbers = Annotated[Any, Elements(_ACTIVATIONS, "numbers")]
"""Activations: float32, or bfloat16, which compiled code sees as uint16. All fields of this kind in
one block have the same type.
"""
KVNumbers = Annotated[Any, Elements(_ACTIVATIONS + _ONE_BYTE, "kv")]
"""K or V in a pool: float32, bfloat16 (uint16), or rows of one-byte numbers with scales, int8 or
fp8 (uint8). All fields of this kind in one block have the same type.
"""
Float32s = Annotated[Any, Elements.of(np.float32)]
BFloat16s = Annotated[Any, Elements.of(np.uint16)]
Int8s = Annotated[Any, Elements.of(np.int8)]
UInt8s = Annotated[Any, Elements.of(np.uint8)]
Int32s = Annotated[Any, Elements.of(np.int32)]
UInt32s = Annotated[Any, Elements.of(np.uint32)]
Int64s = Annotated[Any, Elements.of(np.int64)]
Int = Annotated[int, Number(False)]
Float = Annotated[float, Number(True)]

_NUMPY = {
    torch.float32: np.dtype(np.float32),
    torch.bfloat16: np.dtype(np.uint16),
    torch.int8: np.dtype(np.int8),
    torch.uint8: np.dtype(np.uint8),
    torch.int32: np.dtype(np.int32),
    torch.int64: np.dtype(np.int64),
}
_WORD = ir.IntType(64)


class _Readable(type):
    """The type of all classes of blocks."""


class Block(metaclass=_Readable):
    """A kernel's arguments; see the top. Subclasses declare the fields.

    A field of an array takes a contiguous tensor on the CPU or a contiguous numpy array of a type
    that the field allows; None makes it empty. Only the address is kept: whoever sets a field keeps
    the memory alive until the kernel has run. Cost: about a microsecond per field.
    """

    fields: ClassVar[dict[str, Field]] = {}
    length: ClassVar[int] = 0  # in words
    record: ClassVar[type[tuple[Any, ...]]]  # what compiled code reads
    address: int

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.fields = _declared(cls)
        cls.length = sum(field.words for field in cls.fields.values())
        cls.record = namedtuple(cls.__name__, list(cls.fields))  # type: ignore[misc]
        cls.read = cls.reader(torch.float32)  # type: ignore[method-assign]
        cls.read_bfloat16 = cls.reader(torch.bfloat16)  # type: ignore[method-assign]

    @classmethod
    def read(cls, address: Any) -> Self:
        """Compiled code only: the fields of the block at `address`, by name. `Numbers` and
        `KVNumbers` are float32.
        """
        raise NotImplementedError("compiled code reads a block")

    @classmethod
    def read_bfloat16(cls, address: Any) -> Self:
        """`read`, where `Numbers` and `KVNumbers` are bfloat16."""
        raise NotImplementedError("compiled code reads a block")

    @classmethod
    def reader(cls, numbers: torch.dtype, kv: torch.dtype | None = None) -> Intrinsic:
        """`read` for compiled code, where `Numbers` and `KVNumbers` have these dtypes; by default
        both the same.
        """
        kinds = {"numbers": numbers, "kv": kv or numbers}
        return _reader(cls, {name: numba.from_dtype(_NUMPY[kinds[name]]) for name in kinds})

    def __init__(self, **values: Any) -> None:
        """Raises: as `set`; fields that are not named are empty or 0."""
        self._place(np.zeros(type(self).length, np.int64))
        self.set(**values)

    def _place(self, words: Any) -> None:
        """Let the block lie in `words`."""
        put = object.__setattr__
        put(self, "_memory", words)
        # Writing a word through a memoryview takes half the time of writing it through numpy.
        put(self, "_words", memoryview(words))
        put(self, "_floats", memoryview(words.view(np.float32)))
        put(self, "address", words.ctypes.data)
        put(self, "_groups", {})
        for name, field in type(self).fields.items():
            if isinstance(field.kind, type):
                inner = object.__new__(field.kind)
                inner._place(words[field.place : field.place + field.words])
                put(self, name, inner)

    def set(self, **values: Any) -> None:
        """Set fields by name.

        Raises:
            AttributeError: there is no field of that name.
            TypeError: the value has a type that the field does not allow.
            ValueError: the tensor or array is not contiguous, or not in the CPU's memory.
        """
        for name, value in values.items():
            setattr(self, name, value)

    def __setattr__(self, name: str, value: Any) -> None:
        field = type(self).fields.get(name)
        if field is None or isinstance(field.kind, type):
            raise AttributeError(f"{type(self).__name__} has no field {name} to set")
        place, kind = field.place, field.kind
        if isinstance(kind, Number):
            (self._floats if kind.is_float else self._words)[place * kind.step] = value
        elif value is None:
            self._words[place + 1] = 0
        else:
            self._check(name, kind, value)
            self._words[place], self._words[place + 1] = _memory_of(value)

    def __getattr__(self, name: str) -> Any:
        """The value of a number; an array cannot be read back."""
        field = type(self).fields.get(name)
        if field is None or not isinstance(field.kind, Number):
            raise AttributeError(f"{type(self).__name__} has no number {name}")
        memory = self._floats if field.kind.is_float else self._words
        return memory[field.place * field.kind.step]

    def _check(self, name: str, kind: Elements, value: Any) -> None:
        """Refuse an array that is not what compiled code takes it for."""
        dtype = _NUMPY.get(value.dtype, value.dtype)
        if dtype not in kind.allowed:
            allowed = " or ".join(str(each) for each in kind.allowed)
            name = f"{type(self).__name__}.{name}"
            raise TypeError(f"{name} takes {allowed} (bfloat16 is uint16), not {value.dtype}")
        if not _is_flat(value):
            name = f"{type(self).__name__}.{name}"
            raise ValueError(f"{name} takes contiguous memory of the CPU")
        if kind.group and self._groups.setdefault(kind.group, dtype) != dtype:
            name, other = f"{type(self).__name__}.{name}", self._groups[kind.group]
            raise TypeError(f"{name} is {dtype}, but another field of the block {other}")


def _memory_of(value: Any) -> tuple[int, int]:
    """Address and number of elements of a tensor or an array."""
    if isinstance(value, torch.Tensor):
        return value.data_ptr(), value.numel()
    return value.__array_interface__["data"][0], value.size


def _is_flat(value: Any) -> bool:
    """Whether the elements of a tensor or an array lie one behind the other in the CPU's memory."""
    if isinstance(value, torch.Tensor):
        return value.is_contiguous() and value.is_cpu
    return bool(value.flags.c_contiguous)


Kind = Elements | Number | type[Block]


@dataclass(frozen=True)
class Field:
    """One field of a block: its kind, and its words [place, place + words)."""

    kind: Kind
    place: int
    words: int


class BlockMemory:
    """Some equal blocks with memory for all their arrays, for example one for each thread.

    Every array begins at a cache line, because reading a vector that lies across two lines costs
    twice. The memory lives as long as this object. Cost: some vectorised numpy.
    """

    def __init__(self, kind: type[Block], copies: int, lengths: Mapping[str, int]) -> None:
        """`lengths` gives the number of elements of every array; that of a block within the block
        is named as in `sums.values`.
        """
        arrays = _arrays(kind)
        assert arrays.keys() == lengths.keys(), arrays.keys() ^ lengths.keys()
        place = np.array([place for place, _ in arrays.values()])
        length = np.array([lengths[name] for name in arrays])
        size = -(-length * [size for _, size in arrays.values()] // LINE_BYTES) * LINE_BYTES
        total, copy = int(size.sum()), np.arange(copies)
        self._memory = np.empty(copies * total + LINE_BYTES, np.uint8)
        begin = -(-self._memory.ctypes.data // LINE_BYTES) * LINE_BYTES
        self._words = np.zeros((copies, kind.length), np.int64)
        self._words[:, place] = begin + copy[:, None] * total + np.cumsum(size) - size
        self._words[:, place + 1] = length
        self.addresses = self._words.ctypes.data + copy * kind.length * WORD
        """int64 [copies]: a field `Int64s` by which compiled code finds the blocks."""


def _arrays(kind: type[Block]) -> dict[str, tuple[int, int]]:
    """Place and bytes of an element of all arrays of a block and of the blocks within it."""
    found = {}
    for name, field in kind.fields.items():
        if isinstance(field.kind, type):
            for inner, (place, size) in _arrays(field.kind).items():
                found[f"{name}.{inner}"] = field.place + place, size
        elif isinstance(field.kind, Elements):
            found[name] = field.place, max(each.itemsize for each in field.kind.allowed)
    return found


def addresses(blocks: Sequence[Block]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The addresses of some blocks, for a field `Int64s` of which compiled code reads them."""
    return np.array([block.address for block in blocks], np.int64)


def _declared(block: type[Block]) -> dict[str, Field]:
    """The fields that a class declares, in that order."""
    hints = get_type_hints(block, include_extras=True)
    fields: dict[str, Field] = {}
    place = 0
    for name in block.__annotations__:
        kind = _kind(hints[name], f"{block.__name__}.{name}")
        words = kind.length if isinstance(kind, type) else kind.words
        fields[name] = Field(kind, place, words)
        place += words
    return fields


def _kind(hint: Any, name: str) -> Kind:
    if isinstance(hint, type) and issubclass(hint, Block):
        return hint
    if get_origin(hint) is Annotated:
        kind = get_args(hint)[1]
        if isinstance(kind, Elements | Number):
            return kind
    raise TypeError(f"{name} has no kind that a block can hold")


@typeof_impl.register(_Readable)
def _class_in_compiled_code(block: type[Block], context: Any) -> types.Type:
    """numba looks `read` up in a block's class as it does in a module."""
    return types.Module(block)


def _reader(block: type[Block], groups: Mapping[str, types.Type]) -> Intrinsic:
    """Generates: the fields of the block at an address, as a named tuple. `groups` gives the
    elements' types of grouped fields.
    """
    kind = _tuple_of(block, groups)

    @intrinsic
    def read(typingctx: Any, address: Any) -> Any:
        def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
            place = args[0]
            if isinstance(place.type, ir.IntType):
                place = builder.inttoptr(place, _WORD.as_pointer())
            words = builder.bitcast(place, _WORD.as_pointer())
            return _values(context, builder, kind, block, words)

        return kind(address), generate

    return read  # type: ignore[no-any-return]


def _tuple_of(block: type[Block], groups: Mapping[str, types.Type]) -> types.NamedTuple:
    """The type of the named tuple of a block, with these types of grouped fields."""

    def kind_of(field: Field) -> types.Type:
        kind = field.kind
        if isinstance(kind, type):
            return _tuple_of(kind, groups)
        if isinstance(kind, Number):
            return types.float32 if kind.is_float else types.int64
        element = groups[kind.group] if kind.group else numba.from_dtype(kind.allowed[0])
        return types.Array(element, 1, "C")

    return types.NamedTuple([kind_of(field) for field in block.fields.values()], block.record)


def _values(
    context: Any, builder: ir.IRBuilder, kind: types.NamedTuple, block: type[Block], words: Any
) -> Any:
    """The named tuple of the block that begins at the pointer `words`."""

    def word(place: int) -> Any:
        return builder.gep(words, [ir.Constant(_WORD, place)])

    def value(field: Field, part: types.Type) -> Any:
        place = word(field.place)
        if isinstance(field.kind, type):
            return _values(context, builder, part, field.kind, place)
        if isinstance(field.kind, Number):
            return builder.load(builder.bitcast(place, context.get_data_type(part).as_pointer()))
        data = context.get_data_type(part.dtype).as_pointer()
        begin = builder.inttoptr(builder.load(place), data)
        return array_of(context, builder, part, begin, builder.load(word(field.place + 1)))

    parts = zip(block.fields.values(), kind.types, strict=True)
    return context.make_tuple(builder, kind, [value(field, part) for field, part in parts])
