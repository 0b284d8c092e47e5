"""Keeps the search for garbage out of the import of large libraries."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def nothing_collected() -> Iterator[None]:
    """Within the block nothing is garbage, and what exists at its end stays. Importing makes
    hundreds of thousands of objects that live as long as the process; searching them for garbage
    again and again would take half a second.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
