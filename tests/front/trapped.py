"""An engine process with traps for tests: `python trapped.py FD` in the place of `-m
radixserve.engine.process`.

Some token ids are traps that go off when the model of no cost computes them: see `Trap`. Files in
the folder named by the variable `TRAPS_FOLDER` count how often, and say whether a step is held;
with `TRAPS_HANG_AT_START` it never gets so far. What a spare imports is a trap, too: it hangs while
the file "hang_import" is there.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from enum import IntEnum
from pathlib import Path

import torch

from radixserve.cache.kvcache import KVCache
from radixserve.config import Settings
from radixserve.engine import process
from radixserve.engine.core import EngineCore
from radixserve.engine.scheduler import Limits
from radixserve.errors import ModelRefused
from radixserve.messages import Start
from radixserve.model.fake import FakeModel
from radixserve.step import Chunk, EngineInfo

TOKEN_SECONDS = 0.002  # a step takes this long, so that a test can catch an answer in the middle


class Trap(IntEnum):
    """What happens to a step that computes this token."""

    KILL = 190  # the process dies, each time
    HOLD = 191  # the step does not end while the file "hold" is there
    LOSE = 192  # the first time, the device is lost: from then on every step of this process raises
    HANG = 193  # the step never ends, and uses the processor


_lost: list[bool] = []


def mark(folder: Path, name: str) -> None:
    """Count in a file: one byte for each time."""
    with (folder / name).open("ab") as file:
        file.write(b".")


def count(folder: Path, name: str) -> int:
    """How often `name` was marked."""
    path = folder / name
    return path.stat().st_size if path.exists() else 0


def spring(token_ids: Sequence[int], folder: Path) -> None:
    """Let the traps among `token_ids` go off."""
    if Trap.KILL in token_ids:
        mark(folder, "killed")
        os.kill(os.getpid(), signal.SIGKILL)
    if (Trap.LOSE in token_ids and not count(folder, "lost")) or _lost:
        mark(folder, "lost")
        _lost.append(True)
        raise RuntimeError("CUDA error: device-side assert triggered")
    if Trap.HANG in token_ids:
        while True:
            sum(range(1000))
    if Trap.HOLD in token_ids:
        mark(folder, "held")
        while (folder / "hold").exists():
            time.sleep(0.005)


class TrappedModel(FakeModel):
    """The model of no cost, with traps."""

    def forward(
        self,
        chunks: Sequence[Chunk],
        drawn: torch.Tensor | None = None,
        between_layers: Callable[[], None] | None = None,
    ) -> torch.Tensor:
        time.sleep(TOKEN_SECONDS)
        spring(
            [token for chunk in chunks for token in chunk.token_ids.tolist()],
            Path(os.environ["TRAPS_FOLDER"]),
        )
        return super().forward(chunks, drawn, between_layers)


def build_engine(start: Start) -> tuple[EngineCore, EngineInfo]:
    """In the place of the real one, which loads transformers and with that takes three times as
    long to start.
    """
    if os.environ.get("TRAPS_HANG_AT_START"):
        threading.Event().wait()
    if not (Path(start.model) / "config.json").exists():
        raise ModelRefused(f"no model configuration in {start.model}")
    cache = KVCache(4096, slot_bytes=16)
    core = EngineCore(TrappedModel(200), cache, Limits(start.settings.max_running, 256))
    info = EngineInfo(
        vocab_size=200,
        context_length=2048,
        eos_token_ids=(),
        max_request_tokens=2048,
        num_slots=4096,
        pool_slots=4096,
        slot_bytes=16,
        device="cpu",
        dtype="float32",
        checkpoint_dtype="float32",
        kv_dtype="float32",
        attention="none",
        exact=True,
    )
    return core, info


def import_engine(settings: Settings) -> None:
    """In the place of the imports of a spare."""
    folder = Path(os.environ["TRAPS_FOLDER"])
    mark(folder, "spares")
    while (folder / "hang_import").exists():
        time.sleep(0.005)


if __name__ == "__main__":
    process.build_engine = build_engine
    process.import_engine = process.import_all = import_engine
    sys.exit(process.main())
