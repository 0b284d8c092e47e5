"""The interface between the front and an engine that generates tokens.

Handlers and tests depend on `EngineClient` only; `front.client.ProcessEngine` is the real one,
tests use a fake.
"""

from __future__ import annotations

from typing import Any, Protocol, TypeVar

from radixserve.front.adapters import Adapters
from radixserve.front.live_settings import LiveSettings
from radixserve.front.stream import Stream
from radixserve.questions import Configured, Question
from radixserve.step import EngineInfo, EngineStats

T = TypeVar("T")


class EngineClient(Protocol):
    """Takes requests and pushes their events into their streams."""

    @property
    def info(self) -> EngineInfo | None:
        """Facts about the model; None until it is loaded for the first time."""

    @property
    def stats(self) -> EngineStats:
        """The newest statistics; all zero before the first report."""

    @property
    def unready_reason(self) -> str | None:
        """None while the engine works; otherwise the reason (loading, restarting, failing, stalled,
        draining, stopped).
        """

    @property
    def refusal_reason(self) -> str | None:
        """None while requests are accepted, also those that have to wait for a restart; otherwise
        the reason.
        """

    @property
    def live_settings(self) -> LiveSettings:
        """The settings that may change while the server runs."""

    @property
    def adapters(self) -> Adapters:
        """The adapters that are served beside the model."""

    async def configure(self, changes: dict[str, Any], who: str, why: str) -> Configured:
        """Change settings, all that are given or none; the log says `who` did it and `why`. The
        change holds for later engines, too. It is made even if the caller is cancelled.

        Raises:
            BadRequest: a setting is unknown or fixed, or a value is not possible.
            Unavailable: there is no engine yet, too many changes wait for it, or it did not answer
                in time: then the change is made later.
        """

    def submit(self, stream: Stream) -> None:
        """Submit the request of `stream`, into which its events are pushed from now on; the last
        one is that whose `finish` is set.

        The request is accepted or refused by this call, before the first event is awaited. The
        caller closes the stream (`contextlib.aclosing`); closing it early aborts the request in the
        engine.

        Raises:
            Unavailable: the queue is full, or `refusal_reason` is not None.
        """

    async def ask(self, question: Question[T]) -> T:
        """The answer to a question about the cache. It comes between two steps, however many
        requests wait.

        Raises:
            Unavailable: there is no engine, it ended, or it did not answer in time. Drops are kept
                for the next engine instead, and answered with what is `pending` (of a node not).
            NotFound: what the question names is not there.
            ServerError: the engine could not answer.
        """
