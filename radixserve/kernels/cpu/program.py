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

from radixserve.kernels.cpu import native, threads
from radixserve.kernels.cpu.block import Block, Elements, Int
from radixserve.kernels.cpu.compile import call_address, compiled

CALL = np.dtype([("kernel", np.int64), ("block", np.int64)])
"""The address of a kernel, and that of the block that it is called with."""


class ProgramBlock(Block):
    """A program as its threads read it."""

    calls: Annotated[Any, Elements.of(CALL)]
    first: Int  # the number of the first call that is made, and of the first one that is not
    stop: Int
    barrier: Int  # the address of the function in which threads wait for each other; 0: no threads


class Program:
    """A list of kernels with their argument blocks, which must live as long as the program."""

    def __init__(self, calls: Sequence[tuple[int, int]]) -> None:
        """`calls` are pairs of addresses: a kernel, and the block that it is called with."""
        self._calls = np.array(calls, CALL)
        self._block = ProgramBlock(calls=self._calls, first=0, stop=0, barrier=threads.barrier())

    def __len__(self) -> int:
        """The number of calls."""
        return len(self._calls)

    def run(self, first: int, stop: int) -> None:
        """Make the calls `first` .. `stop` - 1 in order. The counters in their blocks must be
        zero.
        """
        self._block.first, self._block.stop = first, stop
        threads.run(native.address(run_calls), self._block.address, True)


@compiled
def _run_calls(program: ProgramBlock) -> None:
    """One thread: call each kernel, then wait at the barrier."""
    for i in range(program.first, program.stop):
        call = program.calls[i]
        call_address(call.kernel, call.block)
        if program.barrier != 0:
            call_address(program.barrier, 0)  # takes no argument and ignores this one


def run_calls(address: Any) -> None:
    """Every thread calls this with the address of a `ProgramBlock`. `native` compiles it."""
    _run_calls(ProgramBlock.read(address))
