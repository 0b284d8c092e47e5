"""KV events over real sockets, as vLLM's subscribers read them, and those of a dead engine."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
import zmq.asyncio

from radixserve.blocks import BlockChanges, BlocksRemoved, BlocksStored
from radixserve.errors import StartupError
from radixserve.front import kv_events
from radixserve.front.kv_events import Batches, KVEvents
from radixserve.prefix import PUBLIC, pack
from tests.front.test_client import Start, collect, folder, request, start, until

__all__ = ["folder", "start"]  # fixtures

ANYWHERE = "tcp://127.0.0.1:*"
TWO = BlocksStored([11, 12], None, pack([1, 2, 3, 4]), PUBLIC, "GPU")
BEHIND = BlocksStored([13], 12, pack([5, 6]), PUBLIC, "GPU")
OTHERS = BlocksStored([21], None, pack([1, 2]), "tenant/salt", "CPU")


def changes(*each: BlocksStored | BlocksRemoved) -> BlockChanges:
    return BlockChanges(list(each))


def events_of(batch: bytes) -> list[dict[str, Any]]:
    _, events, rank = msgspec.msgpack.decode(batch)
    assert rank == 0
    return list(events)


class Subscriber:
    """What it was told, by the number of the batch."""

    def __init__(self, events: KVEvents) -> None:
        self.context = zmq.asyncio.Context()
        self.socket = self.context.socket(zmq.SUB)
        self.socket.connect(events.address)
        self.socket.subscribe(b"kv")
        self.replay = self.context.socket(zmq.DEALER)
        assert events.replay_address is not None
        self.replay.connect(events.replay_address)

    async def next(self) -> tuple[int, list[dict[str, Any]]]:
        async with asyncio.timeout(10):
            topic, number, batch = await self.socket.recv_multipart()
        assert topic == b"kv"
        return int.from_bytes(number, "big"), events_of(batch)

    async def since(self, number: int) -> dict[int, list[dict[str, Any]]]:
        """What an answer says, up to the number -1."""
        await self.replay.send_multipart([b"", number.to_bytes(8, "big", signed=True)])
        told: dict[int, list[dict[str, Any]]] = {}
        async with asyncio.timeout(10):
            while True:
                _, got, batch = await self.replay.recv_multipart()
                if (at := int.from_bytes(got, "big", signed=True)) == kv_events.END:
                    return told
                told[at] = events_of(batch)


@pytest.fixture
async def events() -> AsyncIterator[KVEvents]:
    made = KVEvents(ANYWHERE, ANYWHERE, "kv", 2)
    yield made
    await made.close()


@pytest.fixture
async def subscriber(events: KVEvents) -> AsyncIterator[Subscriber]:
    made = Subscriber(events)
    async with asyncio.timeout(10):  # a subscription takes a moment to arrive
        while not await made.socket.poll(50):
            events.take(changes())
        while await made.socket.poll(50):
            await made.socket.recv_multipart()
    yield made
    made.context.destroy(linger=0)


async def test_a_subscriber_is_told_in_the_words_of_vllm(
    events: KVEvents, subscriber: Subscriber
) -> None:
    events.take(changes(TWO, BlocksRemoved([12], "GPU")))
    number, told = await subscriber.next()
    assert told == [
        {
            "type": "BlockStored",
            "block_hashes": [11, 12],
            "parent_block_hash": None,
            "token_ids": [1, 2, 3, 4],
            "block_size": 2,
            "lora_id": None,
            "medium": "GPU",
            "lora_name": None,
            "extra_keys": None,
            "group_idx": None,
        },
        {"type": "BlockRemoved", "block_hashes": [12], "medium": "GPU", "group_idx": None},
    ]
    events.clear()
    assert await subscriber.next() == (number + 1, [{"type": "AllBlocksCleared"}])


async def test_who_has_missed_batches_asks_for_them(
    events: KVEvents, subscriber: Subscriber
) -> None:
    first = events._batches.next_number
    for each in (TWO, BEHIND, OTHERS):
        events.take(changes(each))
    told = await subscriber.since(first + 1)
    assert list(told) == [first + 1, first + 2]
    assert told[first + 1][0]["parent_block_hash"] == 12
    assert told[first + 2][0]["extra_keys"] == [["tenant/salt"]]
    assert await subscriber.since(first + 3) == {}


async def test_a_question_that_is_none_stays_without_an_answer(
    events: KVEvents, subscriber: Subscriber
) -> None:
    for parts in ([b"", b"what?"], [b"\0" * 8], [b"", b"\0" * 8, b"more"], [b""]):
        dealer = subscriber.context.socket(zmq.DEALER)
        dealer.connect(str(events.replay_address))
        await dealer.send_multipart(parts)
        assert not await dealer.poll(50)
    assert await subscriber.since(0)


async def test_who_comes_late_gets_a_snapshot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_events, "KEPT_BATCHES", 1)
    batches = Batches(2)
    for each in (TWO, BEHIND, OTHERS, BlocksRemoved([13], "GPU")):
        batches.add(changes(each))
    [(number, batch)] = await batches.since(0)
    cleared, stored, others = events_of(batch)
    assert number == batches.next_number - 1
    assert cleared == {"type": "AllBlocksCleared"}
    assert (stored["block_hashes"], stored["token_ids"]) == ([11, 12], [1, 2, 3, 4])
    assert (others["block_hashes"], others["medium"]) == ([21], "CPU")
    monkeypatch.setattr(kv_events, "SNAPSHOT_SECONDS", 0.0)
    batches.clear()
    [(_, batch)] = await batches.since(0)
    assert events_of(batch) == [{"type": "AllBlocksCleared"}]


async def test_a_server_that_has_published_nothing_has_nothing_to_tell() -> None:
    for number in (-2, -1, 0, 1):
        assert await Batches(2).since(number) == []


async def test_no_batch_of_an_answer_is_lost(events: KVEvents, subscriber: Subscriber) -> None:
    first = events._batches.next_number
    for _ in range(kv_events.KEPT_BATCHES):
        events.take(changes(TWO))
    assert len(await subscriber.since(first)) == kv_events.KEPT_BATCHES
    events.take(changes(TWO))
    [number] = await subscriber.since(first)
    assert number == first + kv_events.KEPT_BATCHES


async def test_kept_batches_are_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_events, "KEPT_BYTES", 1000)
    batches = Batches(2)
    for _ in range(100):
        batches.add(changes(TWO))
    assert sum(len(batch) for _, batch in batches._kept) <= 1000


@pytest.mark.parametrize("address", ["nonsense", "tcp://256.0.0.1:5", "tcp://127.0.0.1", ""])
async def test_an_address_that_cannot_be_used_is_refused(address: str) -> None:
    with pytest.raises(StartupError, match="kv_events cannot use"):
        KVEvents(address, None, "", 16)
    with pytest.raises(StartupError, match="kv_events cannot use"):
        KVEvents(ANYWHERE, address, "", 16)


async def test_an_address_that_is_taken_is_refused(events: KVEvents) -> None:
    with pytest.raises(StartupError, match="in use"):
        KVEvents(events.address, None, "", 16)


async def test_without_pyzmq_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zmq.asyncio", None)
    with pytest.raises(StartupError, match=r"radixserve\[events\]"):
        KVEvents(ANYWHERE, None, "", 16)


@pytest.mark.slow
async def test_what_a_dead_engine_had_is_cleared(
    start: Start, events: KVEvents, subscriber: Subscriber
) -> None:
    engine = await start(kv_events=ANYWHERE, kv_events_block=16)
    engine.kv_events = events
    first = events._batches.next_number
    await collect(engine, request("a", prompt_length=40))
    _, told = await subscriber.next()
    assert told[0]["token_ids"] == [40] * 32
    assert engine.pid is not None
    os.kill(engine.pid, signal.SIGKILL)
    await until(lambda: events._batches.next_number > first + 1)
    last = list(await subscriber.since(first))[-1]
    assert (await subscriber.since(last))[last] == [{"type": "AllBlocksCleared"}]
    await collect(engine, request("b", prompt_length=40))
    assert (await subscriber.since(last + 1))[last + 1][0]["token_ids"] == [40] * 32
