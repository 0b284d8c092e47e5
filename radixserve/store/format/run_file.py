"""The file of one run: the format in which K/V of consecutive tokens is stored, and its
verification when it is read.

It is a valid safetensors file with a header that a reader can predict. The reader compares it, byte
by byte, with the header that it expects, so no field of a foreign file is ever trusted. safetensors
has no checksum, so the header carries a SHA-256 of all bytes that follow. Files are read, never
memory-mapped: if a mapped file shrinks, the process is killed.

Example: positions 4 and 5 of a sequence are one run, for a model with 30 layers and 3 K/V heads of
64 floats:

    8 bytes    length of the header
    header     JSON: format, fingerprint, namespace, start "4", digest, and "public" if the prefix
               begins with public tokens: how many; then dtypes, shapes, offsets
    tokens     int32 [6]: ids of the whole prefix, positions 0 to 5: a file is complete by itself
    k          float32 [30, 2, 3, 64]: positions 4 and 5 at all layers
    v          float32 [30, 2, 3, 64]

A file whose run starts at 0 holds a whole prefix; that is also what export writes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import msgspec
import torch

from radixserve.prefix import TOKEN_BYTES, Prefix
from radixserve.store.format.layout import SUFFIX
from radixserve.tensors.kv import KV, KVShape

FORMAT = "radixserve-kv-1"
MAX_HEADER_BYTES = 1 << 16
_LENGTH_BYTES = 8
_DTYPES = {
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F8_E4M3": torch.float8_e4m3fn,
    "I8": torch.int8,
    "U8": torch.uint8,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


class Files(Protocol):
    """What reading needs of a disk (`store.folder.disk`)."""

    def size(self, path: Path) -> int:
        """Bytes of a file. Raises OSError."""

    def read(self, path: Path, offset: int, target: memoryview) -> int:
        """Fill `target` from the file's bytes at `offset`; returns how many bytes were read.
        Raises OSError.
        """


class BadFile(Exception):
    """A file fails verification; the message says how."""


class _Tensor(msgspec.Struct, forbid_unknown_fields=True):
    dtype: str
    shape: list[int]
    data_offsets: list[int]


class _Metadata(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    format: str
    fingerprint: str
    namespace: str
    start: str
    digest: str
    public: str = "0"


class _Json(msgspec.Struct, forbid_unknown_fields=True):
    metadata: _Metadata = msgspec.field(name="__metadata__")
    tokens: _Tensor
    k: _Tensor
    v: _Tensor


@dataclass(frozen=True, slots=True)
class RunHeader:
    """The header of a file: it holds K/V of positions `start` to `start + num_tokens` - 1, and says
    what they belong to.
    """

    fingerprint: str
    namespace: str
    start: int
    num_tokens: int
    shape: KVShape
    digest: str  # hex, of all bytes after the header
    num_public: int = 0  # of the prefix (`Prefix`)

    def encode(self) -> bytes:
        """The header's bytes, its length in front, padded so that tensors are aligned."""
        text = msgspec.json.encode(self._json())
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(_LENGTH_BYTES, "little") + text

    @property
    def stop(self) -> int:
        return self.start + self.num_tokens

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Bytes of tokens, k and v."""
        rows = self.shape.layers * self.num_tokens * self.shape.kv_heads * self.shape.dtype.itemsize
        return self.stop * TOKEN_BYTES, rows * self.shape.k_row, rows * self.shape.v_row

    @property
    def file_bytes(self) -> int:
        return len(self.encode()) + sum(self.sizes)

    def _json(self) -> _Json:
        metadata = _Metadata(
            FORMAT,
            self.fingerprint,
            self.namespace,
            str(self.start),
            self.digest,
            str(self.num_public),
        )
        tokens, k, v = self.sizes
        rows, name = (
            [self.shape.layers, self.num_tokens, self.shape.kv_heads],
            _NAMES[self.shape.dtype],
        )
        return _Json(
            metadata,
            _Tensor("I32", [self.stop], [0, tokens]),
            _Tensor(name, [*rows, self.shape.k_row], [tokens, tokens + k]),
            _Tensor(name, [*rows, self.shape.v_row], [tokens + k, tokens + k + v]),
        )


def run_name(fingerprint: str, prefix: Prefix, start: int) -> str:
    """The name of the file for the run that holds the tokens of `prefix` from `start` on."""
    fields = (fingerprint, prefix.namespace, start, prefix.tokens)
    public = (prefix.num_public,) if prefix.num_public else ()
    return digest_fields("run", FORMAT, *fields, *public) + SUFFIX


def digest_fields(*fields: str | int | bytes) -> str:
    """SHA-256 in hex of typed fields, each with its length, so that different lists of fields are
    different inputs.
    """
    found = hashlib.sha256()
    for field in fields:
        kind = type(field).__name__
        data = field if isinstance(field, bytes) else str(field).encode()
        found.update(f"{kind}:{len(data)}:".encode() + data)
    return found.hexdigest()


def encode_run(header: RunHeader, prefix: Prefix, kv: KV) -> tuple[RunHeader, list[memoryview]]:
    """The header with its digest, and the parts of the file in order; views where the tensors are
    contiguous.
    """
    data = [memoryview(prefix.tokens), *map(_bytes_of, kv)]
    header = replace(header, digest=_digest(data))
    return header, [memoryview(header.encode()), *data]


def read_run(disk: Files, path: Path, header: RunHeader, prefix: Prefix) -> KV:
    """The K/V in a file that must have exactly this header and the tokens of this whole prefix.

    Raises:
        BadFile: the file differs in size, header, tokens or digest.
        OSError: it cannot be read.
    """
    buffer = _read_whole(disk, path, header.file_bytes)
    expected = header.encode()
    num_tokens, num_k, _ = header.sizes
    view = buffer.numpy().data
    first, second = len(expected), len(expected) + num_tokens
    if view[:first] != expected:
        raise BadFile("the header differs")
    if view[first:second] != prefix.tokens:
        raise BadFile("the token ids differ")
    if _digest([view[first:]]) != header.digest:
        raise BadFile("the digest differs")
    k, v = buffer[second : second + num_k], buffer[second + num_k :]
    rows = (header.shape.layers, header.num_tokens, header.shape.kv_heads)
    dtype = header.shape.dtype
    return k.view(dtype).view(*rows, header.shape.k_row), v.view(dtype).view(
        *rows, header.shape.v_row
    )


def read_header(disk: Files, path: Path) -> RunHeader:
    """The header of a file when no header is expected; `read_run` verifies the content.

    Raises:
        BadFile: the header is not one that we write, or does not fit the size of the file.
        OSError: it cannot be read.
    """
    length = int.from_bytes(_read_part(disk, path, 0, _LENGTH_BYTES), "little")
    if not 0 < length <= MAX_HEADER_BYTES:
        raise BadFile("the header has an impossible length")
    text = _read_part(disk, path, _LENGTH_BYTES, length)
    try:
        header = _understood(msgspec.json.decode(text, type=_Json))
    except (ValueError, KeyError, IndexError, RecursionError) as error:
        raise BadFile(f"the header cannot be read: {error}") from error
    if header.encode()[_LENGTH_BYTES:] != text:
        raise BadFile("the header is not one of ours")
    if disk.size(path) != header.file_bytes:
        raise BadFile("the file has the wrong size")
    return header


def read_prefix(disk: Files, path: Path, header: RunHeader) -> Prefix:
    """The prefix up to the end of the file's run, not verified.

    Raises:
        BadFile: the file ends early.
        OSError: it cannot be read.
    """
    tokens = _read_part(disk, path, len(header.encode()), header.sizes[0])
    return Prefix(header.namespace, bytes(tokens), header.num_public)


def _understood(json: _Json) -> RunHeader:
    (layers, num_tokens, kv_heads, k_row), v_row = json.k.shape, json.v.shape[3]
    shape = KVShape.of_rows(layers, kv_heads, k_row, v_row, _DTYPES[json.k.dtype])
    k_dim, v_dim = shape.k_dim, shape.v_dim
    about = json.metadata
    are_numbers = about.start.isdecimal() and about.public.isdecimal()
    if min(layers, num_tokens, kv_heads, k_dim, v_dim) < 1 or not are_numbers:
        raise ValueError("a size is not positive")
    return RunHeader(
        about.fingerprint,
        about.namespace,
        int(about.start),
        num_tokens,
        shape,
        about.digest,
        int(about.public),
    )


def _read_whole(disk: Files, path: Path, size: int) -> torch.Tensor:
    """All bytes of a file that must have `size` of them; the size is checked before memory is
    allocated.
    """
    if disk.size(path) != size:
        raise BadFile("the size differs")
    buffer = torch.empty(size, dtype=torch.uint8)
    if disk.read(path, 0, buffer.numpy().data) != size:
        raise BadFile("the file ends early")
    return buffer


def _read_part(disk: Files, path: Path, offset: int, size: int) -> bytearray:
    part = bytearray(size)
    if disk.read(path, offset, memoryview(part)) != size:
        raise BadFile("the file ends early")
    return part


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data.cast("B")


def _digest(parts: Sequence[memoryview]) -> str:
    found = hashlib.sha256()
    for part in parts:
        found.update(part)
    return found.hexdigest()
