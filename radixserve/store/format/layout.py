"""The names of a store's files. Files with other names are not ours: they are neither counted nor
changed.

    radixserve-store      the marker: says that the folder is a store, see `store.folder.claim`
    lock                  held by the process that writes; `store.admin.errands` says what it holds
    index.sqlite          the rows (also -wal and -shm while it is open)
    index.broken          the last index that could not be used
    pins.msgpack          what is pinned, see `store.folder.pin_file`
    fingerprints.json     digests of model files, see `store.folder.fingerprint`
    runs/*.safetensors    one file per run, named by 64 hex digits
    runs/*.tmp            a file that is being written
    tenant-secret         not ours: kept here for the server, see `api.namespaces`
    asking, *.json        requests to the server, see `store.admin.errands`
"""

from __future__ import annotations

import re

MARKER = "radixserve-store"
LOCK = "lock"
RUNS = "runs"
INDEX = "index.sqlite"
BESIDE_INDEX = tuple(f"{INDEX}{suffix}" for suffix in ("-wal", "-shm", "-journal"))
"""The names of files that SQLite itself makes beside the index."""
BROKEN = "index.broken"
FINGERPRINTS = "fingerprints.json"
PINS = "pins.msgpack"
ASKING, ASKED, BEGUN, ANSWERED = "asking", "asked.json", "begun.json", "answered.json"

SUFFIX = ".safetensors"
TEMPORARY = ".tmp"

_PUBLISHED = (MARKER, FINGERPRINTS, PINS, ASKED, ANSWERED)
_LEFTOVERS = frozenset({ASKED, BEGUN, ANSWERED, *(name + TEMPORARY for name in _PUBLISHED)})
_FILES = _LEFTOVERS | {MARKER, LOCK, INDEX, *BESIDE_INDEX, BROKEN, FINGERPRINTS, PINS, ASKING}
_RUN = re.compile(rf"[0-9a-f]{{64}}{re.escape(SUFFIX)}({re.escape(TEMPORARY)})?")


def is_file_of_store(name: str) -> bool:
    """Whether we give this name to a file in the folder of a store."""
    return name in _FILES


def is_leftover(name: str) -> bool:
    """Whether only a process that died leaves a file with this name."""
    return name in _LEFTOVERS


def is_run(name: str) -> bool:
    """Whether we give this name to a file in `runs`, finished or not."""
    return _RUN.fullmatch(name) is not None
