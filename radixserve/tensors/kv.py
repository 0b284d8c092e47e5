"""The K and V tensors that slots index: the device memory for K/V, allocated once at start.

One slot is one token at all layers. Knows nothing of who owns a slot; a freed slot keeps its old
content until it is written again. The memory is zeroed, because the content of slots that were
never written must be finite.

Where some layers attend a window only (`WindowedLayers`), their K/V lies in a pool of its own, and
so do the states of layers that have states (`RecurrentLayers`). One slot of the main pool is one
token at all other layers.

Where numbers take one byte (int8, fp8), each head's row of a token is followed by its scale, in the
same tensor; `tensors.one_byte` says how. Who copies rows need not know.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from radixserve.tensors.pages import fill, release, zeroed

KV = tuple[torch.Tensor, torch.Tensor]
"""K [layers, tokens, kv_heads, k_row] and V [layers, tokens, kv_heads, v_row] of some tokens."""

KV_DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int8": torch.int8,
    "fp8": torch.uint8,
}
"""The dtypes of a pool's elements by the names that users know."""

SCALED = (torch.int8, torch.uint8)
"""The dtypes of rows that end with a scale: int8, and the bytes of float8_e4m3fn. torch's own
float8 dtype means numbers without a scale, which the tiers may hold.
"""
SCALE_BYTES = 4


@dataclass(frozen=True, slots=True)
class KVShape:
    """The shape of one token's K/V. `k_dim` and `v_dim` are numbers of a head."""

    layers: int
    kv_heads: int
    k_dim: int
    v_dim: int
    dtype: torch.dtype

    @classmethod
    def of_rows(
        cls, layers: int, kv_heads: int, k_row: int, v_row: int, dtype: torch.dtype
    ) -> KVShape:
        """The shape whose rows have these sizes."""
        scale = _scale_elements(dtype)
        return cls(layers, kv_heads, k_row - scale, v_row - scale, dtype)

    @property
    def k_row(self) -> int:
        """Elements of K per head and token: the numbers, and where they have one, their scale."""
        return self.k_dim + _scale_elements(self.dtype)

    @property
    def v_row(self) -> int:
        """The same of V."""
        return self.v_dim + _scale_elements(self.dtype)

    @property
    def slot_bytes(self) -> int:
        """Bytes of K/V per token at all layers."""
        return self.layers * self.kv_heads * (self.k_row + self.v_row) * self.dtype.itemsize

    @property
    def dtype_name(self) -> str:
        """The name in KV_DTYPES."""
        return next(name for name, dtype in KV_DTYPES.items() if dtype == self.dtype)


def _scale_elements(dtype: torch.dtype) -> int:
    """Elements of a row that hold its scale."""
    return SCALE_BYTES if dtype in SCALED else 0


class KVPool:
    """`k` [layers, slots, kv_heads, k_row] and `v` [layers, slots, kv_heads, v_row] on
    one device.
    """

    def __init__(
        self,
        shape: KVShape,
        num_slots: int,
        device: torch.device,
        windowed: WindowedLayers | None = None,
        recurrent: RecurrentLayers | None = None,
    ) -> None:
        """`shape` is that of the layers in this pool, without the `windowed` or `recurrent`
        ones, of which a model has one kind.
        """
        self.shape = shape
        self.num_slots = num_slots
        self.windowed, self.recurrent = windowed, recurrent
        size = (shape.layers, num_slots, shape.kv_heads)
        self.k = _zeros((*size, shape.k_row), shape.dtype, device)
        self.v = _zeros((*size, shape.v_row), shape.dtype, device)
        self._released = threading.Event()  # some of it: no more is made in advance

    @property
    def slot_bytes(self) -> int:
        return self.shape.slot_bytes

    def fill(self, num_slots: int) -> None:
        """Let the system make the memory of the first `num_slots` slots in the background. Host
        memory is only reserved until it is touched.
        """
        if self.k.device.type == "cpu" and self.shape.layers:
            fill(*(each[:, :num_slots] for each in self.tensors), until=self._released)

    def release(self, start: int) -> None:
        """Give the memory of the slots from `start` on, whose content is lost, back to the system:
        host memory only.
        """
        self._released.set()
        if self.k.device.type == "cpu":
            release(*(each[:, start:] for each in self.tensors))

    def of_layer(self, layer: int) -> tuple[KVPool, int]:
        """The pool with the K/V or the states of a layer of the model, and the layer's number
        there.
        """
        if self.second is None:
            return self, layer
        is_second, number = self.second.places[layer]
        return (self.second.pool if is_second else self), number

    @property
    def second(self) -> WindowedLayers | RecurrentLayers | None:
        """The layers with a pool of their own."""
        return self.recurrent if self.windowed is None else self.windowed

    @property
    def parts(self) -> list[KVPool]:
        """This pool, and that of the windowed layers if there are some."""
        return [self] if self.windowed is None else [self, self.windowed.pool]

    @property
    def tensors(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.k, self.v


class WindowedLayers:
    """The layers of a model that attend a window, and the pool of their K/V, in which a token has a
    window slot for as long as it needs one (`cache.windows`). The slot behind the last of these
    stays zeros: it stands for tokens without one, which attention may load but never counts.
    """

    def __init__(
        self,
        shape: KVShape,
        is_windowed: Sequence[bool],
        num_window_slots: int,
        device: torch.device,
        slot_of: npt.NDArray[np.int32],
    ) -> None:
        """`shape` is that of all layers of the model; `is_windowed` says which of them attend a
        window. `slot_of` gives the window slot of each slot of the main pool, -1 without one; its
        owner changes it.
        """
        self.pool = KVPool(replace(shape, layers=sum(is_windowed)), num_window_slots + 1, device)
        self._slot_of, self._zero_slot = slot_of, num_window_slots
        self.places = _numbered(is_windowed)

    def slots_of(self, slots: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
        """The window slots of slots of the main pool; the slot of zeros for those without one."""
        found = self._slot_of[slots]
        found[found < 0] = self._zero_slot
        return found


def _numbered(is_second: Sequence[bool]) -> list[tuple[bool, int]]:
    """For each layer whether it is one of the second kind, and its number among its kind."""
    counts, places = {True: 0, False: 0}, []
    for each in is_second:
        places.append((each, counts[each]))
        counts[each] += 1
    return places


@dataclass(frozen=True, slots=True)
class StateShape:
    """The shape of a state, of which numbers are float32, and the layers that have one."""

    is_recurrent: tuple[bool, ...]  # of each layer of the model
    inputs: int  # the last inputs of a layer's convolution
    matrices: int  # numbers of all matrices of a layer

    @property
    def slot_bytes(self) -> int:
        """Bytes of a state at all layers."""
        return self.as_kv.slot_bytes

    @property
    def as_kv(self) -> KVShape:
        """The shape of a pool of states: inputs are K, matrices are V."""
        layers = sum(self.is_recurrent)
        return KVShape(layers, 1, self.inputs, self.matrices, torch.float32)


class RecurrentLayers:
    """The layers of a model that have a state, and the pool of their states, whose slots are those
    of `cache.states`.
    """

    def __init__(self, shape: StateShape, num_state_slots: int) -> None:
        self.pool = KVPool(shape.as_kv, num_state_slots, torch.device("cpu"))
        self.places = _numbered(shape.is_recurrent)


def _zeros(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    if device.type == "cpu" and 0 not in shape:
        return zeroed(shape, dtype)
    return torch.zeros(*shape, dtype=dtype, device=device)
