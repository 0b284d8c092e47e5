"""Random walks over a store against a model: what it gives, what it evicts, what it takes on the
disk.
"""

from __future__ import annotations

from hypothesis import HealthCheck, settings

from tests.store.folder.machine import StoreMachine

TestStore = StoreMachine.TestCase
TestStore.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
