"""Adds drafts to the decodes of a step, and notes what came of them (`drafts` says what they are).

Drafts are extra: they take rows and slots that are left, and preempt nobody.
"""

from __future__ import annotations

from collections import Counter
from functools import partial
from itertools import product

import numpy as np

from radixserve.cache.kvcache import KVCache
from radixserve.declared import Numbers
from radixserve.engine.counters import DRAFT_TOKENS, FROM_TEXT, FROM_TREE, RIGHT, WRONG
from radixserve.engine.drafts import Drafting, FromText, FromTree, Ids
from radixserve.engine.planning import Plan, Work, last_slot, slots_wanted
from radixserve.engine.sequence import Sequence
from radixserve.step import Logits

MOST_ROWS = 16
"""The most rows that the decodes of a step have with drafts. On the CPU a row more takes about an
eighth of the time of a step with one row, so drafts of many sequences would have to be right more
often than they are.
"""


class Speculation:
    """The drafts of one engine's sequences."""

    def __init__(self, cache: KVCache) -> None:
        self._cache = cache
        self._tokens: Counter[tuple[str, str]] = Counter()  # by source and outcome

    def add_drafts(self, plan: Plan) -> None:
        """Add drafts to the decodes of a plan, which share the rows equally. None is added where a
        grammar decides what may follow.
        """
        decodes = plan.decodes()
        share = MOST_ROWS // max(1, len(decodes)) - 1
        for work in decodes:
            sequence = work.sequence
            most = min(share, plan.room, last_slot(sequence) - sequence.num_tokens)
            if most > 0 and work.logits is Logits.LAST and work.sampling.grammar is None:
                draft = self._drafting(sequence).propose(sequence.ids[: sequence.num_tokens], most)
                if len(draft) and _has_slots_for(work, len(draft)):
                    plan.guess(work, draft)

    def judge(self, work: Work, num_right: int) -> None:
        """The first `num_right` guesses of the work's draft were drawn and have K/V now."""
        drafting, num_guessed = work.sequence.drafting, len(work.draft)
        assert drafting is not None, "the draft came from there"
        drafting.judge(num_guessed, num_right, work.sequence.num_tokens)
        self._tokens[drafting.source, RIGHT] += num_right
        self._tokens[drafting.source, WRONG] += num_guessed - num_right

    def numbers(self) -> Numbers:
        """What became of all guesses, as declared in `engine.counters`."""
        series = product((FROM_TREE, FROM_TEXT), (RIGHT, WRONG))
        return {DRAFT_TOKENS.key(*each): self._tokens[each] for each in series}

    def _drafting(self, sequence: Sequence) -> Drafting:
        if sequence.drafting is None:
            sources = FromTree(partial(self._continuation, sequence)), FromText()
            sequence.drafting = Drafting(sources if sequence.reads_cache else sources[1:])
        return sequence.drafting

    def _continuation(self, sequence: Sequence, most: int) -> Ids:
        prefix = sequence.prefix(sequence.num_tokens)
        return np.frombuffer(self._cache.continuation(prefix, most), np.int32)


def _has_slots_for(work: Work, num_guessed: int) -> bool:
    """Whether the lease has slots for a draft, or can be grown without preempting others."""
    lease, wanted = work.lease, work.stop + num_guessed
    if len(lease.slots) < wanted and not lease.grow(max(wanted, slots_wanted(work.sequence))):
        return False
    return lease.cover(work.start, wanted)
