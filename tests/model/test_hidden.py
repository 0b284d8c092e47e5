"""Negative controls of the load check: models whose own modules do something that nothing tells us.
Each is refused in every dtype. Sound models, those with routers included, are not.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import (
    AttentionInterface,
    PreTrainedModel,
)

from radixserve.errors import ModelRefused
from radixserve.model import check, probes
from radixserve.model.check import own_logits, probe
from radixserve.model.load import prepare_model
from tests.tiny import CPU, VOCAB, tiny_model, with_own_modules

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
NAMES = ("llama_grouped", "qwen3")

Scores = Callable[[torch.Tensor], torch.Tensor]
"""Changes attention scores [heads, rows, rows]."""


# What a model may hide.


def attending(model: Any, scores: Scores) -> None:
    """Give `model` an attention of its own that changes its scores."""

    def attention(
        module: torch.nn.Module,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        mask: torch.Tensor | None,
        scaling: float,
        **rest: Any,
    ) -> tuple[torch.Tensor, None]:
        each = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(each, 1), v.repeat_interleave(each, 1)
        later = torch.ones(q.shape[2], q.shape[2]).triu(1).bool()
        found = scores(q @ k.transpose(2, 3) * scaling).masked_fill(later, -torch.inf)
        weights = found.float().softmax(-1).to(q.dtype)
        return (weights @ v).transpose(1, 2).contiguous(), None

    AttentionInterface.register("tests_hidden", attention)
    model.set_attn_implementation("tests_hidden")


def within(window: int) -> Scores:
    def scores(found: torch.Tensor) -> torch.Tensor:
        earlier = torch.ones(found.shape[-2:]).tril(-window).bool()
        return found.masked_fill(earlier, -torch.inf)

    return scores


def by_distance(found: torch.Tensor) -> torch.Tensor:
    """A bias for each distance, as ALiBi adds it."""
    places = torch.arange(found.shape[-1], dtype=found.dtype)
    return found + (places - places[:, None]) / 16


def multiplied(modules: list[Any], by: float) -> None:
    """Multiply what `modules` return."""

    def hook(module: torch.nn.Module, inputs: Any, out: Any) -> Any:
        return (out[0] * by, *out[1:]) if isinstance(out, tuple) else out * by

    for module in modules:
        module.register_forward_hook(hook)


def shifted(module: Any) -> None:
    """Add a bias to what `module` returns."""
    bias = torch.randn(module.weight.shape[0], generator=torch.Generator().manual_seed(3))
    module.register_forward_hook(lambda _, inputs, out: out + bias.to(out.dtype) / 4)


def of_theta(model: Any, theta: float) -> None:
    count = len(model.model.rotary_emb.inv_freq)
    model.model.rotary_emb.inv_freq = theta ** -(torch.arange(count) / count)


def with_swapped_norms(model: Any) -> None:
    for layer in model.model.layers:
        one, other = layer.self_attn.q_norm, layer.self_attn.k_norm
        layer.self_attn.q_norm, layer.self_attn.k_norm = other, one


def with_norms_about_one(model: Any) -> None:
    """Norms whose stored weight is the distance from 1, as Gemma's is."""
    with torch.no_grad():
        for layer in model.model.layers:
            layer.input_layernorm.weight += 1


def with_gelu(model: Any) -> None:
    for layer in model.model.layers:
        layer.mlp.act_fn = torch.nn.GELU()


def capped(model: Any) -> None:
    model.lm_head.register_forward_hook(lambda _, inputs, out: 1.5 * (out / 1.5).tanh())


