"""The log of `record`: for each request the hashes of its prompt's blocks, lengths and time, for
`radixserve cache simulate`. No text and no token can be read from it.

A block's hash covers all tokens before it and the namespace, so equal hashes mean K/V that could be
shared. Hashes are keyed: without the key nobody can try whether a text was sent. The lines have
Mooncake's format (`loadtest.trace`), with `block_tokens`.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import time
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Final

from radixserve.errors import StartupError
from radixserve.prefix import TOKEN_BYTES, Prefix
from radixserve.request import Request

BLOCK_TOKENS = 64
MOST_WAITING = 1024
"""Requests whose lines wait for their end, or for that of an earlier one; then the first is written
as it is.
"""

log = logging.getLogger(__name__)

# a pipe that nobody reads is refused; opening it would wait for a reader
_FLAGS: Final = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK


@dataclass(slots=True)
class _Entry:
    milliseconds: int
    num_prompt: int
    hashes: list[int]
    num_generated: int | None = None  # None: it runs


class TrafficLog:
    """Appends to one file. Lines stand in the order of arrival, each once its request has ended."""

    def __init__(self, path: Path, key: str | None) -> None:
        """Without `key` a random one is used: hashes agree within this log only, until the server
        ends.

        Raises:
            StartupError: the file cannot be written.
        """
        self._key = blake2b(key.encode()).digest() if key else os.urandom(64)
        self._entries: dict[str, _Entry] = {}  # by the request's id, in the order of arrival
        self._latest = 0  # milliseconds; the system's clock may go back, lines must not
        self._path = path
        try:
            descriptor = os.open(path, _FLAGS, 0o600)
        except OSError as error:
            raise StartupError(f"cannot record to {str(path)!r}: {error.strerror}") from error
        self._descriptor: int | None = descriptor

    def arrived(self, request: Request) -> None:
        """Note a request; one that may not use the cache, or leave K/V in it, is left out.
        O(prompt tokens): 40 microseconds for a thousand.
        """
        if self._descriptor is None or not (request.reads_cache and request.keeps_cache):
            return
        self._latest = max(self._latest, time.time_ns() // 1_000_000)
        prompt = Prefix.of(request.namespace, request.prompt_ids, request.num_public)
        hashes = block_hashes(self._key, prompt)
        self._entries[request.id] = _Entry(self._latest, len(request.prompt_ids), hashes)
        if len(self._entries) > MOST_WAITING:
            next(iter(self._entries.values())).num_generated = 0
            self._write()

    def ended(self, request_id: str, num_generated: int) -> None:
        """Note that a request is over; a second call does nothing."""
        entry = self._entries.get(request_id)
        if entry is not None:
            entry.num_generated = num_generated
            self._write()

    def close(self) -> None:
        """Write what is left."""
        for entry in self._entries.values():
            entry.num_generated = entry.num_generated or 0
        self._write()
        self._stop()

    def _write(self) -> None:
        """Append the lines of the first requests, as far as they have ended."""
        lines = []
        for request_id, entry in list(self._entries.items()):
            if entry.num_generated is None:
                break
            del self._entries[request_id]
            lines.append(_line(entry))
        if not lines or self._descriptor is None:
            return
        try:
            _append(self._descriptor, "".join(lines).encode())
        except OSError as error:
            log.error("nothing is recorded to %s any more: %s", self._path, error.strerror)
            self._stop()

    def _stop(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
        self._descriptor = None
        self._entries.clear()


def _append(descriptor: int, lines: bytes) -> None:
    """Write whole lines. Raises OSError; of a line that did not fit on the disk, nothing stays."""
    written = os.write(descriptor, lines)
    if written < len(lines):
        cut = written - (lines.rfind(b"\n", 0, written) + 1)
        os.ftruncate(descriptor, os.fstat(descriptor).st_size - cut)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def block_hashes(key: bytes, prompt: Prefix) -> list[int]:
    """A hash of 63 bits for each block, each of all tokens up to its end; the last block may be a
    part of one. A block belongs to the namespace of its last token.
    """
    tokens, hashes, named = prompt.tokens, [], ""
    chain = blake2b(key=key, digest_size=16)
    for start in range(0, prompt.num_tokens, BLOCK_TOKENS):
        stop = min(start + BLOCK_TOKENS, prompt.num_tokens)
        if (namespace := prompt.namespace_at(stop - 1)) != named:
            chain.update(namespace.encode())
            named = namespace
        chain.update(tokens[start * TOKEN_BYTES : stop * TOKEN_BYTES])
        hashes.append(int.from_bytes(chain.digest()[:8]) >> 1)
    return hashes


def _line(entry: _Entry) -> str:
    fields = {
        "timestamp": entry.milliseconds,
        "input_length": entry.num_prompt,
        "output_length": entry.num_generated or 0,
        "hash_ids": entry.hashes,
        "block_tokens": BLOCK_TOKENS,
    }
    return json.dumps(fields, separators=(",", ":")) + "\n"
