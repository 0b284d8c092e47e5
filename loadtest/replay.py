"""The closed loop: N clients, each taking the next conversation when its last one has ended.

Owns who sends what when, who leaves early, and what is recorded. Knows nothing of files, terminals or tables.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import aiohttp

from loadtest.client import Answer, Json, Refused, ask
from loadtest.record import Record, digest_of
from loadtest.workload import Conversation, Turn, Workload


class CannotStart(Exception):
    """The server cannot be tested; the message is for the person at the terminal."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where and how requests are sent."""

    url: str  # ends in /v1
    model: str = ""  # empty: the first one that the server lists
    api_key: str | None = None
    timeout_seconds: float = 300.0  # of one request


@dataclass(slots=True)
class Sent:
    """A request as it went out, to be sent again for comparison."""

    path: str
    body: Json
    record: Record


@dataclass(slots=True)
class Run:
    """A replay in progress or ended; what has been recorded stays whatever happens to the rest."""

    workload: Workload
    clients: int
    leave: float = 0.0  # share of requests whose client disconnects at a random moment
    sent: list[Sent] = field(default_factory=list)
    wall_seconds: float = 0.0
    server_lost: bool = False  # it stopped taking connections; nothing more was sent

    @property
    def records(self) -> list[Record]:
        return [each.record for each in self.sent]


def base_url(url: str) -> str:
    """The URL that ends in /v1, whether the person gave that or only the host."""
    url = url.rstrip("/")
    return url if url.endswith("/v1") else f"{url}/v1"


@asynccontextmanager
async def connect(target: Target) -> AsyncIterator[aiohttp.ClientSession]:
    """A session whose paths are relative to the target. Idle connections close before any server closes them."""
    headers = {"Authorization": f"Bearer {target.api_key}"} if target.api_key else {}
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=1.0)
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=10.0)
    async with aiohttp.ClientSession(
        f"{target.url}/", headers=headers, connector=connector, timeout=timeout, read_bufsize=2**20
    ) as session:
        yield session


async def find_model(session: aiohttp.ClientSession, target: Target) -> str:
    """The model to ask for.

    Raises:
        CannotStart: the server does not answer, or does not serve the model named.
    """
    try:
        async with session.get("models", timeout=aiohttp.ClientTimeout(total=10.0)) as response:
            if response.status != 200:
                raise CannotStart(f"{target.url}/models answers {response.status}: {(await response.text())[:200]}")
            served = [str(model["id"]) for model in (await response.json(content_type=None))["data"]]
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise CannotStart(f"no server at {target.url}: {error or 'no answer within 10 seconds'}") from error
    except (ValueError, LookupError, TypeError) as error:
        raise CannotStart(f"{target.url}/models does not list models as the OpenAI API does") from error
    if not served or (target.model and target.model not in served):
        raise CannotStart(
            f"{target.url} does not serve {target.model or 'any model'}; it has: {', '.join(served) or '-'}"
        )
    return target.model or served[0]


async def replay(run: Run, target: Target, on_record: Callable[[Record], None]) -> None:
    """Send the whole workload and record every request in `run`, in the order in which they end.

    Raises:
        CannotStart: nothing was sent.
    """
    async with connect(target) as session:
        loop = _Loop(run, session, await find_model(session, target), target.timeout_seconds, on_record)
        try:
            async with asyncio.TaskGroup() as clients:
                for _ in range(min(run.clients, len(run.workload.conversations))):
                    clients.create_task(loop.client())
        finally:
            run.wall_seconds = time.perf_counter() - loop.origin


class _Loop:
    def __init__(
        self,
        run: Run,
        session: aiohttp.ClientSession,
        model: str,
        timeout_seconds: float,
        on_record: Callable[[Record], None],
    ) -> None:
        self.origin = time.perf_counter()
        self._run = run
        self._session = session
        self._model = model
        self._timeout = timeout_seconds
        self._on_record = on_record
        self._waiting = deque(run.workload.conversations)
        self._e2e_sum, self._e2e_count = 0.5, 1  # the mean says when "a random moment" can be

    async def client(self) -> None:
        """Hold one conversation after the other until there are no more, or the server is gone."""
        while self._waiting and not self._run.server_lost:
            await self._converse(self._waiting.popleft())

    async def _converse(self, conversation: Conversation) -> None:
        messages = [{"role": "system", "content": conversation.system}] if conversation.system is not None else []
        for number, turn in enumerate(conversation.turns, start=1):
            messages.append({"role": "user", "content": turn.text})
            record = Record(conversation.name, number, turn.kind, started=time.perf_counter() - self.origin)
            answer = await self._ask(turn, messages, record)
            if not record.answered or self._run.server_lost:
                return
            messages.append({"role": "assistant", "content": answer.texts[0]})

    async def _ask(self, turn: Turn, messages: list[dict[str, str]], record: Record) -> Answer:
        path, body = request_of(turn, messages, self._model)
        answer, start = Answer(), time.perf_counter()
        leave_after = self._leave_after(record)
        try:
            async with asyncio.timeout(self._timeout if leave_after is None else leave_after):
                await ask(self._session, path, body, answer)
        except TimeoutError:
            record.left = leave_after is not None
            record.error = None if record.left else "timeout"
        except Refused as refusal:
            record.error, record.detail = refusal.kind, str(refusal)
        except aiohttp.ClientConnectorError as error:
            record.error, record.detail, self._run.server_lost = "no connection", str(error), True
        except (aiohttp.ClientError, OSError) as error:
            record.error, record.detail = "connection lost", str(error) or type(error).__name__
        _fill(record, answer, start)
        _judge(record, turn.expect)
        self._keep(Sent(path, body, record))
        return answer

    def _leave_after(self, record: Record) -> float | None:
        """Seconds after which the client of this request goes away; None if it stays."""
        rng = random.Random(f"{self._run.workload.seed}/leave/{record.conversation}/{record.turn}")
        if rng.random() >= self._run.leave:
            return None
        return rng.random() * self._e2e_sum / self._e2e_count

    def _keep(self, sent: Sent) -> None:
        self._run.sent.append(sent)
        if sent.record.answered:
            self._e2e_sum += sent.record.e2e
            self._e2e_count += 1
        self._on_record(sent.record)


def request_of(turn: Turn, messages: list[dict[str, str]], model: str) -> tuple[str, Json]:
    """Path and body of a turn; `messages` ends with its text."""
    body: Json = {"model": model, **turn.body}
    if turn.stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    if turn.endpoint == "chat":
        return "chat/completions", body | {"messages": list(messages)}
    return "completions", body | {"prompt": turn.text}


def _fill(record: Record, answer: Answer, start: float) -> None:
    record.status = answer.status
    record.e2e = time.perf_counter() - start
    times = answer.arrivals
    record.inter_token = [later - earlier for earlier, later in itertools.pairwise(times)]
    details = answer.usage.get("prompt_tokens_details") or {}
    record.prompt_tokens = answer.usage.get("prompt_tokens") or 0
    record.completion_tokens = answer.usage.get("completion_tokens") or 0
    record.cached_tokens = details.get("cached_tokens")
    record.ttft = times[0] - start if times else None
    record.digest = digest_of(answer.ordered_texts()) if answer.finished else None


def _judge(record: Record, expected: int) -> None:
    """An expected refusal is no error; an answer in its place is one."""
    if record.status == expected and record.error == f"http {expected}":
        record.error = None
    elif record.status == 200 != expected and not record.left:
        record.error = f"status 200 instead of {expected}"
