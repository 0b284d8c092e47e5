"""Writes large files past the page cache where the file system can do that (O_DIRECT, Linux).

What is written behind a step is not read soon, and copying it into pages that must be found first
costs several times as much of a core as the disk does. Such writes begin and end at multiples of a
block, in memory and in the file: bytes go through one aligned buffer, and the file is cut to its
length at the end. Knows bytes and descriptors only.
"""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Callable, Sequence

LEAST_BYTES = 1 << 20  # smaller files are not worth it

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
        """Fill the file that `create` opens anew with additional flags; False if it cannot be done
        so, and then it is to be created once more.

        Raises:
            OSError: as any write.
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
        """Write all parts, the last block filled up; how many bytes they were."""
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
    """Write whole blocks; what is left in the buffer then: nothing."""
    while block:
        block = block[os.write(file, block) :]
    return 0
