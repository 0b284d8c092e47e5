"""Runs a workload: sends its sessions to a server, in a closed loop or on a schedule, and records
every request.

Owns the timing of requests and the misbehaviour of clients. Knows nothing of files, terminals or
tables.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import random
import time
from collections import Counter, deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field

import aiohttp

from radixserve.loadtest.client import Answer, Refused, ask, send_garbage
from radixserve.loadtest.load import Behaviour
from radixserve.loadtest.record import Record, digest_of
from radixserve.loadtest.session import Json, Message, Session, Turn
from radixserve.loadtest.target import CannotStart, Target, connect, find_model
from radixserve.loadtest.workload import Workload

SLOW_READER_SECONDS = 0.2  # pause between two pieces of an answer
NOBODY_LISTENS = {errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENOENT}


@dataclass(slots=True)
class Sent:
    """A request as it was sent, kept to send it again for comparison. Garbage has no path."""

    path: str
    body: Json
    record: Record


@dataclass(slots=True)
class Run:
    """A replay in progress or ended; records are kept even if the rest fails."""

    workload: Workload
    phase: str = "cold"
    sent: list[Sent] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)  # fields that the dialect removed
    in_flight: int = 0
    model: str = ""  # the model that requests name
    wall_seconds: float = 0.0
    server_lost: bool = False  # the server stopped accepting connections, and sending ended

    @property
    def records(self) -> list[Record]:
        return [each.record for each in self.sent]


async def replay(run: Run, target: Target, on_record: Callable[[Record], None]) -> None:
    """Send the whole workload and record every request in `run`, in the order in which they end.

    Raises:
        CannotStart: nothing was sent.
    """
    async with connect(target) as session:
        model = run.model = await find_model(session, target)
        if not target.dialect.token_ids and any(_has_ids(each) for each in run.workload.sessions):
            raise CannotStart("this server takes no prompts of token ids; use --set blocks=text")
        loop = _Loop(run, session, model, target, on_record)
        try:
            await loop.run()
        finally:
            run.wall_seconds = loop.now()


def _has_ids(session: Session) -> bool:
    return any(not isinstance(turn.text, str) for turn in session.turns)


class _Loop:
    def __init__(
        self,
        run: Run,
        session: aiohttp.ClientSession,
        model: str,
        target: Target,
        on_record: Callable[[Record], None],
    ) -> None:
        self._origin = time.perf_counter()
        self._run = run
        self._session = session
        self._model = model
        self._target = target
        self._on_record = on_record
        self._lost = asyncio.Event()
        self._e2e_sum, self._e2e_count = 0.5, 1  # the mean is used to draw "a random moment"

    def now(self) -> float:
        """Seconds since the start of the run."""
        return time.perf_counter() - self._origin

    async def run(self) -> None:
        """Run every session, until the last one ends or the server is gone."""
        workload = self._run.workload
        waiting = deque(workload.sessions)
        async with asyncio.TaskGroup() as tasks:
            if workload.load.shape == "closed":
                for _ in range(min(workload.load.clients, len(waiting))):
                    tasks.create_task(self._client(waiting))
            else:
                for session in waiting:
                    tasks.create_task(self._converse(session, session.at or 0.0))

    async def _client(self, waiting: deque[Session]) -> None:
        while waiting and not self._lost.is_set():
            await self._converse(waiting.popleft(), self.now())

    async def _converse(self, session: Session, due: float) -> None:
        """Run one session from its first turn, which is due at `due`, to its last."""
        messages = list(session.opening)
        for number, turn in enumerate(session.turns, start=1):
            if await self._lost_before(due):
                return
            rng = random.Random(f"{self._run.workload.seed}/{session.name}/{number}")
            behaviour = self._run.workload.load.behaviour(rng)
            record = Record(session.name, number, turn.kind, due, self.now(), self._run.phase)
            if behaviour == "garbage":
                await self._misuse(record, rng)
            else:
                answer = await self._turn(turn, messages, record, behaviour, rng)
                if not record.answered or self._lost.is_set():
                    return
                messages.append({"role": "assistant", "content": answer.texts[0]})
            due = self.now() + self._run.workload.load.pause_seconds

    async def _lost_before(self, due: float) -> bool:
        """Wait until `due`; returns True, at once, if the server is gone."""
        if (seconds := due - self.now()) > 0:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._lost.wait(), seconds)
        return self._lost.is_set()

    async def _turn(
        self,
        turn: Turn,
        messages: list[Message],
        record: Record,
        behaviour: Behaviour,
        rng: random.Random,
    ) -> Answer:
        if isinstance(turn.text, str):
            messages.append({"role": "user", "content": turn.text})
        path, body = request_of(turn, messages, self._model)
        self._run.left_out.update(body.keys() & self._target.dialect.refused)
        body = self._target.dialect.spoken(body)
        answer = Answer()
        record.slow = behaviour == "slow"
        leaves = rng.random() * self._e2e_sum / self._e2e_count if behaviour == "leave" else None
        await self._watch(
            record,
            leaves,
            ask(self._session, path, body, answer, SLOW_READER_SECONDS * record.slow),
        )
        self._fill(record, answer)
        if turn.stream:
            self._time_pieces(record, answer)
        _judge(record, turn.expect)
        self._keep(Sent(path, body, record))
        return answer

    async def _misuse(self, record: Record, rng: random.Random) -> None:
        answer = Answer()
        record.kind = "garbage"
        await self._watch(record, None, send_garbage(self._session, rng, answer))
        self._fill(record, answer)
        self._keep(Sent("", {}, record))

    async def _watch(
        self, record: Record, leaves: float | None, request: Coroutine[None, None, None]
    ) -> None:
        """Wait for a request and note in its record how it failed, if it did."""
        self._run.in_flight += 1
        record.in_flight = self._run.in_flight
        try:
            async with asyncio.timeout(self._target.timeout_seconds if leaves is None else leaves):
                await request
        except TimeoutError:
            record.left = leaves is not None
            record.error = None if record.left else "timeout"
        except Refused as refusal:
            record.error, record.detail = refusal.kind, str(refusal)
        except aiohttp.ClientConnectorError as error:
            record.error, record.detail = "no connection", str(error)
            if error.errno in NOBODY_LISTENS:
                self._run.server_lost = True
                self._lost.set()
        except (aiohttp.ClientError, OSError) as error:
            record.error, record.detail = "connection lost", str(error) or type(error).__name__
        finally:
            self._run.in_flight -= 1

    def _fill(self, record: Record, answer: Answer) -> None:
        record.status = answer.status
        record.e2e = time.perf_counter() - self._origin - record.due
        record.prompt_tokens = answer.usage.get("prompt_tokens") or 0
        record.completion_tokens = answer.usage.get("completion_tokens") or 0
        record.cached_tokens = answer.cached_tokens
        record.digest = digest_of(answer.ordered_texts()) if answer.finished else None

    def _time_pieces(self, record: Record, answer: Answer) -> None:
        """Record the times of the first piece of any choice and of the last piece of a whole
        answer, and the gaps between pieces of one choice.
        """
        pieces = answer.arrivals.values()
        if pieces:
            record.ttft = min(times[0] for times in pieces) - self._origin - record.due
        if pieces and record.answered:
            record.e2e = max(times[-1] for times in pieces) - self._origin - record.due
        record.choices = max(len(answer.finished), 1)
        record.inter_token = [
            later - sooner for times in pieces for sooner, later in itertools.pairwise(times)
        ]

    def _keep(self, sent: Sent) -> None:
        self._run.sent.append(sent)
        if sent.record.answered:
            self._e2e_sum += sent.record.e2e
            self._e2e_count += 1
        self._on_record(sent.record)


def request_of(turn: Turn, messages: list[Message], model: str) -> tuple[str, Json]:
    """Path and body of a turn; `messages` ends with its text."""
    body: Json = {"model": model, **turn.body}
    if turn.stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    if turn.endpoint == "chat":
        return "chat/completions", body | {"messages": list(messages)}
    return "completions", body | {"prompt": turn.text}


def _judge(record: Record, expected: int) -> None:
    """Mark errors: an expected refusal is not an error, but an answer in its place is."""
    if record.status == expected and record.error == f"http {expected}":
        record.error = None
    elif record.status == 200 != expected and not record.left:
        record.error = f"status 200 instead of {expected}"
