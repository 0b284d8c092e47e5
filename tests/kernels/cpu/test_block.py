"""A kernel's arguments arrive in compiled code as Python wrote them, and wrong ones are refused by
name.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import Annotated, Any

import numpy as np
import pytest
import torch
from numba import njit

from radixserve.kernels import cpu
from radixserve.kernels.cpu.block import (
    BFloat16s,
    Block,
    BlockMemory,
    Elements,
    Float,
    Float32s,
    Int,
    Int8s,
    Int32s,
    Int64s,
    KVNumbers,
    Numbers,
    UInt8s,
    UInt32s,
    addresses,
)

ITEM = np.dtype([("row", np.int64), ("share", np.float32), ("tile", np.int32)])


class Inner(Block):
    peaks: Float32s
    count: Int


class Everything(Block):
    hidden: Numbers
    delta: Numbers
    rows: Int
    floats: Float32s
    halves: BFloat16s
    bytes_: Int8s
    codes: UInt8s
    places: Int32s
    words: UInt32s
    inner: Inner
    slots: Int64s
    epsilon: Float
    items: Annotated[Any, Elements.of(ITEM)]


ARRAYS: dict[str, Any] = {
    "floats": torch.tensor([1.5, -2.0]),
    "halves": torch.tensor([1.5, -2.0, 3.0], dtype=torch.bfloat16),
    "bytes_": torch.tensor([-1], dtype=torch.int8),
    "codes": torch.tensor([255, 1], dtype=torch.uint8),
    "places": np.arange(5, dtype=np.int32),
    "words": np.array([2**32 - 1], np.uint32),
    "slots": torch.tensor([[2**40, -1], [0, 7]]),
    "items": np.array([(1, 0.5, 2), (3, 0.25, 4)], ITEM),
}


def filled(hidden: torch.Tensor) -> Everything:
    block = Everything(hidden=hidden, rows=-3, epsilon=1e-5, **ARRAYS)
    block.inner.set(peaks=ARRAYS["floats"], count=9)
    return block


@njit
def read(address: int) -> Any:
    return Everything.read(address)


@njit
def read_bfloat16(address: int) -> Any:
    return Everything.read_bfloat16(address)


@njit
def last_item(address: int) -> Any:
    block = Everything.read(address)
    item = block.items[block.items.shape[0] - 1]
    return item.row, item.share, item.tile, block.inner.count


def numbers_of(value: Any) -> Any:
    """A tensor or an array as a flat array, bfloat16 as uint16."""
    if isinstance(value, torch.Tensor):
        value = (value.view(torch.uint16) if value.dtype == torch.bfloat16 else value).numpy()
    return value.reshape(-1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_compiled_code_reads_what_python_wrote(dtype: torch.dtype) -> None:
    hidden = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=dtype)
    block = filled(hidden)
    found = (read if dtype is torch.float32 else read_bfloat16)(block.address)
    for name, array in {"hidden": hidden, **ARRAYS}.items():
        assert getattr(found, name).dtype == numbers_of(array).dtype, name
        np.testing.assert_array_equal(getattr(found, name), numbers_of(array), name)
    assert len(found.delta) == 0
    assert found.rows == -3
    assert found.epsilon == np.float32(1e-5)
    assert found.inner.count == 9
    assert found.inner.peaks.tolist() == [1.5, -2.0]


def test_records_are_read_by_the_names_of_their_fields() -> None:
    assert last_item(filled(torch.ones(1)).address) == (3, 0.25, 4, 9)


def test_a_field_that_is_not_set_is_empty_and_none_makes_it_empty() -> None:
    block = Everything()
    assert all(len(part) == 0 for part in read(block.address) if isinstance(part, np.ndarray))
    assert read(block.address).rows == 0
    block.hidden = torch.ones(3)
    assert len(read(block.address).hidden) == 3
    block.hidden = None
    assert len(read(block.address).hidden) == 0


def test_numbers_can_be_read_back_and_arrays_cannot() -> None:
    block = filled(torch.ones(1))
    assert (block.rows, block.inner.count) == (-3, 9)
    assert block.epsilon == np.float32(1e-5)
    with pytest.raises(AttributeError, match="Everything has no number floats"):
        block.floats  # noqa: B018


@pytest.mark.parametrize(
    ("name", "value", "error", "match"),
    [
        ("floats", torch.ones(2, dtype=torch.float64), TypeError, "floats takes float32.*float64"),
        ("floats", np.ones(2), TypeError, "Everything.floats takes float32.*float64"),
        ("hidden", torch.ones(2, dtype=torch.float16), TypeError, "float32 or uint16.*float16"),
        ("slots", torch.ones(2, dtype=torch.int32), TypeError, "slots takes int64.*int32"),
        ("items", np.ones(2), TypeError, "Everything.items takes"),
        ("floats", torch.ones(4, 4).T[1:], ValueError, "Everything.floats takes contiguous"),
        ("floats", np.ones((4, 4), np.float32)[:, 1], ValueError, "takes contiguous"),
        ("floats", torch.ones(4, device="meta"), ValueError, "takes contiguous memory of the CPU"),
        ("delta", torch.ones(4, dtype=torch.bfloat16), TypeError, "delta is uint16, but another"),
        ("weight", torch.ones(4), AttributeError, "Everything has no field weight"),
        ("inner", torch.ones(4), AttributeError, "Everything has no field inner to set"),
    ],
)
def test_a_wrong_value_is_refused_by_the_name_of_its_field(
    name: str, value: Any, error: type[Exception], match: str
) -> None:
    block = filled(torch.ones(2))
    with pytest.raises(error, match=match):
        setattr(block, name, value)
    with pytest.raises(error):
        block.set(**{name: value})
    assert read(block.address).floats.tolist() == [1.5, -2.0]  # as it was


def test_a_field_without_a_kind_is_refused_where_it_is_declared() -> None:
    with pytest.raises(TypeError, match=r"Wrong\.rows has no kind"):
        type("Wrong", (Block,), {"__annotations__": {"rows": int}, "__module__": __name__})


def test_the_addresses_of_blocks_lead_to_each_of_them() -> None:
    blocks = [Everything(rows=n) for n in range(3)]
    assert [read(address).rows for address in addresses(blocks)] == [0, 1, 2]


class Part(Block):
    halves: BFloat16s
    count: Int
    inner: Inner
    items: Annotated[Any, Elements.of(ITEM)]


@njit
def fill(address: int, value: int) -> int:
    part = Part.read(address)
    part.halves[:] = value
    part.inner.peaks[:] = value
    for i in range(len(part.items)):
        part.items[i].row = value
    return part.halves.ctypes.data + part.inner.peaks.ctypes.data + part.items.ctypes.data


def test_equal_blocks_get_memory_of_their_own_that_begins_at_cache_lines() -> None:
    memory = BlockMemory(Part, 3, {"halves": 5, "inner.peaks": 40, "items": 3})
    assert len(set(memory.addresses.tolist())) == 3
    for value, address in enumerate(memory.addresses):
        assert fill(address, value) % 64 == 0


def test_the_blocks_of_a_memory_do_not_overlap() -> None:
    @njit
    def part_of(address: int) -> Any:
        return Part.read(address)

    memory = BlockMemory(Part, 3, {"halves": 33, "inner.peaks": 17, "items": 3})
    for value, address in enumerate(memory.addresses):
        fill(address, value)
    for value, address in enumerate(memory.addresses):
        part = part_of(address)
        assert (len(part.halves), len(part.inner.peaks), len(part.items)) == (33, 17, 3)
        assert (part.count, part.inner.count) == (0, 0)
        assert set(part.halves) == set(part.inner.peaks) == set(part.items["row"]) == {value}


def test_memory_needs_the_length_of_every_array() -> None:
    with pytest.raises(AssertionError, match="items"):
        BlockMemory(Part, 1, {"halves": 5, "inner.peaks": 40})


def kernels() -> list[str]:
    """All modules of kernels.cpu and its folders."""
    return [each.name for each in pkgutil.walk_packages(cpu.__path__, f"{cpu.__name__}.")]


def test_the_fields_of_every_block_lie_one_behind_the_other() -> None:
    for name in kernels():
        importlib.import_module(name)
    blocks = Block.__subclasses__()
    assert Everything in blocks
    for block in blocks:
        end = 0
        for name, field in block.fields.items():
            words = field.kind.length if isinstance(field.kind, type) else field.kind.words
            assert (field.place, field.words) == (end, words), (block, name)
            end += words
        assert block.length == end > 0
        assert list(block.record._fields) == list(block.fields)  # type: ignore[attr-defined]


def test_k_v_has_a_type_of_its_own_which_all_of_its_fields_share() -> None:
    class Both(Block):
        hidden: Numbers
        k: KVNumbers
        v: KVNumbers

    read = Both.reader(torch.bfloat16, torch.int8)

    @njit
    def sums(address: Any) -> Any:
        both = read(address)
        return both.hidden[0], both.k[1], both.v.shape[0]

    hidden, k = torch.ones(3, dtype=torch.bfloat16), torch.tensor([1, -2], dtype=torch.int8)
    both = Both(hidden=hidden, k=k, v=k)
    assert sums(both.address) == (0x3F80, -2, 2)
    with pytest.raises(TypeError, match=r"Both.v is uint8, but another field of the block int8"):
        both.v = torch.zeros(2, dtype=torch.uint8)
    with pytest.raises(TypeError, match=r"Both.hidden takes float32 or uint16"):
        both.hidden = k
