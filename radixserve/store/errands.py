"""How a command has a folder changed that a running server holds: it asks, and the server does it.

One process writes to a folder, so index, files and budget have one owner at any moment. A command
beside it leaves a file that says what to do; the server looks for it now and then, does it on the
thread that writes anyway, and leaves the answer. Whoever dies when, these small files are all that
is left, and whoever opens the folder next removes them.

    asking           held by the command that asks, one at a time
    asked.json       what to do. Of a command that is gone it is not begun.
    begun.json       the same, while the server does it
    answered.json    what came of it
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
from radixserve.store.changes import Brought, Mended, Parts, bringing, mending
from radixserve.store.disk import Disk
from radixserve.store.disk_store import DiskStore
from radixserve.store.layout import ANSWERED, ASKED, ASKING, BEGUN
from radixserve.store.lock import is_held, is_locked

BEGIN_SECONDS = 30.0  # a server that has not begun by then does not take errands
_LOOK_SECONDS = 0.05
_ANSWER_BYTES = 1 << 28  # a line for each run that was damaged

log = logging.getLogger(__name__)


class Clear(msgspec.Struct, tag="clear", frozen=True):
    """Remove every run."""


class Mend(msgspec.Struct, tag="mend", frozen=True):
    """Verify every run and remove what is wrong."""


class Bring(msgspec.Struct, tag="bring", frozen=True):
    """Import this file; an absolute path."""

    source: str


class Asked(msgspec.Struct, frozen=True):
    """An errand; the answer bears the same number."""

    number: str
    errand: Clear | Mend | Bring


class Answer(msgspec.Struct, omit_defaults=True):
    """What came of an errand, or an error, which is a sentence for the operator."""

    number: str = ""
    num_removed: int = 0
    mended: Mended = msgspec.field(default_factory=Mended)
    brought: Brought = msgspec.field(default_factory=Brought)
    error: str | None = None


class Attendant:
    """The server's side. `asked` may be looked at from any thread, the rest is for the store's."""

    def __init__(self, store: DiskStore) -> None:
        self._store, self._disk, self._path = store, store.folder.disk, store.folder.path
        self._number = ""
        self._parts: Parts[Answer] | None = None
        store.folder.attend()

    @property
    def asked(self) -> bool:
        """A command has asked for something."""
        return self._disk.exists(self._path / ASKED)

    def work(self) -> bool:
        """Begin or continue; True when there is nothing left to do.

        Raises:
            OSError: the answer could not be written, or the question not be read.
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
        """Take what was asked; None where that is nothing, or nobody waits for it any more."""
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
        """Say it, or at least that it is over."""
        self._parts = None
        answer.number = self._number
        try:
            self._disk.publish(self._path / ANSWERED, [msgspec.json.encode(answer)])
        finally:
            self._disk.unlink(self._path / BEGUN)


def ask(disk: Disk, folder: Path, errand: Clear | Mend | Bring) -> Answer:
    """Have the server that holds `folder`, a store that `disk` holds open, do something, and wait
    until it is done.

    Raises:
        StartupError: it could not be done, another command asks just now, or the server does not
            answer.
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
    """The answer, whatever time it takes once the server has begun."""
    until = time.monotonic() + BEGIN_SECONDS
    while True:
        held = is_held(disk, folder)  # before the look for the answer: it may answer and end
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
