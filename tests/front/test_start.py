"""A start that fails ends with one sentence for the operator, whatever it was that failed."""

from __future__ import annotations

import signal
import socket
from pathlib import Path

import msgspec
import pytest

from radixserve.config import Settings
from radixserve.engine import process
from radixserve.engine.process import EXIT_REFUSED, Channel
from radixserve.errors import ModelRefused, StartupError
from radixserve.front import supervisor
from radixserve.front.child import Child
from radixserve.front.client import ProcessEngine
from radixserve.messages import FrameReader, Loading, Prepare, Refused, Start, ToFront, encode
from tests.front.test_client import SETTINGS


def said_at_start(
    error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> tuple[int, list[ToFront]]:
    """Exit code and messages of an engine process whose start raises `error`."""

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(process, "build_engine", fail)
    monkeypatch.setattr(process, "configure_logging", lambda level, role: None)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(encode(Start(SETTINGS, "/models/m")))
        code = process._serve(Channel(theirs))
        decoder = msgspec.msgpack.Decoder(ToFront)
        return code, [decoder.decode(body) for body in FrameReader().feed(ours.recv(1 << 20))]


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (ModelRefused("It is damaged."), "It is damaged."),
        (
            RuntimeError("weights\n  of another kind"),
            "The model in /models/m cannot be served: RuntimeError: weights",
        ),
        (MemoryError(), "The model in /models/m cannot be served: MemoryError: MemoryError"),
    ],
)
def test_whatever_ends_a_start_is_told_in_one_sentence(
    error: Exception, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, said = said_at_start(error, monkeypatch)
    assert code == EXIT_REFUSED
    assert said == [Loading("loading the model"), Refused(sentence)]


@pytest.mark.parametrize("error", [None, ImportError("no torch")])
def test_an_engine_that_is_begun_imports_before_it_is_told_the_model(
    error: Exception | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What fails then is told when it fails again."""
    imported = []

    def import_engine(settings: Settings) -> None:
        imported.append(settings)
        if error is not None:
            raise error

    monkeypatch.setattr(process, "import_engine", import_engine)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(encode(Prepare(SETTINGS, at_once=True)) + encode(Start(SETTINGS, "m")))
        assert process._start(Channel(theirs)) == Start(SETTINGS, "m")
        ours.setblocking(False)
        with pytest.raises(BlockingIOError):  # nothing is answered
            ours.recv(1)
    assert imported == [SETTINGS]


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (-signal.SIGKILL, "was ended by SIGKILL while it started: the machine, or the container, "),
        (-signal.SIGSEGV, "was ended by SIGSEGV while it started: its last words are above"),
        (1, "ended with exit code 1 while it started: its last words are above"),
    ],
)
async def test_a_process_that_ends_without_a_word_is_told_by_its_end(
    code: int, words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Ended(Child):
        async def run(self, *_: object) -> int | None:
            return code

    monkeypatch.setattr(supervisor, "Child", Ended)
    engine = ProcessEngine(SETTINGS, str(tmp_path), lambda _: None, lambda _: None, lambda: None)
    with pytest.raises(StartupError, match=words):
        await engine.start()
    await engine.stop()
