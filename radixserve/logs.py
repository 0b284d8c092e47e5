"""How log lines look: one line each on stderr, with time, level, process and module.

Both processes call `configure_logging` once, first thing. What is logged is each module's own
affair; the rule is one line per request at info and none per step.
"""

from __future__ import annotations

import logging

_FORMAT = "%(asctime)s %(levelname)-7s %(processName)s %(name)s: %(message)s"


def configure_logging(level: str) -> None:
    """Send everything from `level` ("debug" to "error") up to stderr; libraries speak from warning
    up.
    """
    logging.basicConfig(format=_FORMAT, level=max(logging.WARNING, _number(level)), force=True)
    logging.getLogger("radixserve").setLevel(_number(level))
    logging.captureWarnings(True)


def _number(level: str) -> int:
    return logging.getLevelNamesMapping()[level.upper()]
