"""What a tokenizer process does by itself."""

from __future__ import annotations

import os
import threading
import time

import pytest

from radixserve import grammar
from radixserve.errors import BadRequest
from radixserve.text.worker import LOWEST_PRIORITY, check
from tests.grammar.accept import byte_vocabulary
from tests.grammar.accept import grammar as made


def priority() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


def test_a_check_that_takes_long_goes_on_at_the_lowest_priority(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def check_slowly(*args: object) -> None:
        until = time.monotonic() + 20
        while priority() != LOWEST_PRIORITY:
            assert time.monotonic() < until
            time.sleep(0.001)

    before = priority()
    monkeypatch.setattr(grammar, "check", check_slowly)
    check(made("json_object"), byte_vocabulary())
    assert priority() == before, "only the thread of the check has less"


def test_the_next_check_has_the_usual_priority_and_errors_arrive() -> None:
    check(made("json_object"), byte_vocabulary())
    with pytest.raises(BadRequest):
        check(made("regex", "("), byte_vocabulary())
