"""The report as one HTML page: data, style and script inline, so that it opens anywhere and loads
nothing.
"""

from __future__ import annotations

import dataclasses
import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from radixserve.loadtest.about import About
from radixserve.loadtest.headline import headline
from radixserve.loadtest.record import Record
from radixserve.loadtest.results import Phase

FOLDER = Path(__file__).parent / "html"


def write(path: Path, phases: Sequence[Phase], about: About, baseline: str | None = None) -> None:
    """Write the page. Raises OSError."""
    path.write_text(render(phases, about, baseline), encoding="utf-8")


def render(phases: Sequence[Phase], about: About, baseline: str | None = None) -> str:
    """The page for the phases of one or several runs, in this order."""
    workload = phases[0].run.workload
    subtitle = f"{workload.num_requests} requests · {workload.load} · seed {workload.seed}"
    sentences = headline({phase.run.phase: phase.summary for phase in phases}, baseline)
    parts = {
        "headline": "".join(f"<li>{html.escape(each)}</li>" for each in sentences),
        "about": "".join(
            f"<dt>{html.escape(label)}</dt><dd>{html.escape(text)}</dd>"
            for label, text in about.rows()
        ),
        "title": html.escape(workload.name),
        "subtitle": html.escape(subtitle),
        "style": (FOLDER / "page.css").read_text(encoding="utf-8"),
        "data": _inline([_phase(phase) for phase in phases]),
        "script": "".join(
            (FOLDER / name).read_text(encoding="utf-8") for name in ("plot.js", "page.js")
        ),
    }
    page = (FOLDER / "page.html").read_text(encoding="utf-8")
    for name, text in parts.items():
        page = page.replace(f"<!--{name}-->", text)
    return page


def _inline(data: Any) -> str:
    """JSON that cannot end the script element it stands in."""
    return (
        json.dumps(data, separators=(",", ":")).replace("<", "\\u003c").replace("\u2028", "\\u2028")
    )


def _phase(phase: Phase) -> dict[str, Any]:
    return {
        "name": phase.run.phase,
        "summary": dataclasses.asdict(phase.summary),
        "left_out": dict(phase.run.left_out),
        "requests": [_request(record) for record in phase.run.records],
        "server": [[round(s.seconds, 2), s.waiting, s.running] for s in phase.samples],
    }


def _request(record: Record) -> dict[str, Any]:
    """The values that the plots need; texts are left out."""
    values = {"due": record.due, "ttft": record.ttft, "tpot": record.tpot, "e2e": record.e2e}
    return {
        **{name: None if value is None else round(value, 5) for name, value in values.items()},
        "name": f"{record.session}, turn {record.turn}",
        "kind": record.kind,
        "prompt": record.prompt_tokens,
        "cached": record.cached_tokens,
        "tokens": record.completion_tokens,
        "load": record.in_flight,
        "wrong": "left" if record.left else record.error or "",
        "timed": record.answered and not record.slow,
    }
