"""Which dtype a model is served in, and that the log and /version's facts tell."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
import torch

from radixserve.checkpoints.opened import open_model
from radixserve.config import Settings
from radixserve.engine.build import build_engine
from radixserve.kernels.cpu import levels
from radixserve.kernels.cpu.levels import Level
from radixserve.model.dtypes import dtype_for
from tests.tiny import CPU, tiny_model

CUDA = torch.device("cuda")
F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
STORED = (F32, BF16, F16)


@pytest.mark.parametrize("level", Level)
@pytest.mark.parametrize("stored", STORED, ids=str)
def test_auto_on_the_cpu_is_bfloat16_where_that_is_stored_and_fast(
    stored: torch.dtype, level: Level, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(levels, "current", lambda: level)
    fast = level >= Level.AVX512_BF16 and stored == BF16
    assert dtype_for("auto", stored, CPU) == (BF16 if fast else F32)


@pytest.mark.parametrize(("stored", "served"), [(F32, BF16), (BF16, BF16), (F16, F16)], ids=str)
def test_auto_on_cuda_is_a_half_precision_the_checkpoints_own_if_it_has_one(
    stored: torch.dtype, served: torch.dtype
) -> None:
    assert dtype_for("auto", stored, CUDA) == served


@pytest.mark.parametrize("stored", STORED, ids=str)
@pytest.mark.parametrize("device", [CPU, CUDA], ids=str)
def test_what_a_setting_names_is_used(stored: torch.dtype, device: torch.device) -> None:
    wanted: dict[Literal["float32", "bfloat16", "float16"], torch.dtype]
    wanted = {"float32": F32, "bfloat16": BF16, "float16": F16}
    for name, dtype in wanted.items():
        assert dtype_for(name, stored, device) == dtype


@pytest.mark.parametrize("stored", STORED, ids=str)
def test_the_headers_tell_the_stored_dtype(stored: torch.dtype, tmp_path: Path) -> None:
    model = tiny_model("llama").to(stored)
    model.model.norm.float()  # a few weights of another dtype do not count
    model.save_pretrained(tmp_path)
    assert open_model(str(tmp_path)).stored_dtype == stored


@pytest.mark.parametrize(
    ("wanted", "served", "told"),
    [
        ("auto", "float32", "as float32 (its weights are stored as float16)"),
        ("float16", "float16", "as float16"),
    ],
)
def test_a_float16_checkpoint_on_the_cpu_is_served_and_the_log_tells_as_what(
    wanted: Literal["auto", "float16"],
    served: str,
    told: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    tiny_model("llama").to(F16).save_pretrained(tmp_path)
    caplog.set_level("INFO")
    settings = Settings(device="cpu", dtype=wanted, kv_budget=1 << 20)
    _, info = build_engine(settings, str(tmp_path))
    assert (info.dtype, info.checkpoint_dtype) == (served, "float16")
    assert info.exact == (served == "float32")
    assert f"on cpu {told}" in [
        line.partition("loading ")[2].partition(" ")[2] for line in caplog.messages
    ]
