"""Fingerprints: one digest of everything that determines the bits of K/V, which is the content of
the model's files and how they are run.

Only content counts, not names and times: a copied model finds its K/V, a replaced one does not.
Digests of files are kept by (path, size, time, inode), so that a file is read once and not at every
start.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import torch

from radixserve.errors import StartupError
from radixserve.machine import THIS
from radixserve.store.folder.store_folder import StoreFolder
from radixserve.store.format.layout import FINGERPRINTS
from radixserve.store.format.run_file import FORMAT, digest_fields

_SUMMED = 512  # int64
_KEPT = 256  # file digests at most
_WEIGHTS = (".safetensors", ".bin", ".gguf", ".pt")


def folder_fingerprint(model: Path, store: StoreFolder, computed_by: str) -> str:
    """The fingerprint of a model in a folder: of its configuration, its weights and `computed_by`.
    Digests of files are kept in `store`.

    `computed_by` names everything else that may change a bit of K/V: dtype, device, kernels,
    versions. Reads the weights once, at about 1.5 GB/s.

    Raises:
        StartupError: the folder has no configuration or no weights, or cannot be read.
    """
    try:
        files = sorted(
            path
            for path in model.iterdir()
            if path.suffix in _WEIGHTS or path.name == "config.json"
        )
        if len(files) < 2:
            raise StartupError(f"no model in {model}: config.json and weights are needed")
        digests = _Digests(store)
        content = [part for path in files for part in (path.name, digests.of(path))]
        digests.save()
    except OSError as error:
        raise StartupError(
            f"cannot read the model in {model}: {error.strerror or error}"
        ) from error
    return digest_fields("model", FORMAT, computed_by, *content)


def tree_digest(root: Path, names: Sequence[str]) -> str:
    """Digest of the names and contents of all files below `root` in the folders `names`, or of the
    files `names`; compiled Python is left out. Some milliseconds for a package.
    """
    fields: list[str | bytes] = []
    for name in sorted(names):
        for path in sorted([root / name, *(root / name).rglob("*")]):
            if path.is_file() and path.parent.name != "__pycache__":
                fields += [path.relative_to(root).as_posix(), path.read_bytes()]
    return digest_fields("tree", *fields)


def weights_fingerprint(config: str, weights: dict[str, torch.Tensor], computed_by: str) -> str:
    """The fingerprint of a model in memory, from every byte of its current parameters; about 1
    GB/s per processor.
    """
    names = sorted(weights, key=lambda name: -weights[name].nbytes)  # the largest begin first
    with ThreadPoolExecutor(THIS.cores()) as threads:
        digests = dict(
            zip(names, threads.map(_content, [weights[name] for name in names]), strict=True)
        )
    fields = [config]
    for name in sorted(names):
        tensor = weights[name]
        fields += [name, str(tensor.dtype), str(tuple(tensor.shape)), digests[name]]
    return digest_fields("weights", FORMAT, computed_by, *fields)


def _content(tensor: torch.Tensor) -> str:
    """SHA-256 of a tensor's bytes."""
    data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
    return hashlib.sha256(data).hexdigest()


def weights_checksum(weights: dict[str, torch.Tensor]) -> str:
    """A checksum that changes when weights in memory change. (torch's version counters do not
    notice changes through `.data`.) Reads every byte once, as computing one token does; about 5
    GB/s on a CPU.

    It consists of sums over 4 KiB of integers each. A change that keeps all sums, such as
    exchanging two words within 4 KiB, is not noticed.
    """
    sums = [(name, _sums(tensor.detach())) for name, tensor in sorted(weights.items())]
    fields = [part for name, each in sums for part in (name, each.cpu().numpy().tobytes())]
    shapes = [f"{tensor.dtype} {tuple(tensor.shape)}" for _, tensor in sorted(weights.items())]
    return digest_fields("checksum", *fields, *shapes)


def _sums(tensor: torch.Tensor) -> torch.Tensor:
    """Sums of the bytes of `tensor` as int64, `_SUMMED` at a time, and the remaining bytes."""
    data = tensor.contiguous().reshape(-1).view(torch.uint8)
    if data.data_ptr() % 8:
        data = data.clone()
    whole = data.numel() // (8 * _SUMMED) * 8 * _SUMMED
    sums = data[:whole].view(torch.int64).view(-1, _SUMMED).sum(1)
    return torch.cat([sums, data[whole:].to(torch.int64)])


class _Digests:
    """Digests of files, kept in a file of the store; a file that cannot be read counts as empty."""

    def __init__(self, store: StoreFolder) -> None:
        self._disk, self._path = store.disk, store.path / FINGERPRINTS
        try:
            self._known = msgspec.json.decode(self._disk.contents(self._path), type=dict[str, str])
        except (OSError, ValueError, RecursionError):
            self._known = {}
        self._used: dict[str, str] = {}

    def of(self, path: Path) -> str:
        """SHA-256 of the content."""
        status = path.stat()
        key = f"{path.resolve()}:{status.st_size}:{status.st_mtime_ns}:{status.st_ino}"
        self._used[key] = self._known.get(key) or _sha256(path)
        return self._used[key]

    def save(self) -> None:
        """Save the newest digests. A failure only costs time at the next start."""
        if self._used.items() <= self._known.items():
            return
        kept = dict(list({**self._known, **self._used}.items())[-_KEPT:])
        try:
            self._disk.publish(self._path, [msgspec.json.encode(kept)])
        except OSError:
            return


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    return found
