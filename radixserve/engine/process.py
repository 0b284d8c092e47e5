"""The engine process: loads the model, then takes messages and runs steps until the front is gone.

Started by `front.child` as `python -m radixserve.engine.process FD`, FD being its end of a Unix
socket pair; the first message is `Start`. The first engine of a server gets `Prepare` before that,
and so does a spare engine, which has the word "spare" behind FD. The process has one thread:
between two steps it reads its messages, and while there is nothing to compute it sleeps in
`select`. The end of the stream means that the front is gone, so the engine exits and nothing
outlives the front.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, NoReturn

import msgspec

from radixserve.config import Settings
from radixserve.engine.imports import nothing_collected
from radixserve.engine.spare import ENGINE, SPARE, Imports, name_process
from radixserve.errors import DeviceLost, StartupError, first_line
from radixserve.logs import configure_logging
from radixserve.messages import (
    Abort,
    FrameReader,
    Loading,
    Prepare,
    Prepared,
    Ready,
    Refused,
    Report,
    Start,
    ToEngine,
    ToFront,
    encode,
)
from radixserve.questions import Asked
from radixserve.request import Request
from radixserve.step import EngineInfo, TokenEvent

if TYPE_CHECKING:
    from radixserve.engine.core import EngineCore  # imports torch

log = logging.getLogger(__name__)

EXIT_REFUSED = 2
EXIT_DEVICE_LOST = 3
STATS_INTERVAL_SECONDS = 0.1
BEAT_SECONDS = 1.0  # an engine with work reports at least that often, or it is taken for hung
# For writing to the disk what is queued, once the front is gone. Less than `child.EXIT_SECONDS`.
CLOSE_SECONDS = 3.0
IMPORT_CHECK_SECONDS = 0.05  # how often a spare looks whether it has imported everything
_RECEIVE_BYTES = 1 << 20


class FrontGone(Exception):
    """The front closed its end of the socket."""


class Channel:
    """The engine's end of the socket pair."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._frames = FrameReader()
        self._decoder = msgspec.msgpack.Decoder(ToEngine)
        self._seen: list[ToEngine] = []  # that have arrived and are not received yet

    def look(self) -> list[ToEngine]:
        """What has arrived since the last call; `receive` yields it later. Never sleeps."""
        arrived: list[ToEngine] = []
        if select.select([self._sock], [], [], 0)[0]:
            # If the front is gone this is empty now, and again when `receive` reads.
            data = self._sock.recv(_RECEIVE_BYTES)
            arrived = [self._decoder.decode(body) for body in self._frames.feed(data)]
            self._seen += arrived
        return arrived

    def receive(self, patience: float | None, also: Sequence[int] = ()) -> Iterator[ToEngine]:
        """The messages that have arrived. Sleeps until there is one, for at most `patience` seconds
        (None: without limit).

        It also wakes when one of the file descriptors `also` is readable.

        Raises:
            FrontGone: the front closed the socket.
        """
        ours = self._sock.fileno()
        while self._seen:
            patience = 0.0
            yield self._seen.pop(0)
        while ours in select.select([ours, *also], [], [], patience)[0]:
            data = self._sock.recv(_RECEIVE_BYTES)
            if not data:
                raise FrontGone
            for body in self._frames.feed(data):
                patience = 0.0
                yield self._decoder.decode(body)

    def send(self, message: ToFront) -> None:
        """Send `message`. Blocks while the front is behind by more than the socket's buffer.

        Raises:
            FrontGone: the front closed the socket.
        """
        try:
            self._sock.sendall(encode(message))
        except OSError as gone:
            raise FrontGone from gone


class EngineLoop:
    """Reads messages, runs steps, sends reports."""

    def __init__(self, core: EngineCore, channel: Channel) -> None:
        self._core = core
        self._channel = channel
        self._also = core.tiers.filenos()
        core.arrivals = self._arrivals
        self._reported_at = 0.0

    def run(self) -> None:
        """Never returns; raises FrontGone when the front is gone."""
        while True:
            events = self._take_messages()
            events += self._core.step()
            answers = self._core.answers()
            self._report(events)  # behind answers, because what they change is in its numbers
            if (changes := self._core.pins.changes()) is not None:
                self._channel.send(changes)
            if (blocks := self._core.block_changes()) is not None:
                self._channel.send(blocks)
            for answer in answers:
                self._channel.send(answer)

    def _take_messages(self) -> list[TokenEvent]:
        events: list[TokenEvent] = []
        for message in self._channel.receive(self._patience, self._also):
            if isinstance(message, Request):
                events += self._core.submit(message, message.output_ids)
            elif isinstance(message, Abort):
                events += self._core.abort(message.request_id)
            elif isinstance(message, Asked):
                self._core.ask(message)
        return events

    def _arrivals(self) -> list[Request]:
        return [message for message in self._channel.look() if isinstance(message, Request)]

    @property
    def _patience(self) -> float | None:
        """How many seconds to sleep at most. Requests may wait for the disk longer than the front
        waits for a report, so an engine with work wakes to report.
        """
        patience = self._core.patience
        if not self._core.has_work:
            return patience
        return BEAT_SECONDS if patience is None else min(patience, BEAT_SECONDS)

    def _report(self, events: list[TokenEvent]) -> None:
        """Send events at once, and statistics every 100 ms and whenever the engine becomes idle."""
        due = (
            not self._core.has_work
            or time.monotonic() - self._reported_at >= STATS_INTERVAL_SECONDS
        )
        if due:
            self._reported_at = time.monotonic()
        if events or due:
            self._channel.send(Report(events, self._core.stats() if due else None))


