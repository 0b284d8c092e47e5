"""What each tenant of a server got lately, from its metrics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from radixserve.top.source import History

_PROMPT: Final = "radixserve_tenant_prompt_tokens_total"
_KV: Final = "radixserve_tenant_kv_bytes"
_REQUESTS: Final = "radixserve_tenant_requests"


@dataclass(frozen=True, slots=True)
class Share:
    """One tenant, or several together."""

    name: str
    prompt: float  # tokens in the period of the history
    cached: float  # of these
    kv_bytes: float  # on the device
    running: float  # requests
    waiting: float


def shares(history: History, most: int) -> list[Share]:
    """The tenants that used most lately; with more than `most`, the last entry is all others
    together. Empty unless there are several. O(series of tenants).
    """
    prompt = history.increases(_PROMPT, "tenant")
    computed = history.increases(_PROMPT, "tenant", source="computed")
    kv = history.last.by(_KV, "tenant")
    running = history.last.by(_REQUESTS, "tenant", state="running")
    waiting = history.last.by(_REQUESTS, "tenant", state="waiting")
    names = prompt.keys() | kv.keys() | running.keys()
    if len(names) < 2:
        return []
    found = [
        Share(
            name,
            prompt.get(name, 0.0),
            prompt.get(name, 0.0) - computed.get(name, 0.0),
            kv.get(name, 0.0),
            running.get(name, 0.0),
            waiting.get(name, 0.0),
        )
        for name in names
    ]
    found.sort(key=lambda each: (-each.prompt, -each.kv_bytes, each.name))
    return found if len(found) <= most else [*found[: most - 1], _together(found[most - 1 :])]


def _together(tenants: list[Share]) -> Share:
    return Share(
        f"{len(tenants)} others",
        sum(each.prompt for each in tenants),
        sum(each.cached for each in tenants),
        sum(each.kv_bytes for each in tenants),
        sum(each.running for each in tenants),
        sum(each.waiting for each in tenants),
    )
