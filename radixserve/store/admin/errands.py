"""Requests (errands) that a command sends to the running server which holds a store's folder.

Only one process writes to a folder, so index, files and budget have one owner at any moment. A
command that wants a change writes a file with its request. The server looks for the file regularly,
does the work on its writing thread, and writes a file with the answer. If either process dies, only
these small files are left, and the next process that opens the folder removes them.

    asking           locked by the command that asks, one at a time
    asked.json       the request; it is not begun if its command is gone
    begun.json       the same, while the server works on it
    answered.json    the answer
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import sqlite3
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import msgspec

from radixserve.errors import StartupError
from radixserve.store.admin.changes import Brought, Mended, Parts, bringing, mending
from radixserve.store.folder.disk import Disk
from radixserve.store.folder.disk_store import DiskStore
from radixserve.store.folder.lock import is_held, is_locked
from radixserve.store.format.layout import ANSWERED, ASKED, ASKING, BEGUN

BEGIN_SECONDS = 30.0  # the command gives up if the server has not begun by then
_LOOK_SECONDS = 0.05
_ANSWER_BYTES = 1 << 28  # one line for each damaged run

log = logging.getLogger(__name__)


class Clear(msgspec.Struct, tag="clear", frozen=True):
    """Remove every run."""


class Mend(msgspec.Struct, tag="mend", frozen=True):
    """Verify every run and remove damaged ones."""


class Bring(msgspec.Struct, tag="bring", frozen=True):
    """Import this file; an absolute path."""

    source: str


class Asked(msgspec.Struct, frozen=True):
    """A request; its answer carries the same number."""

    number: str
    errand: Clear | Mend | Bring


class Answer(msgspec.Struct, omit_defaults=True):
    """The result of a request, or an error: a sentence for the operator."""

    number: str = ""
    num_removed: int = 0
    mended: Mended = msgspec.field(default_factory=Mended)
    brought: Brought = msgspec.field(default_factory=Brought)
    error: str | None = None


class Attendant:
    """The server's side. Any thread may read `asked`; the rest belongs to the store's thread."""

    def __init__(self, store: DiskStore) -> None:
        self._store, self._disk, self._path = store, store.folder.disk, store.folder.path
        self._number = ""
        self._parts: Parts[Answer] | None = None
        store.folder.attend()

    @property
    def asked(self) -> bool:
        """Whether a command has sent a request."""
        return self._disk.exists(self._path / ASKED)

    def work(self) -> bool:
        """Begin a request or continue it by one part; True when nothing is left to do.

        Raises:
            OSError: the answer could not be written, or the request not be read.
        """
        try:
            self._parts = self._parts or self._begun()
            if self._parts is not None:
                next(self._parts)
                return False
        except StopIteration as end:
            self._answer(end.value)
        except (StartupError, OSError, sqlite3.Error) as error:
            self._answer(Answer(error=str(error)))
        except Exception as error:
            log.exception("an errand failed")
            self._answer(Answer(error=f"the server could not do it: {error!r}"))
        return True

    def _begun(self) -> Parts[Answer] | None:
        """Take the request; None if there is none, or if its command is gone."""
        self._disk.rename(self._path / ASKED, self._path / BEGUN)
        try:
            asked = msgspec.json.decode(self._disk.contents(self._path / BEGUN), type=Asked)
        except msgspec.DecodeError:
            asked = None
        if asked is None or not is_locked(self._disk, self._path / ASKING):
            self._disk.unlink(self._path / BEGUN)
            return None
        log.info("asked by a command: %s", asked.errand)
        self._number = asked.number
        return self._doing(asked.errand)

    def _doing(self, errand: Clear | Mend | Bring) -> Parts[Answer]:
        if isinstance(errand, Bring):
            return Answer(brought=(yield from bringing(self._store, Path(errand.source))))
        if isinstance(errand, Mend):
            return Answer(mended=(yield from mending(self._store.folder)))
        return Answer(num_removed=self._store.folder.clear())

    def _answer(self, answer: Answer) -> None:
        """Write the answer and end the request, even if writing fails."""
        self._parts = None
        answer.number = self._number
        try:
            self._disk.publish(self._path / ANSWERED, [msgspec.json.encode(answer)])
        finally:
            self._disk.unlink(self._path / BEGUN)


def ask(disk: Disk, folder: Path, errand: Clear | Mend | Bring) -> Answer:
    """Send a request to the server that holds `folder` and wait for the answer. `disk` holds the
    folder open.

    Raises:
        StartupError: the request failed, another command is waiting for an answer, or the server
            does not answer.
    """
    asked = Asked(uuid.uuid4().hex, errand)
    try:
        with _turn(disk, folder):
            try:
                disk.publish(folder / ASKED, [msgspec.json.encode(asked)])
                answer = _waited(disk, folder, asked.number)
            finally:
                disk.unlink(folder / ASKED)
                disk.unlink(folder / ANSWERED)
    except OSError as error:
        raise StartupError(
            f"cannot ask the server that holds {folder}: {error.strerror or error}"
        ) from error
    if answer.error is not None:
        raise StartupError(answer.error)
    return answer


def _waited(disk: Disk, folder: Path, number: str) -> Answer:
    """Wait for the answer, without a limit once the server has begun."""
    until = time.monotonic() + BEGIN_SECONDS
    while True:
        held = is_held(disk, folder)  # read before the answer: the server may answer and end
        waits, works = (disk.exists(folder / name) for name in (ASKED, BEGUN))
        answer = _answered(disk, folder / ANSWERED)
        if answer is not None and answer.number == number:
            return answer
        if not held:
            raise StartupError(f"the server that held {folder} has ended; try again")
        if not waits and not works:
            raise StartupError(
                f"the server that holds {folder} could not do it, or not say what came of "
                "it; see its log"
            )
        if waits and time.monotonic() > until:
            raise StartupError(f"the server that holds {folder} does not answer")
        time.sleep(_LOOK_SECONDS)


def _answered(disk: Disk, path: Path) -> Answer | None:
    try:
        return msgspec.json.decode(disk.contents(path, _ANSWER_BYTES), type=Answer)
    except (FileNotFoundError, msgspec.DecodeError):
        return None


@contextlib.contextmanager
def _turn(disk: Disk, folder: Path) -> Iterator[None]:
    descriptor = disk.open(folder / ASKING, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise StartupError(f"another command is changing {folder}; try again") from None
    finally:
        os.close(descriptor)
