"""Many kernels in one parallel region: each thread calls one after the other and waits for the
other threads in between.

Starting a kernel from Python and waking its threads costs some microseconds, and a decode step
calls some hundreds of kernels. Knows nothing of what the kernels compute.
"""

# mypy: disable-error-code="untyped-decorator"
# (numba has no type hints)

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from radixserve.kernels.cpu import native, threads
from radixserve.kernels.cpu.compile import address_of, compiled, longs_at

_BYTES = ir.IntType(8).as_pointer()


class Program:
    """A list of kernels with their argument blocks, which must live as long as the program."""

    def __init__(self, calls: Sequence[tuple[int, int]]) -> None:
        """`calls` are pairs of addresses: a kernel, and the block that it is called with."""
        self._calls = np.array(calls, np.int64)
        self._block = np.array([self._calls.ctypes.data, len(calls), threads.barrier()], np.int64)

    def run(self) -> None:
        """Call the kernels in order. The counters in their blocks must be zero."""
        threads.run(native.address(run_calls), self._block.ctypes.data, True)


@intrinsic
def _call(typingctx: Any, function: Any, argument: Any) -> Any:
    """Call `void f(void *argument)` at the address `function`; both are int64."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [_BYTES]).as_pointer()
        builder.call(builder.inttoptr(args[0], kind), [builder.inttoptr(args[1], _BYTES)])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


@compiled
def _run_calls(b: Any) -> None:
    """One thread: call each kernel, then wait at the barrier. `b` is calls, their number,
    barrier.
    """
    calls, count, barrier = longs_at(b[0], 2 * b[1]), b[1], b[2]
    for i in range(count):
        _call(calls[2 * i], calls[2 * i + 1])
        if barrier != 0:
            _call(barrier, 0)  # takes no argument and ignores this one


def run_calls(address: Any) -> None:
    """Every thread calls this with the address of a program's block. `native` compiles it."""
    _run_calls(longs_at(address_of(address), 3))
