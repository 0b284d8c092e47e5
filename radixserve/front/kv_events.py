"""Tells routers which blocks of tokens are cached, so that they send a request where its prefix is.

The format is that of vLLM's KV events, which routers such as vLLM's own and Dynamo's read: ZeroMQ
messages of three parts, topic, number (8 bytes, big-endian) and a batch in MessagePack.

    PUB      [topic, number, [seconds, [event, ...], 0]]
    ROUTER   a subscriber asks with the first number that it lacks, and gets the batches from there
             on, then an empty one with the number -1 (a REQ socket reads the first of them only,
             a DEALER all)

    BlockStored    block_hashes, parent_block_hash, token_ids, block_size, lora_id, medium,
                   lora_name, extra_keys
    BlockRemoved   block_hashes, medium
    AllBlocksCleared

Numbers go on when an engine dies: what it had is cleared. vLLM keeps the last batches only, so a
subscriber that comes late never learns what was cached before. Here it gets a snapshot instead,
where the batches that it lacks are not kept any more: one batch that clears everything and stores
what is there now, with the number of the last batch that is in it. The next one follows it.

Blocks of a namespace other than the public one have it as `extra_keys`, as vLLM's have the salt, so
that no router takes one tenant's blocks for another's.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final

import msgspec

from radixserve.blocks import BlockChanges, BlocksRemoved, BlocksStored
from radixserve.errors import StartupError
from radixserve.prefix import PUBLIC, TOKEN_BYTES, unpack

if TYPE_CHECKING:
    import zmq.asyncio

log = logging.getLogger(__name__)

KEPT_BATCHES: Final = 500  # ZeroMQ drops what is over 1,000 messages that a client has not read
KEPT_BYTES: Final = 64 << 20
UNREAD_BATCHES: Final = 10_000  # by a subscriber
SNAPSHOT_SECONDS: Final = 1.0  # for which a snapshot is given again, so that few are in memory
END: Final = -1  # the number behind the last batch of an answer
_NUMBER_BYTES: Final = 8
_CLEARED: Final = {"type": "AllBlocksCleared"}

Event = dict[str, Any]


class CachedBlocks:
    """Which blocks are cached, by medium and hash. Parents stand before their children."""

    def __init__(self, block_tokens: int) -> None:
        self._block_bytes = block_tokens * TOKEN_BYTES
        self._blocks: dict[tuple[str, int], tuple[int | None, bytes, str]] = {}

    def __len__(self) -> int:
        return len(self._blocks)

    def note(self, change: BlocksStored | BlocksRemoved) -> None:
        """Blocks have come or gone."""
        if isinstance(change, BlocksRemoved):
            for each in change.hashes:
                self._blocks.pop((change.medium, each), None)
            return
        parent = change.parent
        for i, each in enumerate(change.hashes):
            tokens = change.tokens[i * self._block_bytes : (i + 1) * self._block_bytes]
            self._blocks[change.medium, each] = parent, tokens, change.namespace
            parent = each

    def clear(self) -> None:
        """Nothing is cached any more."""
        self._blocks.clear()

    def copy(self) -> CachedBlocks:
        """The same blocks, whatever becomes of these. About 10 ms a million tokens."""
        blocks = CachedBlocks(self._block_bytes // TOKEN_BYTES)
        blocks._blocks = self._blocks.copy()
        return blocks

    def stored(self) -> list[BlocksStored]:
        """What stores all of them."""
        found: list[BlocksStored] = []
        for (medium, each), (parent, tokens, namespace) in self._blocks.items():
            last = found[-1] if found else None
            if last and _goes_on(last, parent, namespace, medium):
                last.hashes.append(each)
                last.tokens += tokens
            else:
                found.append(BlocksStored([each], parent, tokens, namespace, medium))
        return found


def _goes_on(last: BlocksStored, parent: int | None, namespace: str, medium: str) -> bool:
    """Whether a block follows the last one of `last`."""
    return (last.hashes[-1], last.namespace, last.medium) == (parent, namespace, medium)


class Batches:
    """The batches of events, numbered from 0 on, of which the last ones are kept."""

    def __init__(self, block_tokens: int) -> None:
        self.block_tokens = block_tokens
        self.next_number = 0
        self._blocks = CachedBlocks(block_tokens)
        self._kept: deque[tuple[int, bytes]] = deque()
        self._kept_bytes = 0
        self._snapshot: tuple[float, tuple[int, bytes]] | None = None  # when it was made

    def add(self, changes: BlockChanges) -> tuple[int, bytes]:
        """The batch of these changes, and its number."""
        for change in changes.changes:
            self._blocks.note(change)
        return self._keep([event_of(change, self.block_tokens) for change in changes.changes])

    def clear(self) -> tuple[int, bytes]:
        """The batch which says that nothing is cached any more, and its number."""
        self._blocks.clear()
        return self._keep([_CLEARED])

    async def since(self, number: int) -> list[tuple[int, bytes]]:
        """The batches from `number` on, or a snapshot where they are not all kept, which may be a
        second old: batches behind it can be asked for.
        """
        if max(number, 0) >= self.next_number:
            return []
        if self._kept and number >= self._kept[0][0]:
            return [kept for kept in self._kept if kept[0] >= number]
        return [await self._snapshot_now()]

    async def _snapshot_now(self) -> tuple[int, bytes]:
        now = time.monotonic()
        if self._snapshot is None or now - self._snapshot[0] >= SNAPSHOT_SECONDS:
            last, blocks = self.next_number - 1, self._blocks.copy()
            batch = await asyncio.to_thread(_snapshot, blocks, self.block_tokens)
            self._snapshot = now, (last, batch)
        return self._snapshot[1]

    def _keep(self, events: list[Event]) -> tuple[int, bytes]:
        batch = self.next_number, _encode(events)
        self.next_number += 1
        self._kept.append(batch)
        self._kept_bytes += len(batch[1])
        while len(self._kept) > KEPT_BATCHES or self._kept_bytes > KEPT_BYTES:
            self._kept_bytes -= len(self._kept.popleft()[1])
        return batch


def event_of(change: BlocksStored | BlocksRemoved, block_tokens: int) -> Event:
    """A change as an event of vLLM's."""
    if isinstance(change, BlocksRemoved):
        names = {"block_hashes": change.hashes, "medium": change.medium, "group_idx": None}
        return {"type": "BlockRemoved", **names}
    is_public = change.namespace == PUBLIC
    return {
        "type": "BlockStored",
        "block_hashes": change.hashes,
        "parent_block_hash": change.parent,
        "token_ids": unpack(change.tokens),
        "block_size": block_tokens,
        "lora_id": None,
        "medium": change.medium,
        "lora_name": None,
        "extra_keys": None if is_public else [[change.namespace]] * len(change.hashes),
        "group_idx": None,
    }