HIDDEN: dict[str, Callable[[Any], object]] = {
    "a softcap of the scores": lambda m: attending(m, lambda scores: 1.5 * (scores / 1.5).tanh()),
    "a sliding window of 8": lambda m: attending(m, within(8)),
    "a sliding window of 32": lambda m: attending(m, within(32)),
    "an attention scale": lambda m: attending(m, lambda scores: scores * 0.8),
    "a bias by distance": lambda m: attending(m, by_distance),
    "a rope theta of 500,000": lambda m: of_theta(m, 500_000.0),
    "a logits scaling": lambda m: multiplied([m.lm_head], 1 / 8),
    "a softcap of the logits": capped,
    "a bias of the output layer": lambda m: shifted(m.lm_head),
    "a bias in one layer": lambda m: shifted(m.model.layers[1].self_attn.o_proj),
    "a multiplier of residuals": lambda m: multiplied(
        [part for layer in m.model.layers for part in (layer.self_attn, layer.mlp)], 0.22
    ),
    "a multiplier of embeddings": lambda m: multiplied([m.model.embed_tokens], 12.0),
    "another activation": with_gelu,
    "norms about one": with_norms_about_one,
}


# The controls.


def model_of(name: str, dtype: torch.dtype) -> PreTrainedModel:
    """A tiny model whose norms differ from each other and from one."""
    model = tiny_model(name)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator) / 4)
    return model.to(dtype)


@cache
def ours(name: str, dtype: torch.dtype) -> list[list[torch.Tensor]]:
    """What our path computes for the same model in both chunkings: with the fast forward, if there
    is one, and without.
    """
    loaded = prepare_model(model_of(name, dtype), CPU)
    [tokens] = probes.probe_tokens(VOCAB)
    return [check._both(each, tokens) for each in (loaded, with_own_modules(loaded))]


@pytest.fixture
def is_refused(monkeypatch: pytest.MonkeyPatch) -> Callable[..., bool]:
    """Whether the model of a name is refused if it hides something from our path."""

    def refused(name: str, dtype: torch.dtype, hide: Callable[[Any], object]) -> bool:
        model = model_of(name, dtype)
        hide(model)
        expected = own_logits(model, VOCAB, CPU)
        [refused] = {differs(expected, dtype, both) for both in ours(name, dtype)}
        return refused

    def differs(expected: check.Expected, dtype: torch.dtype, both: list[torch.Tensor]) -> bool:
        monkeypatch.setattr(check, "_both", lambda *_: both)
        try:
            probe(SimpleNamespace(vocab_size=VOCAB, dtype=dtype), expected)  # type: ignore[arg-type]
        except ModelRefused as error:
            return "differ by" in str(error)
        return False

    return refused


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_a_model_that_hides_nothing_passes(
    name: str, dtype: torch.dtype, is_refused: Callable[..., bool]
) -> None:
    assert not is_refused(name, dtype, lambda model: None)
    assert not is_refused(name, dtype, lambda model: attending(model, lambda scores: scores))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("hidden", HIDDEN)
@pytest.mark.parametrize("name", NAMES)
def test_a_model_that_hides_something_is_refused(
    name: str, hidden: str, dtype: torch.dtype, is_refused: Callable[..., bool]
) -> None:
    assert is_refused(name, dtype, HIDDEN[hidden])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_swapped_norms_of_queries_and_keys_are_refused(
    dtype: torch.dtype, is_refused: Callable[..., bool]
) -> None:
    assert is_refused("qwen3", dtype, with_swapped_norms)


# Models with experts, whose choice a last bit can change.

ROUTED = ("mixtral", "qwen3_moe")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ROUTED)
def test_a_model_with_experts_passes_with_any_tokens(
    name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = prepare_model(tiny_model(name).to(dtype), CPU)
    for seed in range(8):
        monkeypatch.setattr(probes, "PROBE_SEED", seed)
        probe(loaded, own_logits(tiny_model(name).to(dtype), VOCAB, CPU))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("hidden", ["a bias by distance", "a sliding window of 8"])
@pytest.mark.parametrize("name", ROUTED)
def test_a_model_with_experts_that_hides_something_is_refused(
    name: str, hidden: str, dtype: torch.dtype
) -> None:
    model = tiny_model(name).to(dtype)
    HIDDEN[hidden](model)
    with pytest.raises(ModelRefused, match="differ by"):
        probe(prepare_model(tiny_model(name).to(dtype), CPU), own_logits(model, VOCAB, CPU))
