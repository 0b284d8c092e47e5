"""Writes large files past the page cache where the file system supports it (O_DIRECT, Linux).

K/V written beside a step is not read again soon, and copying it into newly allocated pages costs
several times the CPU time of the write itself. Direct writes must begin and end at multiples of a
block, in memory and in the file. So bytes go through one aligned buffer, and the file is truncated
to its length at the end. Knows bytes and descriptors only.
"""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Callable, Sequence

LEAST_BYTES = 1 << 20  # smaller files gain nothing

_BUFFER = 1 << 20
_BLOCK = 4096
_DIRECT = getattr(os, "O_DIRECT", 0)
_CANNOT = (errno.EINVAL, errno.EOPNOTSUPP)


class DirectWriter:
    """A buffer, for one thread at a time."""

    def __init__(self) -> None:
        self._buffer: mmap.mmap | None = None  # begins at a page
        self._possible = _DIRECT != 0

    def write(self, create: Callable[[int], int], parts: Sequence[bytes | memoryview]) -> bool:
        """Write `parts` to the file that `create` opens with additional flags. Returns False if the
        file system does not support direct writes; the caller then creates the file again.

        Raises:
            OSError: the write fails for another reason.
        """
        if not self._possible:
            return False
        try:
            file = create(_DIRECT)
            try:
                os.ftruncate(file, self._copy(file, parts))
            finally:
                os.close(file)
        except OSError as error:
            if error.errno not in _CANNOT:
                raise
            self._possible = False
        return self._possible

    def _copy(self, file: int, parts: Sequence[bytes | memoryview]) -> int:
        """Write all parts, the last block padded; returns the number of bytes without padding."""
        self._buffer = self._buffer or mmap.mmap(-1, _BUFFER)
        total = filled = 0
        with memoryview(self._buffer) as buffer:
            for part in parts:
                rest, total = memoryview(part), total + len(part)
                while rest:
                    count = min(_BUFFER - filled, len(rest))
                    buffer[filled : filled + count], rest = rest[:count], rest[count:]
                    filled += count
                    if filled == _BUFFER:
                        filled = _flush(file, buffer)
            _flush(file, buffer[: -(-filled // _BLOCK) * _BLOCK])
        return total


def _flush(file: int, block: memoryview) -> int:
    """Write whole blocks and return the new fill level of the buffer, which is 0."""
    while block:
        block = block[os.write(file, block) :]
    return 0
