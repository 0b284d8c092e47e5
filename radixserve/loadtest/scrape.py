"""Reads the server's own metrics during the load: /metrics in the Prometheus text format, if there
is one.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from radixserve.loadtest.target import Target

EVERY_SECONDS = 1.0
TIMEOUT_SECONDS = 5.0

# The names of the same two gauges in different servers.
WAITING = re.compile(r"(requests?_waiting|queue_reqs|requests_deferred)$")
RUNNING = re.compile(r"(requests?_running|running_reqs|requests_processing)$")


@dataclass(frozen=True, slots=True)
class Sample:
    """One reading."""

    seconds: float  # since the first reading
    waiting: float | None  # requests in the server's queue; None: it has no such gauge
    running: float | None
    counters: dict[str, float] = field(default_factory=dict)


@contextlib.asynccontextmanager
async def scraping(target: Target, samples: list[Sample]) -> AsyncIterator[None]:
    """Append a sample every second until the block ends, and one at its end; none for a server
    without metrics.
    """
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_SECONDS)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        origin, url = time.perf_counter(), target.url.removesuffix("/v1") + "/metrics"
        task = asyncio.create_task(_keep_reading(session, url, origin, samples))
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            if samples and (last := await _read(session, url, origin)):
                samples.append(last)


async def _keep_reading(
    session: aiohttp.ClientSession, url: str, origin: float, samples: list[Sample]
) -> None:
    while sample := await _read(session, url, origin):
        samples.append(sample)
        await asyncio.sleep(EVERY_SECONDS)


async def _read(session: aiohttp.ClientSession, url: str, origin: float) -> Sample | None:
    """One reading; None if the server has no such page, or is gone."""
    try:
        async with session.get(url) as response:
            if response.status != 200:
                return None
            return parse(await response.text(), time.perf_counter() - origin)
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
        return None


def parse(text: str, seconds: float) -> Sample:
    """Parse a page. Raises ValueError if it is not in the format."""
    gauges: dict[str, float] = {}
    counters: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if family.type == "gauge":
                gauges[sample.name] = gauges.get(sample.name, 0.0) + sample.value
            elif family.type == "counter" and not sample.name.endswith("_created"):
                labels = ",".join(f"{key}={value}" for key, value in sorted(sample.labels.items()))
                counters[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return Sample(seconds, _first(gauges, WAITING), _first(gauges, RUNNING), counters)


def _first(gauges: dict[str, float], pattern: re.Pattern[str]) -> float | None:
    return next((value for name, value in gauges.items() if pattern.search(name)), None)
