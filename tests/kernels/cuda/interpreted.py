"""Triton's interpreter in a process of its own: it has to be chosen before Triton is imported.

Runs the CUDA kernels on the CPU. Whatever is given to `Interpreter.run` must be a function of a
module, and its arguments and result plain values or arrays.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Interpreter:
    pool: ProcessPoolExecutor

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return self.pool.submit(function, *arguments).result(timeout=240)


@contextmanager
def interpreter() -> Iterator[Interpreter]:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=_choose) as pool:
        yield Interpreter(pool)


def _choose() -> None:
    os.environ["TRITON_INTERPRET"] = "1"
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    _multiply_row_by_row()


def _multiply_row_by_row() -> None:
    """A dot product as tensor cores have it, where a row's bits do not depend on its place among
    the others.

    The interpreter's own (Triton 3.7.1) is numpy's BLAS, which on some processors computes the last
    rows by other kernels than the first; and it keeps bfloat16 as the 16 bits and multiplies these
    as integers.
    """
    from triton import language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    def numbers(handle: Any) -> Any:
        if handle.dtype.scalar == tl.bfloat16:
            return (handle.data.astype("uint32") << 16).view("float32")
        return handle.data

    def create_dot(self: Any, a: Any, b: Any, d: Any, *rest: Any) -> Any:
        left, right = numbers(a).astype(d.data.dtype), numbers(b).astype(d.data.dtype)
        total = d.data.copy()
        for i in range(left.shape[1]):
            total += left[:, i, None] * right[i]
        return TensorHandle(total, d.dtype.scalar)

    InterpreterBuilder.create_dot = create_dot
