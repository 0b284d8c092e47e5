"""Correctness under load: compares every greedy answer with the answer to the same request sent
alone afterwards.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import aiohttp

from radixserve.loadtest.client import Answer, Refused, ask
from radixserve.loadtest.record import digest_of
from radixserve.loadtest.replay import Run, Sent
from radixserve.loadtest.target import CannotStart, Target, connect


@dataclass(slots=True)
class Difference:
    """A request whose answer under load differs from the one it gets alone."""

    sent: Sent
    reason: str


def comparable(runs: Iterable[Run]) -> list[Sent]:
    """Each greedy request that was answered completely, once for every different answer it got."""
    chosen: dict[tuple[str, str | None], Sent] = {}
    for sent in (sent for run in runs for sent in run.sent):
        if sent.record.answered and sent.body.get("temperature") == 0:
            chosen.setdefault((json.dumps([sent.path, sent.body]), sent.record.digest), sent)
    return list(chosen.values())


async def check(
    runs: Iterable[Run], target: Target, on_checked: Callable[[Sent, str | None], None]
) -> None:
    """Send each comparable request again, one at a time; `on_checked` gets how its answer differs,
    or None.

    Raises:
        CannotStart: the server is gone.
    """
    async with connect(target) as session:
        for sent in comparable(runs):
            on_checked(sent, await _differs(session, sent, target))


async def _differs(session: aiohttp.ClientSession, sent: Sent, target: Target) -> str | None:
    answer = Answer()
    try:
        async with asyncio.timeout(target.timeout_seconds):
            await ask(session, sent.path, sent.body, answer)
    except aiohttp.ClientConnectorError as error:
        raise CannotStart(f"no server at {target.url} any more: {error}") from error
    except (Refused, aiohttp.ClientError, OSError, TimeoutError) as error:
        return f"alone it failed: {error or type(error).__name__}"
    return (
        None
        if digest_of(answer.ordered_texts()) == sent.record.digest
        else "another answer when sent alone"
    )