def main() -> int:
    """The entry point of the child process. Returns its exit code.

    It is 0 when the front is gone, 2 when the start was refused, 3 when the device was lost, which
    a new process can use again.
    """
    # Ctrl-C reaches the whole process group; the front decides when the engine ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    channel = Channel(socket.socket(fileno=int(sys.argv[1])))
    try:
        return _serve(channel)
    except FrontGone:
        return 0
    except DeviceLost as lost:
        log.error("the device is lost to this process, which ends: %s", lost)
        return EXIT_DEVICE_LOST


def build_engine(start: Start) -> tuple[EngineCore, EngineInfo]:
    """The engine for what `start` says. What it needs is imported here, after the first message.

    Raises:
        StartupError: the model or a setting makes it impossible; gives the reason.
    """
    settings = start.settings
    import_engine(settings)
    if settings.fake_model:
        from radixserve.engine import build_fake

        return build_fake.build_engine(settings, start.model)
    from radixserve.engine import build

    return build.build_engine(settings, start.model, start.adapters)


def import_engine(settings: Settings) -> None:
    """Import what an engine with these settings needs: for a real model torch and the compiler of
    kernels, about half of a start. transformers is imported only if the model has to be checked
    (`engine.load`).
    """
    with nothing_collected():
        if settings.fake_model:
            from radixserve.engine import build_fake  # noqa: F401
        else:
            from radixserve.engine import build  # noqa: F401


def import_all(settings: Settings) -> None:
    """Import also what the model may need if no earlier start has checked it. A spare has time."""
    import_engine(settings)
    if not settings.fake_model:
        with nothing_collected():
            from radixserve.model import load  # noqa: F401


def _start(channel: Channel) -> Start:
    """The message `Start`, once it comes. What `Prepare` asks for is imported before that. A spare
    answers each `Prepare` when it has imported everything.

    Raises:
        FrontGone: the front closed the socket, also while the spare imports.
    """
    imports: Imports | None = None
    is_asked = False
    while True:
        for message in channel.receive(IMPORT_CHECK_SECONDS if is_asked else None):
            if isinstance(message, Start):
                return message
            assert isinstance(message, Prepare), "before Start only Prepare can come"
            if message.at_once:
                with contextlib.suppress(Exception):  # it fails again, and is told, after Start
                    import_engine(message.settings)
                continue
            name_process(SPARE)
            imports = imports or Imports(partial(import_all, message.settings))
            is_asked = True
        if is_asked and imports is not None and imports.are_done:
            channel.send(Prepared())
            is_asked = False


def _serve(channel: Channel) -> int:
    start = _start(channel)
    name_process(ENGINE)
    configure_logging(start.settings.log_level, "engine")
    channel.send(Loading("loading the model"))
    try:
        core, info = build_engine(start)
    except StartupError as refusal:
        channel.send(Refused(str(refusal)))
        return EXIT_REFUSED
    except DeviceLost:
        raise
    except Exception as error:  # any fault ends in one sentence of the front
        log.exception("the start failed")
        reason = f"{type(error).__name__}: {first_line(error)}"
        channel.send(Refused(f"The model in {start.model} cannot be served: {reason}"))
        return EXIT_REFUSED
    if start.settings.kv_events is not None:
        core.watch_blocks(start.settings.kv_events_block)
    gc.freeze()  # what was loaded stays; examining it in every collection would stall steps
    channel.send(Ready(info))
    if not start.settings.fake_model:  # whose engine never imports what this needs
        core.prepare()
    try:
        EngineLoop(core, channel).run()
    finally:
        core.close(CLOSE_SECONDS)
    return 0


def leave(code: int) -> NoReturn:
    """End the process at once. Python's usual exit closes files and may wait for a thread that
    hangs in the disk.
    """
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


if __name__ == "__main__":
    leave(main())
