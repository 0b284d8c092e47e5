"""One real server with the real model for all clients."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.server import Server, running

HERE = Path(__file__).parent
NAMES = ("SmolLM2-135M-Instruct", "gpt-*", "claude-*")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All tests of this folder are slow."""
    for item in items:
        if item.path.is_relative_to(HERE) and item.path.name != "test_docs.py":
            item.add_marker(pytest.mark.slow)
            item.add_marker(pytest.mark.model)


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    with running("--kv-budget", "512MiB", "--served-model-name", *NAMES) as started:
        yield started
