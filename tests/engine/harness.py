"""The engine without its process over the readable model, and everything it said."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from radixserve.cache.kvcache import KVCache
from radixserve.engine.core import EngineCore
from radixserve.engine.scheduler import Limits
from radixserve.questions import AnyQuestion, Asked
from radixserve.request import Request, Sampling
from radixserve.step import TokenEvent, TokenLogprob
from tests.engine.content_model import ContentModel

MAX_STEPS = 5000


def request(name: str, prompt: list[int], max_tokens: int = 4, **sampling: object) -> Request:
    settled = {"max_tokens": max_tokens, "seed": 1, "temperature": 0.0} | sampling
    return Request(id=name, prompt_ids=prompt, sampling=Sampling(**settled))  # type: ignore[arg-type]


class Harness:
    """An engine, and everything it said."""

    def __init__(
        self,
        num_slots: int = 256,
        max_running: int = 4,
        max_step_tokens: int = 16,
        cache: bool = True,
        *,
        ahead: bool,
        speculates: bool = False,
        prefill_share: float = 0.0,
    ) -> None:
        self.model = ContentModel()
        self.cache = KVCache(num_slots, enabled=cache)
        limits = Limits(max_running, max_step_tokens, prefill_share, speculates=speculates)
        self.core = EngineCore(self.model, self.cache, limits, ahead=ahead)
        self.events: dict[str, list[TokenEvent]] = defaultdict(list)

    def submit(self, *requests: Request) -> None:
        for each in requests:
            self.take(self.core.submit(each, []))

    def take(self, events: list[TokenEvent]) -> None:
        for event in events:
            assert not (
                self.events[event.request_id] and self.events[event.request_id][-1].finish
            ), "an event after the end"
            self.events[event.request_id].append(event)

    def step(self) -> None:
        self.take(self.core.step())
        self.cache.check()
        assert not self.model.wrong

    def run(self) -> None:
        for _ in range(MAX_STEPS):
            if not self.core.has_work:
                return
            self.step()
        raise AssertionError("the engine does not come to an end")

    def answer_to(self, question: AnyQuestion) -> Any:
        """The answer, without steps in between."""
        self.core.ask(Asked(7, question))
        for _ in range(MAX_STEPS):
            answers = self.core.answers()
            self.cache.check()
            if answers:
                assert [each.id for each in answers] == [7]
                return answers[0].answer
        raise AssertionError("no answer")

    def logprobs(self, name: str) -> list[TokenLogprob]:
        return [each for event in self.events[name] for each in event.logprobs or []]

    def tokens(self, name: str) -> list[int]:
        return [token for event in self.events[name] for token in event.token_ids]

    def finish(self, name: str) -> str | None:
        return self.events[name][-1].finish

    def answer(self, name: str) -> tuple[Any, ...]:
        """Everything that a client could tell two answers apart by, but times and what
        was cached.
        """
        prompt = [
            event.prompt_logprobs
            for event in self.events[name]
            if event.prompt_logprobs is not None
        ]
        last = self.events[name][-1]
        return self.tokens(name), self.logprobs(name), prompt, last.finish, last.stop_token_id

    def assert_drained(self) -> None:
        stats = self.cache.stats()
        assert stats.private == stats.pinned == 0
        assert stats.free + stats.cached == stats.num_slots
        self.cache.slots.evict(stats.num_slots)
        assert self.cache.stats().free == stats.num_slots
        assert self.cache.stats().nodes == 0
