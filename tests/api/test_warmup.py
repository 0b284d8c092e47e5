"""The prompts of a file are warmed at the start and after each death of the engine, and what pins
held after each death.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from radixserve.api.app import ApiSettings
from radixserve.api.cache.warm_file import FilePrompts
from radixserve.api.cache.warm_pins import PinnedPrompts
from radixserve.api.cache.warmup import Warmup
from radixserve.api.context import Api
from radixserve.api.models import Models
from radixserve.body_file import FileBody
from radixserve.errors import Unavailable
from radixserve.front.pins import KeptPins
from radixserve.messages import PinChanges
from radixserve.prefix import pack
from radixserve.questions import Pin
from radixserve.tenants import MAX_PRIORITY
from tests.api.conftest import MODEL, KeepingMetrics
from tests.fakes import FakeEngine, LocalTokenizer

CHAT_BODY = {"model": MODEL, "messages": [{"role": "user", "content": "abc"}]}


def bodies(*fields: dict[str, Any]) -> list[FileBody]:
    return [FileBody(number, each) for number, each in enumerate(fields, 1)]


async def no_pause(seconds: float) -> None:
    """Nothing."""


def of_file(
    api: Api,
    path: str,
    given: list[FileBody],
    pause: Callable[[float], Awaitable[None]] = no_pause,
) -> Warmup:
    return Warmup(api, [FilePrompts(api, path, given)], pause)


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def settings() -> ApiSettings:
    return ApiSettings()


@pytest.fixture
async def api(
    engine: FakeEngine, tokenizer: LocalTokenizer, settings: ApiSettings
) -> AsyncIterator[Api]:
    made = Api.of(engine, tokenizer, KeepingMetrics(), settings, (MODEL,))
    yield made
    made.threads.close()


@contextlib.asynccontextmanager
async def running(warming: Warmup) -> AsyncIterator[None]:
    """Runs until the block ends, which begins when all of the file was tried."""
    task = asyncio.create_task(warming.run())
    try:
        async with asyncio.timeout(10):
            await warming.done_once.wait()
            yield
    finally:
        task.cancel()
        await asyncio.wait([task])


async def until_seen(engine: FakeEngine, num: int) -> None:
    while len(engine.seen) < num or engine.live:
        await asyncio.sleep(0)


async def test_every_line_is_warmed_and_a_wrong_one_is_named(
    api: Api, engine: FakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    given = bodies(CHAT_BODY, {"prompt": "abcd", "n": 0}, {"tokens": [97, 98]})
    given[1] = FileBody(7, given[1].fields)
    async with running(of_file(api, "w.jsonl", given)):
        assert [len(each.prompt_ids) for each in engine.seen] == [11, 2]
        assert {each.priority for each in engine.seen} == {MAX_PRIORITY}
        assert "w.jsonl, line 7 is not warmed: 'n' is 0" in caplog.text
        assert "warmed 2 of 3 prompts of w.jsonl" in caplog.text
        assert "13 tokens, 0 of them were cached" in caplog.text


async def test_another_engine_is_warmed_again_without_what_was_refused_or_failed(
    api: Api, engine: FakeEngine
) -> None:
    warming = of_file(api, "w", bodies({"prompt": "a"}, {"prompt": "bc"}, {"tokens": []}))
    engine.fail_at = 0
    async with running(warming):  # the first engine fails them all
        engine.fail_at = None
        warming.engine_is_ready()
        await asyncio.sleep(0.01)
        assert len(engine.seen) == 2
    engine.seen.clear()
    warming = of_file(api, "w", bodies({"prompt": "a"}, {"prompt": "bc"}))
    async with running(warming):
        for num in (4, 6):
            warming.engine_is_ready()
            await until_seen(engine, num)


async def test_an_engine_that_dies_while_prompts_are_warmed_is_followed_by_a_second_round(
    api: Api, engine: FakeEngine
) -> None:
    warming = of_file(api, "w", bodies({"prompt": "a"}, {"prompt": "bc"}))
    engine.hold_at = 0
    task = asyncio.create_task(warming.run())
    await engine.held.wait()
    warming.engine_is_ready()
    engine.hold_at = None
    engine.go_on.set()
    await until_seen(engine, 4)
    assert [len(each.prompt_ids) for each in engine.seen] == [1, 2, 1, 2]
    task.cancel()
    await asyncio.wait([task])


async def test_a_busy_server_is_asked_again_and_the_prompt_is_kept(
    api: Api, engine: FakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    pauses: list[float] = []

    async def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 2:
            engine.refuse_after = None

    engine.refuse_after = 0
    async with running(of_file(api, "w", bodies({"prompt": "a"}), pause)):
        assert (pauses, len(engine.seen), caplog.text) == ([7, 7], 1, "")


async def test_what_is_warmed_is_shown_on_the_page_and_is_no_request_of_a_client(
    api: Api, engine: FakeEngine
) -> None:
    engine.num_cached = 1
    async with running(of_file(api, "w", bodies({"prompt": "abc"}))):
        (shown,) = api.ui.live.since(0)
        assert (shown.endpoint, shown.outcome, shown.prompt, shown.cached) == (
            "warm",
            "length",
            3,
            1,
        )
        assert shown.ended is not None
        assert shown.ended - shown.began < 60
    page = api.metrics.render(engine.stats, engine.info, up=True).decode()
    assert 'radixserve_requests_total{endpoint="warm",outcome="length"} 1.0' in page
    for name in ("request_prompt_tokens", "e2e_seconds", "queue_seconds"):
        assert f"radixserve_{name}_count 0.0" in page


async def test_the_server_is_not_ready_while_it_warms_but_takes_requests(api: Api) -> None:
    api.readiness.reason = "warming"
    with pytest.raises(Unavailable, match="warming"):
        Models(api).check_ready()
    assert api.info() is not None


def pin(name: str, text: str, namespace: str = "public", num_public: int = 0) -> Pin:
    return Pin(
        id=name,
        seconds=60.0,
        seconds_left=60.0,
        renews=True,
        namespace=namespace,
        packed=pack([*text.encode()]),
        num_public=num_public,
    )


def kept(held: dict[str, int], *pins: Pin) -> KeptPins:
    """The pins that a front knows, and how many tokens they have held."""
    known = KeptPins()
    known.note(PinChanges(made=[*pins], seconds={}, held=held))
    return known


class TestPins:
    async def test_what_they_held_is_computed_in_their_namespaces_behind_all_requests(
        self, api: Api, engine: FakeEngine, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO)
        pins = kept(
            {"a": 3, "b": 4}, pin("a", "abcdef", "salt/1", 2), pin("b", "wxyz"), pin("none", "q")
        )
        async with running(Warmup(api, [PinnedPrompts(api, pins)])):
            assert [
                (bytes(each.prompt_ids), each.namespace, each.num_public, each.tenant)
                for each in engine.seen
            ] == [(b"abc", "salt/1", 2, "default"), (b"wxyz", "public", 0, "default")]
            assert {
                (each.priority, each.renews_pins, each.sampling.max_tokens) for each in engine.seen
            } == {(MAX_PRIORITY, False, 1)}
            assert all(each.arrived > 0 for each in engine.seen)
        assert "warmed 2 of 2 pinned prefixes" in caplog.text
        assert "7 tokens, 0 of them were cached" in caplog.text

    async def test_without_pins_the_log_says_nothing(
        self, api: Api, engine: FakeEngine, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO)
        async with running(Warmup(api, [PinnedPrompts(api, kept({}, pin("a", "abc")))])):
            assert (engine.seen, caplog.text) == ([], "")

    async def test_those_that_end_or_give_way_meanwhile_are_not_computed_any_more(
        self, api: Api, engine: FakeEngine, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO)
        names = ("first", "gives_way", "ends", "last")
        pins = kept(dict.fromkeys(names, 2), *(pin(each, each) for each in names))
        engine.hold_at = 0
        task = asyncio.create_task(Warmup(api, [PinnedPrompts(api, pins)]).run())
        await engine.held.wait()
        engine.hold_at = None
        ended = {"first": 0.0, "ends": 0.0}
        pins.note(PinChanges(made=[], seconds=ended, held={"gives_way": 0}))
        await until_seen(engine, 2)
        await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.wait([task])
        first, last = engine.seen
        assert (bytes(first.prompt_ids), bytes(last.prompt_ids)) == (b"fi", b"la")
        assert engine.aborted == [first.id]
        assert "warmed 1 of 4 pinned prefixes" in caplog.text

    async def test_one_that_fails_is_left_out_and_later_engines_get_the_others(
        self, api: Api, engine: FakeEngine, caplog: pytest.LogCaptureFixture
    ) -> None:
        pins = kept({"a": 1, "b": 1}, pin("a", "x"), pin("b", "y"))
        warming = Warmup(api, [PinnedPrompts(api, pins)])
        async with running(warming):
            engine.fail_at = 0
            warming.engine_is_ready()
            await until_seen(engine, 4)
        assert caplog.text.count("is not warmed: the fake failed") == 2
        assert pins.holding() == []
        assert len(pins.again()) == 2


class TestTenants:
    @pytest.fixture
    def settings(self, tmp_path: Path) -> ApiSettings:
        path = tmp_path / "keys.toml"
        path.write_text('[tenants.ours]\nkeys = ["key-ours"]\n')
        return ApiSettings(api_key_file=str(path))

    async def test_a_line_names_its_tenant(
        self, api: Api, engine: FakeEngine, caplog: pytest.LogCaptureFixture
    ) -> None:
        lines = bodies(
            {"prompt": "a"}, {"prompt": "b", "tenant": "ours"}, {"prompt": "c", "tenant": "theirs"}
        )
        async with running(of_file(api, "w", lines)):
            (asked,) = engine.seen
            assert (asked.prompt_ids, asked.tenant) == ([98], "ours")
            assert asked.namespace == api.namespaces.of("ours", "public")
        assert "line 1 is not warmed: Missing required field 'tenant'" in caplog.text
        assert "line 3 is not warmed: There is no tenant 'theirs'" in caplog.text

    async def test_what_pins_held_belongs_to_the_tenant_of_its_namespace(
        self, api: Api, engine: FakeEngine, caplog: pytest.LogCaptureFixture
    ) -> None:
        names = {"ours": "ours/12", "gone": "gone/34", "shared": "public"}
        pins = kept(dict.fromkeys(names, 1), *(pin(n, "a", space) for n, space in names.items()))
        async with running(Warmup(api, [PinnedPrompts(api, pins)])):
            asked = [(each.tenant, each.namespace) for each in engine.seen]
        assert asked == [("ours", "ours/12"), ("default", "public")]
        assert "gone is not warmed: There is no tenant 'gone'" in caplog.text
