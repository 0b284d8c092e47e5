"""How kernels are compiled, and the arrays they work on: bare memory without reference counts.

numba counts references to arrays wherever they are passed on, with atomic instructions; in a kernel
of many small functions that took a sixth of its time. Here it is told not to (`_nrt`), so a kernel
can allocate memory on its stack only. The caller allocates all other memory and keeps it alive
until the kernel has run.
"""

# mypy: disable-error-code="untyped-decorator"
# (numba has no type hints)

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from llvmlite import ir
from numba import cfunc, njit, types
from numba.extending import intrinsic
from numba.np.arrayobj import populate_array

Intrinsic = Callable[..., Any]

LINE_BYTES = 64
"""Bytes of a cache line."""

compiled = partial(
    njit,
    error_model="numpy",
    forceinline=True,
    _nrt=False,
    no_cpython_wrapper=True,  # neither Python nor C calls them; each wrapper takes time to compile
    no_cfunc_wrapper=True,
)
"""Decorates functions that kernels call."""

kernel = partial(cfunc, types.void(types.voidptr), error_model="numpy", _nrt=False)
"""Compiles a function that is called from outside with the address of a block."""


def array_of(context: Any, builder: ir.IRBuilder, kind: Any, data: Any, count: Any) -> Any:
    """The array of `count` elements at the pointer `data`."""
    array = context.make_array(kind)(context, builder)
    size = context.get_constant(
        types.intp, context.get_abi_sizeof(context.get_data_type(kind.dtype))
    )
    populate_array(array, data=data, shape=[count], strides=[size], itemsize=size, meminfo=None)
    return array._getvalue()


def _at(element: types.Type) -> Intrinsic:
    """Generates: the array of `count` elements at an address (int64)."""

    @intrinsic
    def at(typingctx: Any, address: Any, count: Any) -> Any:
        kind = types.Array(element, 1, "C")

        def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
            data = builder.inttoptr(args[0], context.get_data_type(element).as_pointer())
            return array_of(context, builder, kind, data, args[1])

        return kind(types.int64, types.intp), generate

    return at  # type: ignore[no-any-return]


def on_stack(element: types.Type, count: int) -> Intrinsic:
    """Generates: an array of `count` elements on the stack, which lives as long as the function
    that calls this. It begins at a cache line, and holds anything.
    """

    @intrinsic
    def room(typingctx: Any) -> Any:
        kind = types.Array(element, 1, "C")

        def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
            number = context.get_data_type(element)
            with builder.goto_entry_block():  # numba's own function would fill it with zeros
                place = builder.alloca(ir.ArrayType(number, count))
            place.align = LINE_BYTES
            data = builder.bitcast(place, number.as_pointer())
            return array_of(context, builder, kind, data, context.get_constant(types.intp, count))

        return kind(), generate

    return room  # type: ignore[no-any-return]


floats_at, words_at, longs_at = _at(types.float32), _at(types.uint32), _at(types.int64)
halves_at = _at(types.uint16)


@intrinsic
def data_of(typingctx: Any, array: Any) -> Any:
    """The address of an array's first element, as int64."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        return builder.ptrtoint(data, ir.IntType(64))

    return types.int64(array), generate


@intrinsic
def call_address(typingctx: Any, function: Any, argument: Any) -> Any:
    """Call `void f(void *argument)` at the address `function`; both are int64."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        pointer = ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [pointer]).as_pointer()
        builder.call(builder.inttoptr(args[0], kind), [builder.inttoptr(args[1], pointer)])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate
