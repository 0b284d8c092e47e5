"""The JSON file of a load test: circumstances, the statistics of each phase, and the samples for
`compare`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from radixserve.loadtest.about import About
from radixserve.loadtest.headline import headline
from radixserve.loadtest.measures import Summary
from radixserve.loadtest.replay import Run
from radixserve.loadtest.scrape import Sample

FORMAT = 1


@dataclass(slots=True)
class Phase:
    """One run with its statistics."""

    run: Run
    summary: Summary
    samples: list[Sample] = field(default_factory=list)  # readings of the server's own metrics


def as_json(phases: Sequence[Phase], about: About, baseline: str | None = None) -> dict[str, Any]:
    """The content of the file, which is self-contained. `baseline` is the phase that others are
    compared with.
    """
    workload = phases[0].run.workload
    summaries = {phase.run.phase: phase.summary for phase in phases}
    return {
        "format": FORMAT,
        "workload": workload.name,
        "seed": workload.seed,
        "load": str(workload.load),
        "url": about.url,
        "about": dataclasses.asdict(about),
        "headline": list(headline(summaries, baseline)),
        "phases": {phase.run.phase: _phase(phase) for phase in phases},
    }


def _phase(phase: Phase) -> dict[str, Any]:
    timed = [record for record in phase.run.records if record.answered and not record.slow]
    values = {
        name: [round(value, 6) for record in timed if (value := getattr(record, name)) is not None]
        for name in ("ttft", "tpot", "e2e")
    }
    ends = [[round(r.due + r.e2e, 3), r.completion_tokens] for r in phase.run.records if r.answered]
    return {
        "summary": dataclasses.asdict(phase.summary),
        "values": values,
        "ends": ends,
        "left_out": dict(phase.run.left_out),
        "server_counters": _growth(phase.samples),
    }


def _growth(samples: Sequence[Sample]) -> dict[str, float]:
    """How much each counter of the server grew during the run."""
    if len(samples) < 2:
        return {}
    first, last = samples[0].counters, samples[-1].counters
    return {
        name: value - first.get(name, 0.0)
        for name, value in last.items()
        if value != first.get(name, 0.0)
    }


def write(path: Path, phases: Sequence[Phase], about: About, baseline: str | None = None) -> None:
    """Write the file. Raises OSError."""
    text = json.dumps(as_json(phases, about, baseline), indent=1)
    path.write_text(text + "\n", encoding="utf-8")
