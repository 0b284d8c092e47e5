"""`radixserve serve`: takes the address, begins the engine process, and serves.

The engine process imports for a second before it can load anything, so it is begun first.
Meanwhile this process imports the rest of the server and finds the model, whose files are verified
if they were converted.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal

from radixserve.api.address import Address, take_address
from radixserve.config import Settings
from radixserve.front.child import Child
from radixserve.preparations import (
    bodies_to_warm,
    check_folders,
    check_keys,
    for_engine,
    public_bodies,
)


def launch(settings: Settings) -> int:
    """Serve until a signal; the exit code.

    Raises:
        StartupError: the server cannot start because of a setting, the model or the port.
    """
    signal.signal(signal.SIGTERM, _leave)
    if settings.api_key_file is not None:  # the file is read later, so there is nothing to do yet
        signal.signal(signal.SIGHUP, lambda number, frame: None)
    # A port in use and an unusable folder are found before any process is started.
    address = take_address(settings)
    try:
        check_keys(settings)
        bodies_to_warm(settings)
        public_bodies(settings)
        check_folders(settings)
        with asyncio.Runner() as runner:
            return _with_engine(runner, settings, address)
    finally:
        address.close()


def _leave(number: int, frame: object) -> None:
    """End the process during start, when there is nothing to drain; cleanup runs on the way out."""
    raise SystemExit(128 + number)


def _with_engine(runner: asyncio.Runner, settings: Settings, address: Address) -> int:
    engine = Child()
    try:
        with contextlib.suppress(OSError):  # it is started later, or the reason is told then
            runner.run(engine.begin(for_engine(settings)))
        from radixserve.checkpoints.source import find_model
        from radixserve.serve import serve

        return runner.run(serve(settings, find_model(settings), address, engine))
    finally:
        runner.run(engine.end())
