"""Processes that do not get Ctrl-C."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time

from radixserve.interrupts import hidden_from_children

MASK = "import signal; print(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, []))"


def is_blocked() -> bool:
    return signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])


async def started() -> bytes:
    with hidden_from_children():
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-S", "-c", MASK), stdout=asyncio.subprocess.PIPE
        )
    return (await child.communicate())[0]


async def test_no_child_gets_it_and_afterwards_this_process_does() -> None:
    assert await asyncio.gather(*(started() for _ in range(4))) == [b"True\n"] * 4
    assert not is_blocked()


def test_what_arrives_in_the_block_is_not_lost() -> None:
    got: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: got.append(number))
    try:
        with hidden_from_children():
            os.kill(os.getpid(), signal.SIGINT)
        while not got:
            time.sleep(0.01)
        assert got == [signal.SIGINT]
    finally:
        signal.signal(signal.SIGINT, before)
