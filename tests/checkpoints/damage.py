"""What tests do to the files of a sound model's folder."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

WEIGHTS = "model.safetensors"


def change_config(folder: Path, **values: Any) -> None:
    """Write `values` over those of the configuration."""
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Let `change` change the tensors, and write them again."""
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def header_and_data(folder: Path) -> tuple[dict[str, Any], bytes]:
    """The header of the weights, and what follows it."""
    content = (folder / WEIGHTS).read_bytes()
    [length] = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def write_header(folder: Path, header: bytes, data: bytes, length: int | None = None) -> None:
    """Write weights whose header claims to have `length` bytes; None: as many as it has."""
    claimed = struct.pack("<Q", len(header) if length is None else length)
    (folder / WEIGHTS).write_bytes(claimed + header + data)


def add_names(folder: Path, number: int) -> None:
    """Add `number` tensors without values to the header of the weights."""
    header, data = header_and_data(folder)
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [len(data), len(data)]}
    header |= {f"extra.{index}": empty for index in range(number)}
    write_header(folder, json.dumps(header).encode(), data)
