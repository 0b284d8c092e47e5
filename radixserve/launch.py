"""`radixserve serve`: takes the address, begins the engine processes, and serves.

An engine process imports for a second before it can load anything, so they are begun first, one for
each model. Meanwhile this process imports the rest of the server and finds the models, whose files
are verified if they were converted.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Sequence

from radixserve.api.address import Address, take_address
from radixserve.config import Settings
from radixserve.each_model import each_model
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
    each = each_model(settings)
    signal.signal(signal.SIGTERM, _leave)
    if settings.api_key_file is not None:  # the file is read later, so there is nothing to do yet
        signal.signal(signal.SIGHUP, lambda number, frame: None)
    # A port in use and an unusable folder are found before any process is started.
    address = take_address(settings)
    try:
        check_keys(settings)
        bodies_to_warm(settings)
        public_bodies(settings)
        for one in each:
            check_folders(one)
        with asyncio.Runner() as runner:
            return _with_engines(runner, settings, each, address)
    finally:
        address.close()


def _leave(number: int, frame: object) -> None:
    """End the process during start, when there is nothing to drain; cleanup runs on the way out."""
    raise SystemExit(128 + number)


def _with_engines(
    runner: asyncio.Runner, settings: Settings, each: Sequence[Settings], address: Address
) -> int:
    engines = [Child() for _ in each]
    try:
        for one, engine in zip(each, engines, strict=True):
            with contextlib.suppress(OSError):  # it is started later, or the reason is told then
                runner.run(engine.begin(for_engine(one)))
        from radixserve.assembly import find_each
        from radixserve.serve import serve

        models = list(zip(each, find_each(each), engines, strict=True))
        return runner.run(serve(settings, models, address))
    finally:
        for engine in engines:
            runner.run(engine.end())
