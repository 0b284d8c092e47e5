"""Questions to the engine that wait for their answers.

Each is answered once: by the engine, or with an error when it cannot answer any more. Knows no
process; `ProcessEngine` tells when an engine is ready and when it has died.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from radixserve.errors import BadRequest, NotFound, ServerError, Unavailable
from radixserve.questions import Answered, AnyAnswer, AnyQuestion, Asked, Drop, Failed, Question

T = TypeVar("T")

MAX_WAITING = 64  # questions; further ones are refused
MAX_OF_TENANTS = 32  # of these, so that tenants who ask much leave places to administrators
ANSWER_SECONDS = 30.0
_GONE = "The engine ended before it answered; try again."


@dataclass(slots=True, eq=False)
class _Waiting:
    question: Question[Any]
    answer: asyncio.Future[AnyAnswer]
    is_sent: bool = False
    is_kept: bool = False  # nobody waits for the answer


class Questions:
    """The questions of one front."""

    def __init__(self, send: Callable[[Asked], None]) -> None:
        """`send` gives a question to the present engine."""
        self._send = send
        self._ids = itertools.count(1)
        self._waiting: dict[int, _Waiting] = {}
        self._is_up = False
        self._refusal: str | None = None  # why no engine comes any more

    async def ask(self, question: Question[T], seconds: float | None = ANSWER_SECONDS) -> T:
        """The answer to `question`, if it comes within `seconds` (None: whenever it comes).

        Raises:
            Unavailable: too many questions wait, there is no engine (questions that outlive an
                engine wait for one), it ended, or it did not answer in time.
            NotFound: what the question names is not there.
            BadRequest: what it asks for is not possible.
            ServerError: the engine could not answer.
        """
        if self._is_full(question):
            raise Unavailable("Too many questions about the cache wait for their answers.")
        if self._refusal is not None or not (self._is_up or question.outlives_engine):
            reason = self._refusal or "The engine is not ready."
            raise Unavailable(reason, code="server_not_ready")
        number = next(self._ids)
        waiting = _Waiting(question, asyncio.get_running_loop().create_future())
        self._waiting[number] = waiting
        try:
            self._send_waiting()
            async with asyncio.timeout(seconds):
                return cast(T, _checked(await waiting.answer))
        except TimeoutError:
            raise Unavailable("The engine did not answer in time.") from None
        finally:
            del self._waiting[number]

    def keep(self, drop: Drop) -> bool:
        """Whether `drop` will be made by the next engine that lives long enough, and before it
        serves a request. Not so if too many wait, nor if it names a node, because the next engine
        has other ones.
        """
        if drop == Drop():  # whatever else there is to drop is a part of it
            self._waiting = {n: each for n, each in self._waiting.items() if not each.is_kept}
        kept = [each.question for each in self._waiting.values() if each.is_kept]
        if drop not in kept:
            if drop.node is not None or self._is_full(drop):
                return False
            answer: asyncio.Future[AnyAnswer] = asyncio.get_running_loop().create_future()
            self._waiting[next(self._ids)] = _Waiting(drop, answer, is_kept=True)
            self._send_waiting()
        return True

    def _is_full(self, question: Question[Any]) -> bool:
        """Whether too many questions wait for one more."""
        asked = [each.question for each in self._waiting.values()]
        if question.open_to_tenants and sum(e.open_to_tenants for e in asked) >= MAX_OF_TENANTS:
            return True
        return len(asked) >= MAX_WAITING

    def take(self, answered: Answered) -> None:
        """The engine has answered. Who asked may have left meanwhile."""
        waiting = self._waiting.get(answered.id)
        if waiting is not None and not waiting.answer.done():
            waiting.answer.set_result(answered.answer)
        if waiting is not None and waiting.is_kept:
            del self._waiting[answered.id]

    def engine_is_ready(self) -> None:
        """An engine answers from now on."""
        self._is_up, self._refusal = True, None
        self._send_waiting()

    def engine_died(self) -> None:
        """Questions that outlive the engine are asked again, others fail."""
        self._is_up = False
        for waiting in self._waiting.values():
            waiting.is_sent = False
            if not waiting.question.outlives_engine:
                _fail(waiting, _GONE)

    def close(self, reason: str) -> None:
        """No engine comes, unless one is ready after all, which gets what is kept."""
        self._is_up, self._refusal = False, reason
        for waiting in self._waiting.values():
            if not waiting.is_kept:
                _fail(waiting, reason)

    def _send_waiting(self) -> None:
        for number, waiting in self._waiting.items() if self._is_up else ():
            if not waiting.is_sent:
                waiting.is_sent = True
                self._send(Asked(number, cast(AnyQuestion, waiting.question)))


def _fail(waiting: _Waiting, reason: str) -> None:
    if not waiting.answer.done():
        waiting.answer.set_exception(Unavailable(reason, code="server_not_ready"))


def _checked(answer: AnyAnswer) -> AnyAnswer:
    if isinstance(answer, Failed):
        if answer.not_found:
            raise NotFound(answer.message, code="not_found")
        if answer.refused:
            raise BadRequest(answer.message, code="invalid_value")
        raise ServerError(answer.message, code="internal_error")
    return answer
