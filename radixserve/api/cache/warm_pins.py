"""What pins held when an engine died, which the next one is to have. The K/V comes from a tier
below or is computed again.
"""

from __future__ import annotations

import secrets
import time
from functools import partial
from typing import Final

from radixserve.adapters import parts_of
from radixserve.api.cache.bodies import known_tenant
from radixserve.api.cache.warmup import WarmPrompt
from radixserve.api.context import Api
from radixserve.errors import BadRequest
from radixserve.front.generation import Generation
from radixserve.front.pins import KeptPin, KeptPins
from radixserve.front.stream import Stream
from radixserve.metrics_table import WARMING
from radixserve.prefix import PUBLIC, owner_of, unpack
from radixserve.request import Request, Sampling
from radixserve.tenants import DEFAULT, MAX_PRIORITY, Tenant

_ONE_TOKEN: Final = Sampling(max_tokens=1, seed=0, temperature=0.0)


class PinnedPrompts:
    """What the pins of one front have held (`warmup.Prompts`)."""

    what = "pinned prefixes"

    def __init__(self, api: Api, pins: KeptPins) -> None:
        self._api, self._pins = api, pins

    def now(self) -> list[WarmPrompt]:
        """All that did not give way or end."""
        return [
            WarmPrompt(each.pin.id, partial(self._generation, each), each.lose, each.is_over)
            for each in self._pins.holding()
        ]

    async def _generation(self, pin: KeptPin) -> Generation:
        """A prompt of exactly the tokens that the pin has held, in their namespaces. Raises
        BadRequest if their tenant or the adapter that changes their K/V is gone.
        """
        held, name = pin.held, secrets.token_hex(12)
        adapter = self._adapter_of(held.namespace)
        tenant = self._tenant_of(held.namespace)
        request = Request(
            id=f"{name}-0",
            prompt_ids=unpack(held.tokens),
            sampling=_ONE_TOKEN,
            namespace=held.namespace,
            num_public=held.num_public,
            adapter=adapter,
            tenant=tenant.name,
            weight=tenant.weight,
            kv_quota=tenant.kv_quota,
            kv_floor=tenant.kv_floor,
            priority=MAX_PRIORITY,
            arrived=time.monotonic(),
        )
        return Generation(WARMING, name, [Stream(request, prompt_only=True)])

    def _adapter_of(self, namespace: str) -> str:
        """The digest of an adapter that computes the K/V of a namespace."""
        _, kv_digest = parts_of(namespace)
        if not kv_digest:
            return ""
        found = self._api.engine.adapters.with_kv(kv_digest)
        if found is None:
            raise BadRequest("The adapter of this prefix was unloaded.", code="model_not_found")
        return found.digest

    def _tenant_of(self, namespace: str) -> Tenant:
        if namespace == PUBLIC or not self._api.keys.has_file:
            return DEFAULT
        return known_tenant(self._api, owner_of(namespace))
