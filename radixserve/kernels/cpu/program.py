"""Many kernels in one parallel region: each thread calls one after the other and waits for the
other threads in between.

Starting a kernel from Python and waking its threads costs some microseconds, and a decode step
calls some hundreds of kernels. Knows nothing of what the kernels compute.
"""

# mypy: disable-error-code="untyped-decorator"
# (numba has no type hints)

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from radixserve.kernels.cpu import native, threads
from radixserve.kernels.cpu.block import Block, Elements, Int
from radixserve.kernels.cpu.compile import compiled

_BYTES = ir.IntType(8).as_pointer()


CALL = np.dtype([("kernel", np.int64), ("block", np.int64)])
"""The address of a kernel, and that of the block that it is called with."""


class ProgramBlock(Block):
    """A program as its threads read it."""

    calls: Annotated[Any, Elements.of(CALL)]
    barrier: Int  # the address of the function in which threads wait for each other; 0: no threads


class Program:
    """A list of kernels with their argument blocks, which must live as long as the program."""

    def __init__(self, calls: Sequence[tuple[int, int]]) -> None:
        """`calls` are pairs of addresses: a kernel, and the block that it is called with."""
        self._calls = np.array(calls, CALL)
        self._block = ProgramBlock(calls=self._calls, barrier=threads.barrier())

    def run(self) -> None:
        """Call the kernels in order. The counters in their blocks must be zero."""
        threads.run(native.address(run_calls), self._block.address, True)


@intrinsic
def _call(typingctx: Any, function: Any, argument: Any) -> Any:
    """Call `void f(void *argument)` at the address `function`; both are int64."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [_BYTES]).as_pointer()
        builder.call(builder.inttoptr(args[0], kind), [builder.inttoptr(args[1], _BYTES)])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


@compiled
def _run_calls(program: ProgramBlock) -> None:
    """One thread: call each kernel, then wait at the barrier."""
    for i in range(program.calls.shape[0]):
        call = program.calls[i]
        _call(call.kernel, call.block)
        if program.barrier != 0:
            _call(program.barrier, 0)  # takes no argument and ignores this one


def run_calls(address: Any) -> None:
    """Every thread calls this with the address of a `ProgramBlock`. `native` compiles it."""
    _run_calls(ProgramBlock.read(address))
