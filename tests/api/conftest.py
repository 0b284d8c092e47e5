"""The real application over a fake engine, on a port the system chooses."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest

from radixserve.api.address import take_address
from radixserve.api.app import ApiSettings, make_app
from radixserve.api.context import Api
from radixserve.api.keys import Keys
from radixserve.api.listen import Listener
from radixserve.config import Settings
from radixserve.metrics import Metrics, RequestRecord
from tests.fakes import FakeEngine, LocalTokenizer, byte_tokenizer

MODEL = "fake/model"
ALIAS = "model"
PATTERN = "claude-*"
CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
RESPONSES = "/v1/responses"
MESSAGES = "/v1/messages"
OPENAI_DIALECT = (CHAT, COMPLETIONS, RESPONSES)
GENERATING = (*OPENAI_DIALECT, MESSAGES)
with_choices = pytest.mark.parametrize(
    ("path", "n"), [(CHAT, 1), (CHAT, 2), (COMPLETIONS, 1), (COMPLETIONS, 2), (RESPONSES, 1)]
)
"""Runs a test with one choice and, where an endpoint takes `n`, with two."""


class KeepingMetrics(Metrics):
    """Also remembers each record."""

    def __init__(self, model: str = "") -> None:
        super().__init__(model)
        self.records: list[RequestRecord] = []

    def record(self, record: RequestRecord) -> None:
        self.records.append(record)
        super().record(record)


@dataclass
class Server:
    engine: FakeEngine
    metrics: KeepingMetrics
    session: aiohttp.ClientSession
    url: str
    port: int
    api: Api
    unread: list[Any] = field(default_factory=list)

    @property
    def keys(self) -> Keys:
        return self.api.keys

    async def post(self, path: str, body: Any, **more: Any) -> tuple[int, Any]:
        """Status and decoded JSON; bytes are sent as they are."""
        content = {"data": body} if isinstance(body, bytes) else {"json": body}
        async with self.session.post(self.url + path, **content, **more) as response:
            assert response.content_type == "application/json"
            assert "x-request-id" in response.headers
            return response.status, await response.json()

    async def get(self, path: str) -> tuple[int, Any]:
        async with self.session.get(self.url + path) as response:
            return response.status, await response.json()


def limit_of(path: str) -> str:
    """The field that limits the tokens of an answer."""
    return "max_output_tokens" if path == RESPONSES else "max_tokens"


def body_for(path: str, text: str = "abc", *, n: int = 1, **more: Any) -> dict[str, Any]:
    """A small good body for an endpoint that generates."""
    messages = {"messages": [{"role": "user", "content": text}]}
    prompts: dict[str, dict[str, Any]] = {
        CHAT: messages,
        COMPLETIONS: {"prompt": text},
        RESPONSES: {"input": text},
        MESSAGES: messages,
    }
    choices = {} if n == 1 else {"n": n}
    return {"model": MODEL, limit_of(path): 4, **prompts[path], **choices, **more}


def text_of(path: str, answer: Any, choice: int = 0) -> str:
    """The text of an answer that is not streamed."""
    if path == RESPONSES:
        parts = [part for item in answer["output"] for part in item.get("content", ())]
        return "".join(part["text"] for part in parts if part["type"] == "output_text")
    if path == MESSAGES:
        return "".join(block["text"] for block in answer["content"])
    chosen = answer["choices"][choice]
    text: str = chosen["message"]["content"] if path == CHAT else chosen["text"]
    return text


def reference(path: str) -> str:
    """What the fake answers to `body_for(path)`: the prompt's first four visible tokens."""
    return "abca" if path == COMPLETIONS else "use"


@pytest.fixture(scope="session")
def tokenizer() -> LocalTokenizer:
    return byte_tokenizer()


@pytest.fixture
def settings() -> ApiSettings:
    return ApiSettings(max_body_bytes=64 * 1024, client_write_seconds=5.0, lingering_seconds=0.1)


@pytest.fixture
async def server(tokenizer: LocalTokenizer, settings: ApiSettings) -> AsyncIterator[Server]:
    engine, metrics = FakeEngine(), KeepingMetrics()
    api = Api.of(engine, tokenizer, metrics, settings, (MODEL, ALIAS, PATTERN))
    app = make_app(api)
    address = take_address(Settings(port=0))
    listener = Listener(app, address)
    await listener.start()
    async with aiohttp.ClientSession() as session:
        yield Server(engine, metrics, session, address.url, address.port, api)
    engine.go_on.set()
    await listener.close()
    assert engine.live == {}, "a request was left running in the engine"
