"""A real server with adapters: one is loaded while it runs, and streams survive the death of the
engine.
"""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from radixserve.checkpoints.embedded import embedded_model
from tests.adapters import write_adapter
from tests.e2e.server import engines, running

pytestmark = pytest.mark.model

PROMPT = "The quick brown fox jumps over the lazy dog and then it goes to the market, because"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with two adapters of the embedded model."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(embedded_model()))
    write_adapter(tmp_path / "poet", model, ("v_proj", "down_proj"), only=r"layers\.[0-4]\.")
    write_adapter(tmp_path / "last", model, ("o_proj", "up_proj"), only=r"layers\.29\.", size=0.5)
    return tmp_path


async def test_adapters_come_and_go_and_outlive_the_engine(folder: Path) -> None:
    given = ("--lora", f"poet={folder / 'poet'}", "--lora-dir", str(folder))
    with running(*given, "--kv-budget", "256MiB") as server:
        async with aiohttp.ClientSession(server.url) as session:

            async def post(path: str, body: dict[str, Any]) -> dict[str, Any]:
                async with session.post(path, json=body) as response:
                    answer: dict[str, Any] = await response.json()
                    return answer

            async def text_of(model: str | None, kill: bool = False) -> tuple[str, int]:
                """The text of a streamed answer, and how much of its prompt was cached."""
                body = {"model": model, "prompt": PROMPT, "max_tokens": 24, "temperature": 0}
                return await _streamed(session, body, engines(server)[0] if kill else None)

            plain, poet = await text_of(None), await text_of("poet")
            assert (plain[1], poet[1]) == (0, 0)
            assert (await text_of("last"))[0] == ""
            loaded = await post("/v1/load_lora_adapter", {"lora_name": "last", "lora_path": "last"})
            assert not loaded["own_kv"]
            last = await text_of("last")
            assert last[1] > 10  # found where the model had computed it
            assert len({plain[0], poet[0], last[0]}) == 3
            assert (await text_of("poet", kill=True))[0] == poet[0]
            assert (await text_of("last"))[0] == last[0]
            assert (await text_of("poet"))[1] > 10
            gone = await post("/v1/unload_lora_adapter", {"lora_name": "last"})
            assert gone["running_requests"] == 0
            assert (await text_of("last"))[0] == ""


async def _streamed(
    session: aiohttp.ClientSession, body: dict[str, Any], kill: int | None
) -> tuple[str, int]:
    """The text of an answer, "" if it is refused. The process `kill` is killed when it begins."""
    more = {"stream": True, "stream_options": {"include_usage": True}}
    async with session.post("/v1/completions", json=body | more) as response:
        if response.status == 404:
            return "", 0
        text, cached = "", 0
        async for line in response.content:
            if line.startswith(b"data: {"):
                event = json.loads(line[6:])
                text += "".join(choice["text"] for choice in event["choices"])
                if event.get("usage"):
                    cached = event["usage"]["prompt_tokens_details"]["cached_tokens"]
                if kill is not None:
                    os.kill(kill, signal.SIGKILL)
                    kill = None
        return text, cached
