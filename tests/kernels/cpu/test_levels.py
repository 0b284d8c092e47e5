"""Levels: what a limit allows, and code that keeps to it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from radixserve.errors import ConfigError
from radixserve.kernels.cpu import compile, levels, native
from radixserve.kernels.cpu.gemm.panel_products import Operands
from radixserve.kernels.cpu.gemm.vectors import gemm_kernel
from radixserve.kernels.cpu.levels import Level


@pytest.fixture(autouse=True)
def unlimited() -> Iterator[None]:
    yield
    levels.limit("auto")


def test_the_levels_of_a_machine_begin_with_the_lowest_one() -> None:
    found = levels.available()
    assert found == list(Level)[: len(found)]
    assert found[-1] == levels.highest() == levels.current()


def test_a_limit_caps_the_level() -> None:
    levels.limit("avx2")
    assert levels.current() == Level.AVX2
    levels.limit("auto")
    assert levels.current() == levels.highest()


def test_a_limit_that_the_machine_does_not_reach_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(levels, "highest", lambda: Level.AVX512)
    with pytest.raises(ConfigError, match="the CPU has avx512 at most, not amx"):
        levels.limit("amx")
    assert levels.current() == Level.AVX512


def test_a_system_that_gives_no_tiles_leaves_the_level_below(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    every = [name for names in levels._NEEDED.values() for name in names]
    monkeypatch.setattr(levels, "_features", lambda: dict.fromkeys(every, True))
    monkeypatch.setattr(levels, "_tiles_permitted", lambda: False)
    assert levels.highest.__wrapped__() == Level.AVX512_BF16
    monkeypatch.setattr(levels, "_tiles_permitted", lambda: True)
    assert levels.highest.__wrapped__() == Level.AMX


@pytest.mark.skipif(levels.highest() < Level.AVX512, reason="there is no wider register")
def test_code_for_a_level_has_no_register_of_a_higher_one() -> None:
    kernel = gemm_kernel(Operands.WIDENED, True, False)
    function: Any = compile.kernel()(kernel)
    module = function._library._final_module
    assert "zmm" in native.machine(Level.AVX512).emit_assembly(module)
    assembly = native.machine(Level.AVX2).emit_assembly(module)
    assert "zmm" not in assembly
    assert "ymm" in assembly
