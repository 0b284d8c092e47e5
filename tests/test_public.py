"""The names that a Python program may rely on."""

from __future__ import annotations

import importlib
import subprocess
import sys

import radixserve


def test_the_public_names_are_these_and_all_of_them_are_found() -> None:
    assert radixserve.__all__ == sorted(radixserve.__all__, key=_order)
    assert set(radixserve.__all__) == {"__version__", *radixserve._MODULE_OF}
    for name in radixserve.__all__:
        assert getattr(radixserve, name) is not None
        assert name in dir(radixserve)


def _order(name: str) -> tuple[int, str]:
    kind = 0 if name.isupper() else 1 if name[0].isupper() else 2
    return kind, name


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    assert not hasattr(radixserve, "Nothing")


def test_importing_the_package_imports_nothing_of_it() -> None:
    code = "import sys, radixserve; print(sorted(m for m in sys.modules if 'radixserve.' in m))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
    assert importlib.import_module("radixserve").__version__
