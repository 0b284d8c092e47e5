"""How state machines hunt for bugs that were put in on purpose."""

from __future__ import annotations

from hypothesis import HealthCheck, Phase, settings

HUNT = settings(
    max_examples=2000,  # the search ends with the bug; how soon depends on which tests are loaded
    stateful_step_count=40,
    phases=[Phase.generate],
    derandomize=True,
    database=None,
    deadline=None,
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)
