"""Tiny random models of many architectures, as plain functions: two layers, a vocabulary of 97
tokens.

Weights are scaled up from transformers' initial ones, so that attention is far from uniform and
argmax is decided.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

from radixserve.model.load import prepare_model
from radixserve.model.loaded import LoadedModel
from radixserve.model.runner import Runner
from radixserve.step import Chunk, Logits, StatePart

VOCAB = 97
CPU = torch.device("cpu")

_SIZE = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 100,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}

IN_PANELS = {
    **_SIZE,
    "intermediate_size": 128,
}  # all linears as wide as our kernel for few rows needs them

# Those of the Llama kind and gpt2 are computed by our decoder, the others by their own modules;
# "generic" by its activation, which the decoder has not.
CONFIGS: dict[str, Callable[[], PretrainedConfig]] = {
    "llama": lambda: LlamaConfig(**_SIZE, num_key_value_heads=4),
    "llama_grouped": lambda: LlamaConfig(**_SIZE, num_key_value_heads=2, tie_word_embeddings=True),
    "llama_in_panels": lambda: LlamaConfig(**IN_PANELS, num_key_value_heads=2),
    "qwen3_in_panels": lambda: Qwen3Config(**IN_PANELS, num_key_value_heads=2, head_dim=32),
    "qwen2": lambda: Qwen2Config(**_SIZE, num_key_value_heads=1),
    "qwen3": lambda: Qwen3Config(**_SIZE, num_key_value_heads=2, head_dim=24),
    "mistral": lambda: MistralConfig(**_SIZE, num_key_value_heads=2, sliding_window=None),
    "generic": lambda: LlamaConfig(**_SIZE, num_key_value_heads=2, hidden_act="mish"),
    "bert": lambda: BertConfig(**_SIZE, is_decoder=True),
    "mixtral": lambda: MixtralConfig(
        **IN_PANELS, num_key_value_heads=2, num_local_experts=4, sliding_window=None
    ),
    "qwen3_moe": lambda: Qwen3MoeConfig(
        **IN_PANELS,
        num_key_value_heads=2,
        head_dim=16,
        num_experts=8,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
        decoder_sparse_step=1,
    ),
    "gpt2": lambda: GPT2Config(
        vocab_size=VOCAB,
        n_embd=64,
        n_layer=2,
        n_head=4,
        n_positions=512,
        bos_token_id=0,
        eos_token_id=1,
    ),
}


_BFLOAT16 = "_bfloat16"
IN_BFLOAT16 = tuple(
    f"{name}{_BFLOAT16}" for name in ("llama_grouped", "qwen3_in_panels", "generic")
)
QUANTISED = ("qwen3_in_panels_int8", "llama_grouped_bfloat16_int4", "qwen3_moe_int4")


def tiny_model(name: str, seed: int = 0) -> PreTrainedModel:
    """The transformers model itself, untouched by us: of CONFIGS in float32, of IN_BFLOAT16 in
    bfloat16.
    """
    torch.manual_seed(seed)
    config = CONFIGS[name.removesuffix(_BFLOAT16)]()
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
    return model.bfloat16() if name.endswith(_BFLOAT16) else model


def load_tiny(name: str, seed: int = 0) -> LoadedModel:
    """The same weights as `tiny_model(name, seed)`, checked and made row-wise. For a name in
    QUANTISED they are quantised.
    """
    plain, _, quantize = name.partition("_int")
    return prepare_model(tiny_model(plain, seed), CPU, bits=int(quantize) if quantize else None)


def with_own_modules(loaded: LoadedModel) -> LoadedModel:
    """A loaded model that runs through transformers' modules, with our attention in them."""
    loaded.model.set_attn_implementation(loaded.attention)  # type: ignore[operator]
    return replace(loaded, decoder=None)


def tiny_runner(name: str, num_slots: int = 1024, seed: int = 0) -> Runner:
    loaded = load_tiny(name, seed)
    return runner_of(loaded, num_slots)


def runner_of(loaded: LoadedModel, num_slots: int = 1024) -> Runner:
    """A runner over a pool of its own, for chunks that `chunk` makes."""
    return Runner(loaded, loaded.pool(num_slots, num_slots))


def chunk(
    ids: Sequence[int], start: int, slots: Sequence[int], logits: Logits = Logits.ALL
) -> Chunk:
    """Positions [start, start + len(ids)) of a sequence whose slot table begins with `slots`. The
    state behind a chunk is in the state slot with the number of its last slot.
    """
    stop = start + len(ids)
    table = np.asarray(slots[:stop], np.int32)
    state = StatePart(stop, int(table[start - 1]) if start else -1, int(table[stop - 1]))
    return Chunk(
        token_ids=np.asarray(ids, np.int32),
        start=start,
        slots=table,
        logits=logits,
        states=(state,),
    )


def chunks_of(ids: Sequence[int], slots: Sequence[int], cuts: Sequence[int]) -> list[Chunk]:
    """One sequence cut at the given positions, in order."""
    bounds = [0, *cuts, len(ids)]
    return [chunk(ids[a:b], a, slots) for a, b in itertools.pairwise(bounds)]


def greedy(runner: Runner, prompt: Sequence[int], num_tokens: int) -> list[int]:
    """The `num_tokens` most likely next tokens, through prefill and single-token steps over slots
    0, 1, ...
    """
    ids, start = list(prompt), 0
    slots = range(len(prompt) + num_tokens)
    for _ in range(num_tokens):
        logits = runner.forward([chunk(ids[start:], start, slots, Logits.LAST)])
        start = len(ids)
        ids.append(int(logits[-1].argmax()))
    return ids[len(prompt) :]
