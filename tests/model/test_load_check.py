"""The load check's tolerance is measured: whatever its random tokens are, the right attention
passes
in every dtype, and a wrong one is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import AttentionInterface, AutoModelForCausalLM, PreTrainedModel

from radixserve.checkpoints.embedded import embedded_model
from radixserve.errors import ModelRefused
from radixserve.kernels.attention import LayerAttention, attend_torch
from radixserve.kernels.step import AttentionPlan
from radixserve.model import probes, read_family
from radixserve.model.attention import interface
from radixserve.model.check import Expected, own_logits, probe
from radixserve.model.load import prepare_model
from radixserve.model.loaded import LoadedModel
from tests.tiny import CONFIGS, CPU, VOCAB, tiny_model

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SEEDS = range(5)
WRONG = "radixserve_wrong"

Seeded = Callable[[int], None]


@pytest.fixture
def seeded(monkeypatch: pytest.MonkeyPatch) -> Seeded:
    """Gives the check other random tokens."""
    return lambda seed: monkeypatch.setattr(probes, "PROBE_SEED", seed)


def expected_by_seed(
    model: PreTrainedModel, vocab_size: int, seeded: Seeded
) -> dict[int, Expected]:
    found = {}
    for seed in SEEDS:
        seeded(seed)
        found[seed] = own_logits(model, vocab_size, CPU)
    return found


def refuse_none(loaded: LoadedModel, expected: dict[int, Expected], seeded: Seeded) -> None:
    for seed, each in expected.items():
        seeded(seed)
        probe(loaded, each)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CONFIGS)
def test_the_right_attention_passes_with_any_tokens(
    name: str, dtype: torch.dtype, seeded: Seeded
) -> None:
    model = tiny_model(name).to(dtype)
    expected = expected_by_seed(model, VOCAB, seeded)
    refuse_none(prepare_model(model, CPU), expected, seeded)


@pytest.mark.model
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_the_embedded_model_passes_in_half_precision_with_any_tokens(
    dtype: torch.dtype, seeded: Seeded
) -> None:
    model = AutoModelForCausalLM.from_pretrained(embedded_model(), dtype=dtype)
    expected = expected_by_seed(model, model.config.vocab_size, seeded)
    refuse_none(prepare_model(model, CPU), expected, seeded)


def scores_twice_as_high(
    q: torch.Tensor, layer: int, plan: AttentionPlan, attention: LayerAttention
) -> torch.Tensor:
    return attend_torch(q, layer, plan, LayerAttention(2 * attention.scaling))


def rows_of_others(
    q: torch.Tensor, layer: int, plan: AttentionPlan, attention: LayerAttention
) -> torch.Tensor:
    return attend_torch(q, layer, plan, attention).roll(1, 0)


@pytest.mark.parametrize("wrong", [scores_twice_as_high, rows_of_others])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CONFIGS)
def test_a_wrong_attention_is_refused(
    name: str, dtype: torch.dtype, wrong: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    AttentionInterface.register(WRONG, interface(wrong))
    monkeypatch.setattr("radixserve.model.load._attention", lambda *_, **__: (WRONG, None))
    monkeypatch.setattr(read_family, "ROWS", {})  # our decoder has an attention of its own
    with pytest.raises(ModelRefused, match=r"differ by .* rounding in .* explains"):
        prepare_model(tiny_model(name).to(dtype), CPU)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_positions_that_depend_on_the_chunk_are_refused(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rotary embedding that counts back from the chunk's last token is right without
    cached K/V. Our decoder keeps rows of a table, each of which has its position in the sequence.
    """
    monkeypatch.setattr(read_family, "ROWS", {})
    model = tiny_model("llama").to(dtype)
    rotary = model.model.rotary_emb
    forward = rotary.forward
    monkeypatch.setattr(
        rotary, "forward", lambda x, position_ids: forward(x, position_ids - position_ids.max())
    )
    with pytest.raises(ModelRefused, match="differ by"):
        prepare_model(model, CPU)


@pytest.mark.parametrize(("dtype", "times"), [(torch.float32, 30), *((d, 3) for d in DTYPES[1:])])
def test_the_tolerance_is_what_rounding_explains(dtype: torch.dtype, times: int) -> None:
    expected = own_logits(tiny_model("llama").to(dtype), VOCAB, CPU)
    eps = torch.finfo(dtype).eps
    assert eps / 4 < expected.rounding < 16 * eps
    assert expected.tolerance == times * expected.rounding < 0.2


def test_a_model_whose_logits_are_not_finite_is_refused() -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.norm.weight.mul_(1e6)
    with pytest.raises(ModelRefused, match="not finite as float16"):
        prepare_model(model.to(torch.float16), CPU)
