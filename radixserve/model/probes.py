"""The probes of the load check: random tokens, computed in chunks over scattered slots. Needs no
transformers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from radixserve.model.loaded import LoadedModel
from radixserve.model.runner import Runner
from radixserve.step import Chunk, Logits, StatePart

NUM_PROBE_TOKENS = 40
CHUNKINGS = ((40,), (17, 1, 1, 21))
PROBE_SEED = 7


def probe_tokens(vocab_size: int, probes: int = 1) -> torch.Tensor:
    """The random tokens [probes, NUM_PROBE_TOKENS], int64, that the check computes."""
    generator = torch.Generator().manual_seed(PROBE_SEED)
    return torch.randint(0, vocab_size, (probes, NUM_PROBE_TOKENS), generator=generator)


def logits_in_chunks(
    loaded: LoadedModel, tokens: torch.Tensor, counts: Sequence[int]
) -> torch.Tensor:
    """Logits [NUM_PROBE_TOKENS, vocab_size] of the tokens of a probe, computed in chunks of so
    many tokens.
    """
    runner = Runner(loaded, loaded.pool(NUM_PROBE_TOKENS, num_state_slots=2))
    ids = tokens.numpy().astype(np.int32)
    slots = np.random.default_rng(7).permutation(NUM_PROBE_TOKENS).astype(np.int32)
    logits, start = [], 0
    for number, count in enumerate(counts):
        stop = start + count
        chunk = Chunk(token_ids=ids[start:stop], start=start, slots=slots[:stop], logits=Logits.ALL)
        chunk.states = (StatePart(stop, (number - 1) % 2 if start else -1, number % 2),)
        logits.append(runner.forward([chunk]).cpu())
        start = stop
    return torch.cat(logits)
