"""Every request that the documents show as a command is answered."""

from __future__ import annotations

import json
import re
from pathlib import Path

import msgspec
import pytest

from tests.api.conftest import MODEL, Server
from tests.fakes import INFO

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "docs/api.md", "docs/anthropic.md", "docs/tools.md")
COMMAND = re.compile(r"curl -s http://127\.0\.0\.1:8000(\S+) [^']*'[^']*' -d '(.*?)'", re.DOTALL)


@pytest.mark.parametrize("page", PAGES)
async def test_the_commands_of_a_page_are_answered(page: str, server: Server) -> None:
    commands = COMMAND.findall((ROOT / page).read_text())
    assert commands != []
    # a token of the fake tokenizer is one byte
    server.engine.info = msgspec.structs.replace(INFO, context_length=4096, max_request_tokens=4096)
    for path, body in commands:
        status, answer = await server.post(path, json.loads(body) | {"model": MODEL})
        assert status == 200, answer
