"""The messages between front and engine, and the frames that carry them.

One frame is a length (4 bytes, big endian) and that many bytes of msgpack; one frame holds one
message. Only the types below exist on the wire: nothing is pickled and nothing else is decoded.
Knows no sockets.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import msgspec

from radixserve.adapters import AdapterSource
from radixserve.blocks import BlockChanges
from radixserve.config import Settings
from radixserve.questions import Answered, Asked, Pin
from radixserve.request import Request
from radixserve.step import EngineInfo, EngineStats, TokenEvent

MAX_FRAME_BYTES = 256 * 1024 * 1024
_LENGTH = struct.Struct(">I")


class Start(msgspec.Struct, tag="start", frozen=True):
    """The first message to a new engine: load this model (a folder or a hub name) with these
    settings, and these adapters. Those with a digest were loaded by an earlier engine; they are
    left out if they cannot be loaded any more.
    """

    settings: Settings
    model: str
    adapters: tuple[AdapterSource, ...] = ()


class Prepare(msgspec.Struct, tag="prepare", frozen=True):
    """To an engine that gets `Start` later: import what an engine with these settings needs. A
    spare does so beside the engine that serves, and answers `Prepared`; it may be asked again,
    whether it still answers. The first engine imports at once, and answers nothing.
    """

    settings: Settings
    at_once: bool = False


class Abort(msgspec.Struct, tag="abort", frozen=True):
    """Stop a request. Unknown ids are ignored, because the request may just have ended."""

    request_id: str


class Prepared(msgspec.Struct, tag="prepared", frozen=True):
    """The spare engine has imported everything and waits for `Start`."""


class Loading(msgspec.Struct, tag="loading", frozen=True):
    """The engine has reached this stage of its start."""

    stage: str


class Ready(msgspec.Struct, tag="ready", frozen=True):
    """The model is loaded; requests are taken from now on."""

    info: EngineInfo


class Refused(msgspec.Struct, tag="refused", frozen=True):
    """The engine cannot start, and another try would fail the same way. The sentence is for the
    operator.
    """

    message: str


class Report(msgspec.Struct, tag="report", frozen=True):
    """The events of one step, and every 100 ms or so the statistics."""

    events: list[TokenEvent]
    stats: EngineStats | None = None


class PinChanges(msgspec.Struct, tag="pin_changes", frozen=True):
    """What became of pins since the last message: those that were made or got a new end, each as
    the question that makes it again; by their ids the seconds until the end of those that were
    renewed, 0 for those that have ended; and the tokens that a pin holds now, where that has
    changed. A new pin holds none.
    """

    made: list[Pin]
    seconds: dict[str, float]
    held: dict[str, int] = {}


ToEngine = Prepare | Start | Request | Abort | Asked
ToFront = Prepared | Loading | Ready | Refused | Report | PinChanges | BlockChanges | Answered
FromEngine = Ready | Report | PinChanges | BlockChanges | Answered
"""What an engine that is loaded tells the rest of the front."""

_encoder = msgspec.msgpack.Encoder()


def encode(message: ToEngine | ToFront) -> bytes:
    """The frame of `message`."""
    body = _encoder.encode(message)
    return _LENGTH.pack(len(body)) + body


class FrameReader:
    """Splits a byte stream into the bodies of frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The bodies that are complete after `data`. One that was yielded never comes again, even
        if the caller stops in between.

        Raises:
            ValueError: a frame claims more than MAX_FRAME_BYTES; the stream is not ours.
        """
        self._buffer += data
        start = 0
        try:
            while len(self._buffer) - start >= _LENGTH.size:
                (length,) = _LENGTH.unpack_from(self._buffer, start)
                if length > MAX_FRAME_BYTES:
                    raise ValueError(
                        f"a frame of {length} bytes exceeds the limit of {MAX_FRAME_BYTES}"
                    )
                begin, stop = start + _LENGTH.size, start + _LENGTH.size + length
                if stop > len(self._buffer):
                    break
                start = stop
                yield bytes(self._buffer[begin:stop])
        finally:
            del self._buffer[:start]
