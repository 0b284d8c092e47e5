"""What the store on the disk counts."""

from __future__ import annotations

from typing import Final

from radixserve.declared import Declared

RUNS = Declared("gauge", "radixserve_store_runs", "runs", "Runs stored on the disk")

WRITING = Declared(
    "gauge",
    "radixserve_store_writing",
    "0 or 1",
    "1 while the disk is written to; 0 without a disk, and while the circuit breaker is open",
)

EVICTED_RUNS = Declared(
    "counter",
    "radixserve_store_evicted_runs_total",
    "runs",
    "Runs evicted from the disk",
)

VERIFY_FAILURES = Declared(
    "counter",
    "radixserve_store_verify_failures_total",
    "files",
    "Stored files that failed verification and were removed",
)

ERRORS = Declared(
    "counter",
    "radixserve_store_errors_total",
    "errors",
    "Errors of the disk, by operation (read, write)",
    ("operation",),
    values=(("read", "write"),),
)

SKIPPED = Declared(
    "counter",
    "radixserve_store_skipped_total",
    "writes",
    "Writes skipped: no room, too many waiting, slots needed by a request, or errors before",
)

COUNTERS: Final = (
    RUNS,
    WRITING,
    EVICTED_RUNS,
    VERIFY_FAILURES,
    ERRORS,
    SKIPPED,
)
