"""Loads a model by folder or hub name, checks it, and makes it row-wise. Code that a model brings
along is never run, and weights are read from safetensors only: other formats are pickles.

Logs the stages; transformers shows its own bar while it reads weights.
"""

from __future__ import annotations

import logging
from dataclasses import replace

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from radixserve.cache.pool import KVShape
from radixserve.errors import ModelRefused
from radixserve.model import attention
from radixserve.model.check import Expected, check_config, dtype_name, own_logits, probe
from radixserve.model.cuda import choose_attention
from radixserve.model.loaded import LoadedModel
from radixserve.model.rowwise import make_rowwise

log = logging.getLogger(__name__)


def load_model(path_or_name: str, device: torch.device, dtype: torch.dtype) -> LoadedModel:
    """The model in a folder or on the hub, ready for a `Runner`.

    Raises:
        ModelRefused: it cannot be found, read, or served correctly; the sentence says why.
    """
    try:
        config = AutoConfig.from_pretrained(path_or_name, trust_remote_code=False)
        check_config(decoder_config(config))
        log.info("loading %s on %s as %s", path_or_name, device, dtype_name(dtype))
        model = AutoModelForCausalLM.from_pretrained(
            path_or_name, dtype=dtype, trust_remote_code=False, use_safetensors=True
        )
    except (OSError, ValueError, ImportError) as error:
        raise ModelRefused(f"Cannot load {path_or_name!r}: {error}") from error
    return prepare_model(model, device)


def prepare_model(model: PreTrainedModel, device: torch.device) -> LoadedModel:
    """Check `model`, change it in place to our linears and attention, and state its facts.

    Raises:
        ModelRefused: it cannot be served correctly.
    """
    config = decoder_config(model.config)
    check_config(config)
    model = model.eval().requires_grad_(False).to(device)
    vocab_size = int(config.vocab_size)
    expected = own_logits(model, vocab_size, device)
    log.info("packing linear layers")
    reason = _not_rowwise(model, device)
    shape = _kv_shape(config, model.dtype)
    kernel, fallback = _attention(
        shape, int(config.num_attention_heads), device, exact=reason is None
    )
    _use_attention(model, kernel)
    loaded = LoadedModel(
        model=model,
        device=device,
        shape=shape,
        vocab_size=vocab_size,
        context_length=int(config.max_position_embeddings),
        eos_token_ids=_eos_token_ids(model),
        attention=kernel,
        exact=reason is None,
        inexact_reason=reason,
        fallback_reason=fallback,
    )
    return _made_lean(_checked(loaded, expected), expected)


def decoder_config(config: PretrainedConfig) -> PretrainedConfig:
    """The part that describes the decoder, for models whose configuration wraps it."""
    return config if config.is_encoder_decoder else config.get_text_config(decoder=True)


def _not_rowwise(model: PreTrainedModel, device: torch.device) -> str | None:
    """Make the model row-wise; None, or why it is not."""
    if device.type != "cpu":
        return f"kernels on {device.type} are not verified to be independent of the batch"
    if model.dtype != torch.float32:
        return f"{dtype_name(model.dtype)} linears on the CPU depend on the number of rows"
    reason = make_rowwise(model)
    if reason:
        log.warning("outputs may depend on what is cached and on the batch: %s", reason)
    return reason


def _attention(
    shape: KVShape, heads: int, device: torch.device, *, exact: bool
) -> tuple[str, str | None]:
    """The name of the kernel for this device, and why it is the reference where it should
    not be.
    """
    if device.type == "cuda":
        return choose_attention(shape, heads, device)
    return attention.register_cpu_kernel() if exact else attention.TORCH, None


def _use_attention(model: PreTrainedModel, kernel: str) -> None:
    if not model._can_set_attn_implementation():
        raise ModelRefused(f"{type(model).__name__} does not let its attention be replaced.")
    model.set_attn_implementation(kernel)


def _kv_shape(config: PretrainedConfig, dtype: torch.dtype) -> KVShape:
    heads = int(config.num_attention_heads)
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    return KVShape(
        int(config.num_hidden_layers), int(kv_heads), int(head_dim), int(head_dim), dtype
    )


def _eos_token_ids(model: PreTrainedModel) -> tuple[int, ...]:
    """Ids that end a text, from the generation config first, then the model's; in order,
    each once.
    """
    found: list[int] = []
    for holder in (model.generation_config, model.config):
        ids = getattr(holder, "eos_token_id", None)
        found += [ids] if isinstance(ids, int) else ids or []
    return tuple(dict.fromkeys(found))


def _checked(loaded: LoadedModel, expected: Expected) -> LoadedModel:
    log.info("comparing with the model's own attention")
    reason = probe(loaded, expected)
    if reason and loaded.exact:
        log.warning("outputs may depend on what is cached and on the batch: %s", reason)
        return replace(loaded, exact=False, inexact_reason=reason)
    return loaded


def _made_lean(loaded: LoadedModel, expected: Expected) -> LoadedModel:
    """With the lean forward, where there is one for this model and it agrees."""
    if not loaded.exact:
        return loaded
    from radixserve.model.lean import LeanForward

    lean = LeanForward.of(loaded.model)
    if lean is None:
        return loaded
    candidate = replace(loaded, lean=lean)
    try:
        reason = probe(candidate, expected)
    except ModelRefused as error:
        reason = str(error)
    if reason:
        log.warning("the model's own modules are used, which are slower: %s", reason)
        return loaded
    return candidate
