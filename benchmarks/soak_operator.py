"""The operator of a soak: explains, warms, pins, drops, flushes, and moves the budgets up and down
at random while the clients talk and engines die.

A call may be carried out, be told that there is no engine (503), or meet a pin or a node that is
gone (404). Anything else, and a call that is never answered, is a failure. Only warming may take
long, because it waits behind all requests; the operator leaves after some seconds, which counts as
a call, too.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

import aiohttp
from soak_clients import CALL, Tally
from soak_keys import TENANTS

from radixserve.loadtest.session import Json

CALL_SECONDS = 60.0  # a call that takes longer is lost
PAUSE_SECONDS = 0.5  # at most, between two calls
WARM_SECONDS = 5.0  # after which the operator leaves
KV_BYTES, HOST_BYTES = (16 << 20, 20_000_000), (10 << 20, 20_000_000)
POLICIES = ("lru", "slru", "s3-fifo", "arc", "worth")
CHANGED = ("kv_budget", "host_budget", "eviction_policy")
_ALLOWED = (200, 404, 503)


class Operator:
    """Calls of an administrator; `http` sends the key of one."""

    def __init__(
        self, http: aiohttp.ClientSession, bodies: list[Json], tally: Tally, rng: random.Random
    ) -> None:
        self._http, self._bodies, self._tally, self._rng = http, bodies, tally, rng
        self._deck = [  # some calls are made more often than others
            *(self._explain,) * 4,
            *(self._warm,) * 2,
            *(self._look,) * 2,
            *(self._pin,) * 4,
            *(self._unpin,) * 2,
            *(self._drop,) * 2,
            *(self._configure,) * 2,
            self._flush,
        ]

    async def run(self, goes_on: Callable[[], bool]) -> None:
        """Call after call, in shuffled rounds that hold every kind, while `goes_on` holds."""
        while goes_on():
            self._rng.shuffle(self._deck)
            for call in self._deck:
                if goes_on():
                    await call()
                    await asyncio.sleep(self._rng.uniform(0.0, PAUSE_SECONDS))

    async def put_back(self) -> None:
        """End all pins, so that nothing is held at rest, and take the settings of the start."""
        for pin in await self._pins():
            await self._call("unpin", "DELETE", f"/cache/pin/{pin['id']}")
        settings = (await self._call("look", "GET", "/config")).get("settings", {})
        at_start = {name: settings[name]["at_start"] for name in CHANGED if name in settings}
        if at_start:
            await self._call("configure", "PUT", "/config", at_start)

    async def what_is_held(self) -> str:
        """For the report of a server that does not come to rest."""
        paths = ("/cache/pins", "/cache", "/cache/tree?depth=64&nodes=2000")
        return "\n".join([str(await self._call("look", "GET", path)) for path in paths])

    async def _explain(self) -> None:
        await self._call("explain", "POST", "/cache/explain", self._rng.choice(self._bodies))

    async def _warm(self) -> None:
        count = self._rng.randint(1, 3)
        asked = {"bodies": self._rng.choices(self._bodies, k=count)}
        try:
            async with asyncio.timeout(WARM_SECONDS):
                await self._call("warm", "POST", "/cache/warm", asked)
        except TimeoutError:
            self._tally.calls["warm"] += 1

    async def _look(self) -> None:
        path = self._rng.choice(("/cache", "/cache/tree?depth=4&nodes=300", "/cache/pins"))
        await self._call("look", "GET", path)

    async def _pin(self) -> None:
        """A node of the tree, or the prompt of a body, for some seconds."""
        node = await self._node() if self._rng.random() < 0.7 else None
        named = self._rng.choice(self._bodies) if node is None else {"node": node}
        await self._call("pin", "POST", "/cache/pin", named | {"ttl": self._rng.uniform(1, 20)})

    async def _unpin(self) -> None:
        if pins := await self._pins():
            name = self._rng.choice(pins)["id"]
            await self._call("unpin", "DELETE", f"/cache/pin/{name}")

    async def _drop(self) -> None:
        node = await self._node()
        chosen = self._rng.choice(("older_than=5s", f"tenant={self._rng.choice(TENANTS)}", None))
        if chosen or node is not None:
            await self._call("drop", "DELETE", f"/cache?{chosen or f'node={node}'}")

    async def _configure(self) -> None:
        """Smaller and larger budgets, in which the longest request of the pool still fits, and
        another policy.
        """
        asked = {
            "kv_budget": self._rng.randint(*KV_BYTES),
            "host_budget": self._rng.randint(*HOST_BYTES),
            "eviction_policy": self._rng.choice(POLICIES),
        }
        await self._call("configure", "PUT", "/config", asked)

    async def _flush(self) -> None:
        path = self._rng.choice(("/flush_cache", "/reset_prefix_cache"))
        await self._call("flush", "POST", path)

    async def _node(self) -> int | None:
        tree = await self._call("look", "GET", "/cache/tree?depth=4&nodes=300")
        nodes = [node["id"] for node in tree.get("nodes", ()) if node["tokens"]]
        return self._rng.choice(nodes) if nodes else None

    async def _pins(self) -> list[Json]:
        return list((await self._call("look", "GET", "/cache/pins")).get("pins", ()))

    async def _call(self, kind: str, method: str, path: str, body: Json | None = None) -> Json:
        """The answer; empty if there is none. Failures are counted."""
        try:
            async with (
                asyncio.timeout(CALL_SECONDS),
                self._http.request(method, path, json=body) as response,
            ):
                answer: Json = await response.json()
        except (aiohttp.ClientError, OSError, ValueError) as error:
            self._tally.fail(CALL, f"{method} {path} {body}: {error!r}")
            return {}
        if response.status not in _ALLOWED:
            self._tally.fail(CALL, f"{method} {path} {body}: {answer}")
        self._tally.calls[kind] += response.status == 200
        return answer if response.status == 200 else {}
