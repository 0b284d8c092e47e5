"""Modules with one text replaced in one of them, for tests that seed bugs."""

from __future__ import annotations

import importlib.util
import sys
from importlib.machinery import SourceFileLoader
from types import CodeType

import pytest

CACHE = (
    "slots",
    "block_watch",
    "radix",
    "ghosts",
    *(
        f"policies.{name}"
        for name in ("policy", "ranked", "segmented", "sieve", "s3fifo", "arc", "worth", "table")
    ),
    "hindsight",
    "second_slots",
    "windows",
    "states",
    "shares",
    "eviction",
    "dropped",
    "budgeted_slots",
    "kvcache",
    "compaction",
)
"""Those of the cache that know each other, in the order in which they import each other."""


class _Changed(SourceFileLoader):
    """Loads a module from its source with one text replaced; neither reads nor writes
    byte code.
    """

    def __init__(self, name: str, path: str, old: str, new: str) -> None:
        super().__init__(name, path)
        self.old, self.new = old, new

    def get_code(self, fullname: str) -> CodeType:
        source = self.get_data(self.path).decode()
        assert source.count(self.old) == (1 if self.old else source.count("")), (
            "the text to replace is gone: update the bug"
        )
        return compile(
            source.replace(self.old, self.new) if self.old else source, self.path, "exec"
        )


def load_changed(
    changed: str,
    old: str,
    new: str,
    monkeypatch: pytest.MonkeyPatch,
    package: str = "radixserve.cache",
    modules: tuple[str, ...] = CACHE,
) -> None:
    """Load `modules` beside the real ones, for the present test only, with `old` in the module
    `changed` replaced by `new`.
    """
    for name in modules:
        fullname = f"{package}.{name}"
        found = importlib.util.find_spec(fullname)
        assert found is not None
        assert found.origin is not None
        loader = _Changed(fullname, found.origin, *((old, new) if name == changed else ("", "")))
        spec = importlib.util.spec_from_loader(fullname, loader)
        assert spec is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, fullname, module)
        loader.exec_module(module)
