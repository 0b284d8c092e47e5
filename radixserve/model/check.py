"""The load check: refuses models that our attention would serve wrongly, and compares our path with
transformers' own.

The configuration was checked before (`checkpoints.supported`). After loading, the logits of random
tokens, computed in two chunkings, are compared with the model's own forward, so that an
architecture whose configuration hides something is refused too, instead of being served wrongly.

Both sides round, in different orders, and how much that changes depends on the model and its dtype.
So the tolerance is measured: the model's own forward is run twice, the second time with the last
bit of every embedding changed, and our path may differ by a few times what that changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from radixserve.errors import ModelRefused, first_line
from radixserve.model.loaded import LoadedModel
from radixserve.model.runner import Runner
from radixserve.step import Chunk, Logits
from radixserve.tensors.kv import KVPool

NUM_PROBE_TOKENS = 40
_CHUNKINGS = ((40,), (17, 1, 1, 21))
_PROBE_SEED = 7
# In 80 runs of eleven models in three dtypes our path differed by at most 0.8 times what the last
# bits change. A wrong attention differs by 0.2 of the logits' size and more.
_TIMES_ROUNDING = 3.0
_LEAST_TOLERANCE = 1e-4
_MOST_TOLERANCE = 0.9  # two unrelated sets of logits differ by 1.4 of their size


@dataclass(frozen=True, slots=True)
class Expected:
    """What the model itself computes for the probe tokens."""

    logits: torch.Tensor  # float32 [NUM_PROBE_TOKENS, vocab], on the CPU
    rounding: float  # how far the last bits of the embeddings move them, as a part of their size

    @property
    def tolerance(self) -> float:
        """How much another order of the same operations may change the logits, as a part of their
        size.
        """
        return min(max(_TIMES_ROUNDING * self.rounding, _LEAST_TOLERANCE), _MOST_TOLERANCE)

    def difference(self, logits: torch.Tensor) -> float:
        """How much `logits` differ from these, as a part of their size: a quotient of Euclidean
        norms, which depends less on chance than the largest difference does.
        """
        spread = self.logits - self.logits.mean(-1, keepdim=True)
        return float((logits - self.logits).norm() / spread.norm())


def probe_tokens(vocab_size: int) -> torch.Tensor:
    """The random tokens [NUM_PROBE_TOKENS], int64, that the check computes."""
    generator = torch.Generator().manual_seed(_PROBE_SEED)
    return torch.randint(0, vocab_size, (NUM_PROBE_TOKENS,), generator=generator)


@torch.inference_mode()
def own_logits(model: PreTrainedModel, vocab_size: int, device: torch.device) -> Expected:
    """What the model itself computes for the probe tokens, and how much of it is rounding. Cost:
    two forward passes.

    Raises:
        ModelRefused: the logits are not finite.
    """
    logits = _own_forward(model, vocab_size, device)
    if not logits.isfinite().all():
        raise ModelRefused(
            f"The model computes logits that are not finite as {dtype_name(model.dtype)}."
        )
    hook = model.get_input_embeddings().register_forward_hook(_with_other_last_bits)
    try:
        nudged = _own_forward(model, vocab_size, device)
    finally:
        hook.remove()
    return Expected(logits, Expected(logits, 0.0).difference(nudged))


def _own_forward(model: torch.nn.Module, vocab_size: int, device: torch.device) -> torch.Tensor:
    ids = probe_tokens(vocab_size)[None].to(device)
    logits: torch.Tensor = model(input_ids=ids, use_cache=False).logits[0]
    return logits.float().cpu()


def _with_other_last_bits(
    module: torch.nn.Module, inputs: tuple[Any, ...], out: torch.Tensor
) -> torch.Tensor:
    """A forward hook: `out` with each value moved to a neighbouring value of its dtype, up or down
    at random.
    """
    generator = torch.Generator().manual_seed(_PROBE_SEED)
    up = torch.randint(0, 2, out.shape, generator=generator).to(out.device)
    return (out.float() * (1 + torch.finfo(out.dtype).eps * (2 * up - 1))).to(out.dtype)


def probe(loaded: LoadedModel, expected: Expected) -> str | None:
    """Compare our path with `expected`. None if it agrees and is bit-identical in both chunkings; a
    reason if it agrees but is not bit-identical.

    Raises:
        ModelRefused: our path computes something else than the model does.
    """
    try:
        whole, cut = (_logits_in_chunks(loaded, counts) for counts in _CHUNKINGS)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise ModelRefused(
            f"Attention over cached K/V does not fit this architecture: {first_line(error)}"
        ) from error
    difference = max(expected.difference(whole), expected.difference(cut))
    if not difference <= expected.tolerance:
        raise ModelRefused(
            "With cached K/V this model computes other logits than without: they differ by "
            f"{difference:.2g} of their size, of which rounding in {dtype_name(loaded.dtype)} "
            f"explains {expected.tolerance:.2g}; its attention is not plain causal attention."
        )
    return (
        None
        if torch.equal(whole, cut)
        else "the load check saw other bits when the prompt was cut into chunks"
    )


def _logits_in_chunks(loaded: LoadedModel, counts: Sequence[int]) -> torch.Tensor:
    pool = KVPool(loaded.shape, NUM_PROBE_TOKENS, loaded.device)
    runner = Runner(loaded, pool)
    ids = probe_tokens(loaded.vocab_size).numpy().astype(np.int32)
    slots = np.random.default_rng(7).permutation(NUM_PROBE_TOKENS).astype(np.int32)
    logits, start = [], 0
    for count in counts:
        stop = start + count
        chunk = Chunk(token_ids=ids[start:stop], start=start, slots=slots[:stop], logits=Logits.ALL)
        logits.append(runner.forward([chunk]).cpu())
        start = stop
    return torch.cat(logits)


def dtype_name(dtype: torch.dtype) -> str:
    """The short name of a dtype, such as "bfloat16"."""
    return str(dtype).removeprefix("torch.")
