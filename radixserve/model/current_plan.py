"""The attention plan of the step that a model's own modules compute just now.

Attention cannot get it as an argument: some of transformers' classes do not hand arguments that
they do not know on to their attention. Needs no transformers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from radixserve.kernels.step import AttentionPlan

_current: ContextVar[AttentionPlan] = ContextVar("current_plan")


@contextmanager
def computing(plan: AttentionPlan) -> Iterator[None]:
    """Within the block `current_plan()` is `plan`, on this thread."""
    token = _current.set(plan)
    try:
        yield
    finally:
        _current.reset(token)


def current_plan() -> AttentionPlan:
    """The plan of the step that is being computed."""
    return _current.get()
