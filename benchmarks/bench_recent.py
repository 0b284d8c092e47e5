"""What it costs to remember prompts and to count why they were not cached: microseconds of one
request of each kind, and of one evicted leaf. Compare with the time of the steps that compute it.

    python benchmarks/bench_recent.py
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable
from functools import partial

from radixserve.cache.kvcache import KVCache
from radixserve.engine.recent import MOST_PROMPTS, Found, Recent, Seen
from radixserve.prefix import Prefix

LENGTHS = (256, 1024, 8192)
TIMES = 400


def microseconds(call: Callable[[int], None]) -> float:
    """The median of one call."""
    taken = []
    for i in range(TIMES):
        began = time.perf_counter()
        call(i)
        taken.append(time.perf_counter() - began)
    return 1e6 * statistics.median(taken)


def prompts(length: int, count: int) -> list[Prefix]:
    """Conversations with a common opening of a quarter."""
    draw = random.Random(length)
    opening = [draw.randrange(50000) for _ in range(length // 4)]
    rest = length - len(opening)
    return [
        Prefix.of("public", [*opening, *(draw.randrange(50000) for _ in range(rest))])
        for _ in range(count)
    ]


def measure(length: int) -> None:
    recent, given = Recent(), prompts(length, TIMES)
    for prompt in prompts(256, MOST_PROMPTS):
        recent.note(Seen.now(prompt, ""))

    def ask(i: int, session: str, matched: int) -> None:
        asked = Seen.now(given[i], session)
        recent.asked(asked, Found(matched, matched), lambda: None, reads=True, keeps=True)

    hit = microseconds(lambda i: ask(i, "", length - 1))
    miss = microseconds(lambda i: ask(i, f"s{i}", length // 4))
    print(f"{length:6} tokens   hit {hit:7.0f} us   miss {miss:7.0f} us")


def _evict(cache: KVCache, _: int) -> None:
    cache.slots.evict(384)


def measure_evictions() -> None:
    for told in (False, True):
        cache = KVCache(1 << 20)
        cache.slots.on_gone = Recent().gone if told else None
        for prompt in prompts(512, TIMES + 1):
            with cache.lease(prompt, prompt.num_tokens) as lease:  # type: ignore[union-attr]
                lease.publish(prompt)
        leaf = microseconds(partial(_evict, cache))
        print(f"one leaf evicted, {'remembered' if told else 'forgotten'}: {leaf:.1f} us")


if __name__ == "__main__":
    for each in LENGTHS:
        measure(each)
    measure_evictions()
