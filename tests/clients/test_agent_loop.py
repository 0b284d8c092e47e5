"""An agent's loop of 12 tool calls: nine tenths of its prompts come from the cache, whichever API
it uses. benchmarks/bench_agent.py is the loop.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.e2e.server import Server

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "benchmarks"))

from bench_agent import CALLS, LOOPS  # noqa: E402 - found only after the line above


@pytest.mark.parametrize("api", LOOPS)
def test_nine_tenths_of_the_prompts_come_from_the_cache(server: Server, api: str) -> None:
    counts = LOOPS[api](server.url, CALLS)
    assert counts.share >= 0.9, counts
