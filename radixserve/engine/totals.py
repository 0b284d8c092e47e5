"""What the scheduler has counted since the engine started: tokens by where their K/V came from,
preemptions and faults.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from radixserve.declared import Numbers
from radixserve.engine.counters import (
    COMPUTED,
    GENERATED_TOKENS,
    PREEMPTIONS,
    PROMPT_TOKENS,
    STEP_FAULTS,
    TENANT_PROMPT_TOKENS,
)
from radixserve.engine.sequence import Sequence
from radixserve.step import FaultKind
from radixserve.tiers import DEVICE


@dataclass(slots=True)
class Totals:
    """Running totals since the engine started."""

    prompt_tokens: Counter[str] = field(default_factory=Counter)  # by where K/V came from
    # by tenant and where K/V came from
    tenant_prompt_tokens: Counter[tuple[str, str]] = field(default_factory=Counter)
    generated_tokens: int = 0
    preemptions: int = 0
    faults: Counter[FaultKind] = field(default_factory=Counter)

    def note_prompt(self, sequence: Sequence) -> None:
        """Count the prompt of a sequence that begins, `num_cached` tokens of which have K/V."""
        assert sequence.num_cached is not None, "it is known only once the sequence has a lease"
        below = sequence.cached_below
        sources = {
            COMPUTED: sequence.num_prompt - sequence.num_cached,
            DEVICE: sequence.num_cached - sum(below.values()),
            **below,
        }
        for source, num_tokens in sources.items():
            self.prompt_tokens[source] += num_tokens
            self.tenant_prompt_tokens[sequence.request.tenant, source] += num_tokens

    def numbers(self) -> Numbers:
        """The totals, as declared in `engine.counters`."""
        tenants = self.tenant_prompt_tokens.items()
        return {
            GENERATED_TOKENS.key(): self.generated_tokens,
            PREEMPTIONS.key(): self.preemptions,
            **{PROMPT_TOKENS.key(source): count for source, count in self.prompt_tokens.items()},
            **{TENANT_PROMPT_TOKENS.key(*each): count for each, count in tenants},
            **{STEP_FAULTS.key(kind): count for kind, count in self.faults.items()},
        }
