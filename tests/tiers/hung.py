"""An engine process over a disk that hangs once the file `hang` is in the folder of the model:
`python hung.py FD` in the place of `-m radixserve.engine.process`.

The variable `HANG_AT` says where: in a write, in SQLite, which then holds its lock, or when the
store is closed.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from radixserve.engine import process
from radixserve.engine.core import EngineCore
from radixserve.messages import Start
from radixserve.step import EngineInfo
from tests.fakes import INFO
from tests.store.parts import QuickDisk
from tests.tiers.parts import Tiered


class HungDisk(QuickDisk):
    """Does not come back from some steps once it hangs."""

    def __init__(self, folder: Path, at: str) -> None:
        self.folder, self.at = folder, at

    def hang(self) -> None:
        if (self.folder / "hang").exists():
            (self.folder / "hangs").touch()
            threading.Event().wait()

    def write(self, path: Path, parts: Sequence[bytes | memoryview]) -> None:
        if self.at == "write":
            self.hang()
        super().write(path, parts)

    def execute(
        self, connection: sqlite3.Connection, statement: str, values: Sequence[Any] = ()
    ) -> list[Any]:
        if self.at == "sql" and statement.startswith("INSERT"):
            connection.create_function("hang", 0, self.hang)
            connection.execute("SELECT hang()").fetchall()
        return super().execute(connection, statement, values)

    def release(self) -> None:
        if self.at == "close":
            self.hang()
        super().release()


def build_engine(start: Start) -> tuple[EngineCore, EngineInfo]:
    folder = Path(start.model)
    disk = HungDisk(folder, os.environ["HANG_AT"])
    return Tiered(128, folder=folder / "store", disk=disk).core, INFO


if __name__ == "__main__":
    process.build_engine = build_engine
    process.CLOSE_SECONDS = 1.0
    process.leave(process.main())
