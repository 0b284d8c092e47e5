"""The load check: refuses models that our attention would serve wrongly, and compares our path with
transformers' own.

The configuration was checked before (`checkpoints.supported`). After loading, the logits of random
tokens, computed in two chunkings, are compared with the model's own forward, so that an
architecture whose configuration hides something is refused too, instead of being served wrongly.

**The tolerance.** Both sides round, and how much that changes logits depends on the model and its
dtype, so it is measured on the model itself: its own forward runs twice, the second time with every
value of the embeddings moved to a neighbouring one of its dtype (nudged). Then nearly every
intermediate value differs, so that all later roundings of the two runs are independent of each
other. Let `a` be what the roundings of one run change the logits by. The two runs differ by
`n = sqrt(2 a^2 + e^2)`, where `e` is what the nudge itself changes. Our path differs from the first
run by `d = sqrt(a^2 + b^2)`, where `b` is what our own roundings change: sums in another order, one
rounding instead of several. So

    d / n  <=  sqrt((1 + (b / a)^2) / 2)

which is at most 1 if we round no worse than the model's own modules, and 0.71 if we did not round
at all. In half precision sums are float32 on both sides, and only what is written is rounded: the
limit is 3, which our path would reach if its roundings changed four times as much as the model's
own. In float32 the sums themselves are what is rounded. A sum of K terms in one chain is off by
about 0.2 sqrt(K) last bits, and by less the more partial sums it has, so that `b / a` may be 20 for
two good kernels: the limit is 30, which is still a thousand times less than what a model hides.

Measured by `benchmarks/bench_load_check.py` on an Intel CPU with AMX for tiny models of six
architectures, two of them also with 16 layers, and the default model: in half precision `d / n`
was at most 0.9, and 1.12 where our path was replaced by one that does not round at all. `n` itself
varied by a factor of 1.9 at most between nudges of one model. If the logarithm of `d / n` is spread
as that of `n` is (0.15 to 0.2), the limit is five standard deviations away, so that fewer than one
sound model in a million is refused. In float32 `d / n` was at most 1.3, and 2.3 for the default
model. So one nudge is enough. What the negative controls of `tests/model/test_hidden.py` hide
changes the logits by 1.2 times the limit at least in bfloat16, nine times in float16 and hundreds
of times in float32.

**Experts.** Where a router chooses experts, a last bit can change the choice for a token, and then
logits change by much more than rounding does: in one of two runs, for this token and for all that
attend it. In tiny models that happened in up to 44 % of the runs. So a model with experts computes
eight probes, and the least difference counts on both sides. A sound one is refused if a choice
changes in all eight: less than twice in a thousand starts where it changes in 44 % of the runs, and
where it changes in nearly all, `n` holds it too.

**What it shows.** What changes most rows is found if it changes them by more than the tolerance,
that is, by some times what the dtype does. What acts only over distances longer than the probe is
not found here: which window of more than 40 tokens a layer has, or a scaling of rotary positions
that begins there. For the first, what a layer asks for must be what the configuration says
(`model.attention`), and rotary tables are always those of the model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import PreTrainedModel

from radixserve.checkpoints.opened import decoder_config
from radixserve.errors import ModelRefused, first_line
from radixserve.model import probes
from radixserve.model.dtypes import dtype_name
from radixserve.model.loaded import LoadedModel
from radixserve.model.probes import CHUNKINGS, logits_in_chunks, probe_tokens

_PROBES = 1
_PROBES_WITH_EXPERTS = 8
_TIMES_ROUNDING = 3.0
_TIMES_ROUNDING_FLOAT32 = 30.0
_MOST_TOLERANCE = 0.9  # two unrelated sets of logits differ by 1.4 of their size


@dataclass(frozen=True, slots=True)
class Expected:
    """What the model itself computes for the probes."""

    logits: torch.Tensor  # float32 [probes, NUM_PROBE_TOKENS, vocab], on the CPU
    rounding: float  # how far the last bits of the embeddings move them, as a part of their size
    dtype: torch.dtype  # of the model

    @property
    def tolerance(self) -> float:
        """How much other roundings may change the logits, as a part of their size."""
        in_float32 = self.dtype == torch.float32
        times = _TIMES_ROUNDING_FLOAT32 if in_float32 else _TIMES_ROUNDING
        return min(times * self.rounding, _MOST_TOLERANCE)

    def difference(self, index: int, logits: torch.Tensor) -> float:
        """How much `logits` [NUM_PROBE_TOKENS, vocab] differ from those of a probe, as a part of
        their size: a quotient of Euclidean norms, which depends less on chance than the largest
        difference does.
        """
        own = self.logits[index]
        spread = own - own.mean(-1, keepdim=True)
        return float((logits - own).norm() / spread.norm())


@torch.inference_mode()
def own_logits(model: PreTrainedModel, vocab_size: int, device: torch.device) -> Expected:
    """What the model itself computes for the probes, and how much of it is rounding. Cost: two
    forward passes.

    Raises:
        ModelRefused: it cannot compute them, or they are not finite or all the same.
    """
    count = _PROBES_WITH_EXPERTS if _has_experts(model) else _PROBES
    ids = probe_tokens(vocab_size, count).to(device)
    logits = _own_forward(model, ids)
    _refuse_useless(logits, model.dtype)
    hook = model.get_input_embeddings().register_forward_hook(_with_other_last_bits)
    try:
        nudged = _own_forward(model, ids)
    finally:
        hook.remove()
    expected = Expected(logits, 0.0, model.dtype)
    moved = [expected.difference(index, each) for index, each in enumerate(nudged)]
    return replace(expected, rounding=min(moved))


def _own_forward(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    try:
        output = model(input_ids=ids, use_cache=False, return_dict=True)
    except Exception as error:  # the classes of 300 architectures may raise anything
        reason = first_line(error)
        raise ModelRefused(f"The model's own forward pass does not work: {reason}") from error
    logits: torch.Tensor = output.logits
    return logits.float().cpu()


def _refuse_useless(logits: torch.Tensor, dtype: torch.dtype) -> None:
    if not logits.isfinite().all():
        raise ModelRefused(f"The model computes logits that are not finite as {dtype_name(dtype)}.")
    if not (logits != logits[..., :1]).any():
        raise ModelRefused(
            "The model computes the same logit for every token: its weights are empty."
        )


def _has_experts(model: PreTrainedModel) -> bool:
    """Whether a router chooses between experts in this model."""
    values = decoder_config(model.config).to_dict().items()
    return any("expert" in name and isinstance(value, int) and value > 1 for name, value in values)


def _with_other_last_bits(
    module: torch.nn.Module, inputs: tuple[Any, ...], out: torch.Tensor
) -> torch.Tensor:
    """A forward hook: `out` with each value moved to a neighbouring value of its dtype, up or down
    at random.
    """
    generator = torch.Generator().manual_seed(probes.PROBE_SEED)
    up = torch.randint(0, 2, out.shape, generator=generator).to(out.device)
    return (out.float() * (1 + torch.finfo(out.dtype).eps * (2 * up - 1))).to(out.dtype)


def probe(loaded: LoadedModel, expected: Expected) -> str | None:
    """Compare our path with `expected`. None if it agrees and is bit-identical in both chunkings; a
    reason if it agrees but is not bit-identical.

    Raises:
        ModelRefused: our path computes something else than the model does.
    """
    ids = probe_tokens(loaded.vocab_size, len(expected.logits))
    least = math.inf
    for index, tokens in enumerate(ids):
        whole, cut = _both(loaded, tokens)
        difference = max(expected.difference(index, each) for each in (whole, cut))
        if difference <= expected.tolerance:
            same = torch.equal(whole, cut)
            return (
                None
                if same
                else "the load check saw other bits when the prompt was cut into chunks"
            )
        least = min(least, difference)
    raise ModelRefused(
        "With cached K/V this model computes other logits than without: they differ by "
        f"{least:.2g} of their size, of which rounding in {dtype_name(loaded.dtype)} "
        f"explains {expected.tolerance:.2g}; its attention is not what its configuration and its "
        "calls say."
    )


def _both(loaded: LoadedModel, tokens: torch.Tensor) -> list[torch.Tensor]:
    """Our logits for the tokens of a probe, in both chunkings."""
    try:
        return [logits_in_chunks(loaded, tokens, counts) for counts in CHUNKINGS]
    except (RuntimeError, TypeError, AttributeError) as error:
        raise ModelRefused(
            f"Attention over cached K/V does not fit this architecture: {first_line(error)}."
        ) from error
