"""Copies between the host and the device: uploads, which never wait, and downloads, which wait
once.

A plain copy between ordinary memory and a CUDA device waits for everything launched before it;
copies from and to pinned memory do not. On a CPU the host's memory is the device's, and nothing is
copied.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch


def upload(values: npt.NDArray[Any], device: torch.device) -> torch.Tensor:
    """`values` on the device, copied in order with what is launched. Torch keeps the pinned copy
    until it has been read.
    """
    tensor = torch.from_numpy(values)
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


def upload_ids(ids: list[int], device: torch.device) -> torch.Tensor:
    """`ids` on the device, int64 [len(ids)]."""
    return upload(np.array(ids, np.int64), device)


class Download:
    """A copy of tensors of one device to the host, launched now: it shows them as everything
    launched before left them.
    """

    def __init__(self, *tensors: torch.Tensor) -> None:
        self._tensors = tensors
        self._arrived: torch.cuda.Event | None = None
        if tensors[0].device.type == "cuda":
            self._tensors = tuple(_copied(tensor) for tensor in tensors)
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record()

    def wait(self) -> tuple[torch.Tensor, ...]:
        """The tensors on the host. Waits for them, and for nothing that was launched later."""
        if self._arrived:
            self._arrived.synchronize()
        return self._tensors


def _copied(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(
        tensor, non_blocking=True
    )
