"""The engine process before it has a model."""

from __future__ import annotations

import gc

import pytest

from radixserve.engine.process import _nothing_collected


@pytest.mark.parametrize("error", [None, ImportError])
def test_garbage_is_collected_again_after_imports(error: type[Exception] | None) -> None:
    frozen = gc.get_freeze_count()
    try:
        with _nothing_collected():
            assert not gc.isenabled()
            if error is not None:
                raise error
    except ImportError:
        assert error is not None
    assert gc.isenabled()
    assert gc.get_freeze_count() > frozen
    gc.unfreeze()
