"""What an engine process does while it is a spare: it imports what an engine needs, which is about
half of a start, and waits. It loads no model.

The imports run in a thread that yields to all others, so that they take only time that the serving
engine leaves. Only that thread is slow: an ordinary process that has lowered its own priority is
not allowed to raise it again. Importing starts threads of libraries, so a process that has imported
cannot be forked safely; that is why a spare serves once and is not copied.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from pathlib import Path

from radixserve.background import yield_to_others

SPARE, ENGINE = "radix-spare", "radix-engine"
"""The names of a process in its two roles, as `top` and `ps -o comm` show them."""


class Imports:
    """Imports in a thread, which starts at once."""

    def __init__(self, imports: Callable[[], None]) -> None:
        self._imports = imports
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="imports", daemon=True)
        self._thread.start()

    @property
    def are_done(self) -> bool:
        """Whether everything is imported. Raises what the imports raised."""
        if self._thread.is_alive():
            return False
        if self._error is not None:
            raise self._error
        return True

    def _run(self) -> None:
        try:
            yield_to_others()
            self._imports()
        except BaseException as error:  # raised again in the main thread
            self._error = error


def name_process(name: str) -> None:
    """Show this process under `name`, where the system is Linux."""
    with contextlib.suppress(OSError):
        Path("/proc/self/comm").write_text(name)