def _snapshot(blocks: CachedBlocks, block_tokens: int) -> bytes:
    return _encode([_CLEARED, *(event_of(each, block_tokens) for each in blocks.stored())])


def _encode(events: list[Event]) -> bytes:
    return msgspec.msgpack.encode([time.time(), events, 0])


class KVEvents:
    """The two sockets. To be made and closed in a running event loop."""

    def __init__(self, address: str, replay: str | None, topic: str, block_tokens: int) -> None:
        """Binds the sockets.

        Raises:
            StartupError: pyzmq is not installed, or an address cannot be bound.
        """
        try:
            import zmq.asyncio
        except ImportError as missing:
            what = "kv_events needs pyzmq: pip install 'radixserve[events]'"
            raise StartupError(what) from missing
        self._batches = Batches(block_tokens)
        self._topic = topic.encode()
        self._context = zmq.asyncio.Context()
        self._publisher: zmq.SyncSocket = zmq.Context.shadow(self._context).socket(zmq.PUB)
        # A subscriber that is further behind asks for what it lacks.
        self._publisher.setsockopt(zmq.SNDHWM, UNREAD_BATCHES)
        self._router = self._context.socket(zmq.ROUTER)
        try:
            self.address = _bind(self._publisher, address)
            self.replay_address = None if replay is None else _bind(self._router, replay)
        except StartupError:
            self._close()
            raise
        self._answering = asyncio.create_task(self._answer())

    def take(self, changes: BlockChanges) -> None:
        """Publish changes."""
        self._publish(*self._batches.add(changes))

    def clear(self) -> None:
        """Publish that nothing is cached any more: the engine has died."""
        self._publish(*self._batches.clear())

    async def close(self) -> None:
        """Close the sockets; what was not sent yet is lost."""
        self._answering.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._answering
        self._close()

    def _close(self) -> None:
        for each in (self._publisher, self._router):
            each.close(linger=0)
        self._context.term()

    def _publish(self, number: int, batch: bytes) -> None:
        self._publisher.send_multipart([self._topic, _number(number), batch])

    async def _answer(self) -> None:
        """Answer those who ask for batches. What is no such question is left without an answer."""
        while True:
            match await self._router.recv_multipart():
                case [client, b"", start] if len(start) == _NUMBER_BYTES:
                    first = int.from_bytes(start, "big", signed=True)
                    for number, batch in [*await self._batches.since(first), (END, b"")]:
                        parts = [client, b"", _number(number), batch]
                        # without a copy of a large snapshot for each client
                        await self._router.send_multipart(parts, copy=False)
                case _:
                    log.debug("a question on the replay socket of KV events that is none")


def _bind(socket: Any, address: str) -> str:
    """The address at which `socket` can be reached now.

    Raises:
        StartupError: it cannot be bound.
    """
    import zmq

    try:
        socket.bind(address)
    except zmq.ZMQError as error:
        raise StartupError(f"kv_events cannot use {address!r}: {error}") from error
    return str(socket.getsockopt_string(zmq.LAST_ENDPOINT))


def _number(number: int) -> bytes:
    return number.to_bytes(_NUMBER_BYTES, "big", signed=True)
