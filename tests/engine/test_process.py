"""The engine process before its first step, and its end of the socket."""

from __future__ import annotations

import gc
import socket
from unittest.mock import Mock

import pytest

from radixserve.config import Settings
from radixserve.engine import process
from radixserve.engine.imports import nothing_collected
from radixserve.engine.process import Channel, EngineLoop, FrontGone
from radixserve.messages import Abort, Loading, Start, encode


@pytest.mark.parametrize("error", [None, ImportError])
def test_garbage_is_collected_again_after_imports(error: type[Exception] | None) -> None:
    frozen = gc.get_freeze_count()
    try:
        with nothing_collected():
            assert not gc.isenabled()
            if error is not None:
                raise error
    except ImportError:
        assert error is not None
    assert gc.isenabled()
    assert gc.get_freeze_count() > frozen
    gc.unfreeze()


class Started(Exception):
    """The loop of steps begins."""


@pytest.mark.parametrize("fake_model", [True, False])
def test_what_grammars_need_is_built_after_ready_and_before_any_step(
    fake_model: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    happened: list[object] = []
    core, info = Mock(), Mock()
    core.prepare.side_effect = lambda: happened.append("prepare")

    def run(loop: EngineLoop) -> None:
        happened.append("loop")
        raise Started

    channel = Mock()
    channel.receive.return_value = [Start(Settings(fake_model=fake_model), "model")]
    channel.send.side_effect = lambda message: happened.append(type(message))
    for name in ("name_process", "configure_logging"):
        monkeypatch.setattr(process, name, lambda *_: None)
    monkeypatch.setattr(process, "build_engine", lambda *_: (core, info))
    monkeypatch.setattr(process, "Ready", lambda info: "ready")
    monkeypatch.setattr(EngineLoop, "run", run)
    with pytest.raises(Started):
        process._serve(channel)
    gc.unfreeze()
    prepared = [] if fake_model else ["prepare"]
    assert happened == [Loading, str, *prepared, "loop"]


def test_what_was_looked_at_is_received_later_and_in_order() -> None:
    ours, theirs = socket.socketpair()
    channel = Channel(theirs)
    assert channel.look() == []
    ours.sendall(encode(Abort("a")) + encode(Abort("b")))
    assert channel.look() == [Abort("a"), Abort("b")]
    ours.sendall(encode(Abort("c")))
    assert channel.look() == [Abort("c")]
    ours.sendall(encode(Abort("d")))
    assert list(channel.receive(None)) == [Abort(name) for name in "abcd"]
    ours.close()
    assert channel.look() == []
    with pytest.raises(FrontGone):
        list(channel.receive(None))
    theirs.close()
