"""A thread that yields to all others."""

from __future__ import annotations

import os
import sys
import threading

import pytest

from radixserve.background import yield_to_others

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="a policy of Linux")


def test_the_thread_yields_and_no_other() -> None:
    policies: list[int] = []

    def body() -> None:
        yield_to_others()
        policies.append(os.sched_getscheduler(threading.get_native_id()))

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert policies == [os.SCHED_IDLE]
    assert os.sched_getscheduler(threading.get_native_id()) == os.SCHED_OTHER
