"""Compiled code reads and writes bfloat16 as torch does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from radixserve.kernels.cpu import vector

ALL_HALVES = np.arange(2**16, dtype=np.uint16)


@njit
def put_all(target: Any, values: Any) -> None:
    for i in range(len(values)):
        vector.put_number(target, i, values[i])


@njit
def numbers_of(array: Any, target: Any) -> None:
    for i in range(len(array)):
        target[i] = vector.number_at(array, i)


@intrinsic
def move(typingctx: Any, source: Any, target: Any, at: Any) -> Any:
    """LANES numbers from `at` on, from one array to the other."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        first, second = (
            vector.element_at(context, builder, signature.args[i], args[i], args[2])
            for i in range(2)
        )
        vector.store_numbers(builder, vector.load_numbers(builder, first), second)
        return context.get_dummy_value()

    return types.void(source, target, types.intp), generate


@njit
def move_all(source: Any, target: Any) -> None:
    for at in range(0, len(source), vector.LANES):
        move(source, target, at)


def as_torch(halves: Any) -> torch.Tensor:
    return torch.from_numpy(halves).view(torch.bfloat16)


def interesting() -> Any:
    """Floats at and beside every bfloat16 and every middle between two of them, and others."""
    upper = ALL_HALVES.astype(np.uint32) << 16
    lower = np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)
    some = np.random.default_rng(1).integers(0, 2**32, 2**16, np.uint32)
    return np.concatenate([(upper[:, None] | lower).reshape(-1), some]).view(np.float32)


@pytest.mark.parametrize("store", [lambda t, v: put_all(t, v), lambda t, v: move_all(v, t)])
def test_a_float_is_rounded_as_torch_does(store: Any) -> None:
    values = interesting()
    found = np.zeros(len(values), np.uint16)
    store(found, values)
    expected = torch.from_numpy(values).to(torch.bfloat16)
    nan = np.isnan(values)
    assert as_torch(found)[torch.from_numpy(nan)].isnan().all()
    np.testing.assert_array_equal(found[~nan], expected.view(torch.uint16).numpy()[~nan])


@pytest.mark.parametrize("load", [numbers_of, move_all])
def test_every_bfloat16_is_read_exactly(load: Any) -> None:
    found = np.zeros(2**16, np.float32)
    load(ALL_HALVES, found)
    np.testing.assert_array_equal(
        found.view(np.uint32), as_torch(ALL_HALVES).float().numpy().view(np.uint32)
    )


@pytest.mark.parametrize("put", [put_all, move_all])
def test_float32_keeps_its_bits(put: Any) -> None:
    values = interesting()
    found = np.zeros_like(values)
    put(*((found, values) if put is put_all else (values, found)))
    np.testing.assert_array_equal(found.view(np.uint32), values.view(np.uint32))


def test_bits_of_any_type_are_copied() -> None:
    @njit
    def copy(source: Any, target: Any) -> None:
        vector.copy(source, 2, target, 1, 3)

    for dtype in (np.float32, np.uint16, np.int64):
        target = np.zeros(5, dtype)
        copy(np.arange(6).astype(dtype), target)
        assert target.tolist() == [0, 2, 3, 4, 0]
