"""The file in a store's folder that lists what is pinned, for the server that is started next.

    radixserve pins 1     a line, then the SHA-256 digest of the rest (32 bytes)
    [[fingerprint, until, pin], ...]     msgpack; `until` by the wall clock

K/V is stored under a fingerprint, and so is a pin: those of other models stay in the file until
they end. A file that is damaged in any way is not used, which loses pins and nothing else.
"""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from radixserve.prefix import TOKEN_BYTES
from radixserve.questions import Pin
from radixserve.store.folder.disk import Disk
from radixserve.store.format.layout import PINS

MAX_STORED = 2048  # pins of all models
MAX_FILE_BYTES = 32 << 20
MAX_SECONDS = 31 * 86400.0  # that a pin may last
_MAX_CHARS = 1024  # of a name
_FIRST_LINE = b"radixserve pins 1\n"
_DIGEST_BYTES = 32
_FRAME_BYTES = 64  # of the file without its pins, at most

log = logging.getLogger(__name__)


class StoredPin(msgspec.Struct, frozen=True, array_like=True):
    """A pin under the fingerprint of its K/V, and its end by the wall clock."""

    fingerprint: str
    until: float
    pin: Pin

    @classmethod
    def of(cls, fingerprint: str, pin: Pin) -> StoredPin:
        """`pin`, which ends in `seconds_left` from now on."""
        return cls(fingerprint, time.time() + pin.seconds_left, pin)

    def again(self) -> Pin:
        """The pin, with the seconds that are left now."""
        return msgspec.structs.replace(self.pin, seconds_left=self.until - time.time())


def read_pins(disk: Disk, folder: Path) -> list[StoredPin]:
    """The pins in the file that have not ended; none if there is no file or it is damaged, which
    the log says. Reads all of it.
    """
    path = folder / PINS
    try:
        if not disk.exists(path):
            return []
        stored = _decoded(disk.contents(path, MAX_FILE_BYTES + 1))
    except (OSError, ValueError, msgspec.DecodeError) as error:
        log.warning("the list of pins in %s is not used: %s", path, error)
        return []
    now = time.time()
    return [each for each in stored if now < each.until <= now + MAX_SECONDS]


def encoded(stored: Sequence[StoredPin], most_bytes: int) -> list[bytes]:
    """The parts of a file with as many of `stored` as fit into `most_bytes`, the first ones before
    others.
    """
    fitting = _fitting(stored, min(most_bytes, MAX_FILE_BYTES))
    body = msgspec.msgpack.encode(fitting)
    return [_FIRST_LINE, hashlib.sha256(body).digest(), body]


def _fitting(stored: Sequence[StoredPin], most_bytes: int) -> list[StoredPin]:
    left, fitting = most_bytes - _FRAME_BYTES, []
    for each in stored[:MAX_STORED]:
        left -= len(msgspec.msgpack.encode(each))
        if left < 0:
            break
        fitting.append(each)
    return fitting


def _decoded(content: bytes) -> list[StoredPin]:
    """Raises ValueError or msgspec.DecodeError for what no server of ours has written."""
    body = content[len(_FIRST_LINE) + _DIGEST_BYTES :]
    digest = content[len(_FIRST_LINE) : len(_FIRST_LINE) + _DIGEST_BYTES]
    if len(content) > MAX_FILE_BYTES or not content.startswith(_FIRST_LINE):
        raise ValueError("it is no list of pins")
    if hashlib.sha256(body).digest() != digest:
        raise ValueError("its digest is wrong")
    stored = msgspec.msgpack.decode(body, type=list[StoredPin])
    if len(stored) > MAX_STORED or not all(map(_is_possible, stored)):
        raise ValueError("it has a pin that cannot be")
    return stored


def _is_possible(stored: StoredPin) -> bool:
    pin = stored.pin
    names: Iterable[str] = (stored.fingerprint, pin.id, pin.namespace, pin.tenant or "")
    return (
        math.isfinite(stored.until)
        and 0 < pin.seconds <= MAX_SECONDS
        and 0 <= pin.kv_quota < math.inf
        and pin.num_public >= 0
        and pin.num_wanted >= 0
        and pin.node is None
        and len(pin.packed) > 0
        and len(pin.packed) % TOKEN_BYTES == 0
        and all(len(name) <= _MAX_CHARS for name in names)
        and bool(pin.id)
    )
