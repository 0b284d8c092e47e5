"""Loads the model in a folder, checks it, and makes it row-wise. Code in a model's folder is never
run, and weights are read from safetensors only, because other formats are pickles.

If our decoder computes the logits that the model's own modules compute, it serves. Otherwise these
modules do, with our attention in the place of theirs; some classes do not let it be replaced, and
are served by the decoder or not at all.

Logs the stages.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from itertools import compress
from typing import Any

import torch
from transformers import PreTrainedModel

from radixserve.checkpoints.opened import (
    OpenedModel,
    context_length,
    decoder_config,
    kv_shape,
    open_model,
)
from radixserve.checkpoints.read_weights import read_weights
from radixserve.checkpoints.supported import check_config, has_states
from radixserve.errors import ModelRefused
from radixserve.model import attention
from radixserve.model.check import Expected, own_logits, probe
from radixserve.model.cuda import choose_attention
from radixserve.model.dtypes import dtype_name, told
from radixserve.model.experts import compute_curves_rowwise
from radixserve.model.heap import freed_at_once
from radixserve.model.loaded import LoadedModel, tell
from radixserve.model.observed import observed_shape
from radixserve.model.rowwise import make_rowwise
from radixserve.progress import long_stage
from radixserve.tensors.kv import KVShape
from radixserve.tensors.origins import Origins

log = logging.getLogger(__name__)


def load_model(
    folder: str,
    device: torch.device,
    dtype: torch.dtype,
    kv_dtype: torch.dtype | None = None,
    bits: int | None = None,
) -> LoadedModel:
    """The model in a folder, ready for a `Runner`; `kv_dtype` and `bits` are as for
    `prepare_model`.

    Raises:
        ModelRefused: it cannot be found, read, or served correctly; the sentence says why.
    """
    return load_opened(open_model(folder), device, dtype, kv_dtype, bits)


def load_opened(
    opened: OpenedModel,
    device: torch.device,
    dtype: torch.dtype,
    kv_dtype: torch.dtype | None = None,
    bits: int | None = None,
) -> LoadedModel:
    """The same for a model that was opened before. Weights are read one tensor at a time: the peak
    of memory is the loaded model and a few of its largest tensors.

    Raises:
        ModelRefused: its weights are damaged or not those of its configuration, or it cannot be
            served correctly.
    """
    what = told(opened.stored_dtype, dtype, f"int{bits}" if bits else "none")
    log.info("loading %s on %s as %s", opened.name, device, what)
    with freed_at_once():
        model = read_weights(opened, dtype, device, leaves_linears=bits is not None)
        return prepare_model(model, device, kv_dtype, bits)


def prepare_model(
    model: PreTrainedModel,
    device: torch.device,
    kv_dtype: torch.dtype | None = None,
    bits: int | None = None,
) -> LoadedModel:
    """Check `model`, replace its linears and attention by ours in place, and collect its facts.
    `kv_dtype` is a dtype of `tensors.kv.KV_DTYPES`; None is that of the model. Weights of linears
    become codes of so many `bits`; None keeps all of their values.

    Raises:
        ModelRefused: it cannot be served correctly.
    """
    config = decoder_config(model.config)
    check_config(config)
    model = model.eval().requires_grad_(False)
    # Weights that are kept as codes have no other form in which the model could compute; what it
    # computes with those that are quantised is what ours is compared with.
    keeps_codes = any(hasattr(module, "stored") for module in model.modules()) or bits is not None
    reason = _not_rowwise(model, device, bits) if keeps_codes else None
    model = model.to(device)
    vocab_size = int(config.vocab_size)
    if device.type == "cpu" and model._can_set_experts_implementation():
        model.set_experts_implementation("eager")  # others want sizes in whole vectors
    with long_stage("computing what the model itself computes"):
        expected = own_logits(model, vocab_size, device)
    reason = reason if keeps_codes else _not_rowwise(model, device, None)
    shape = kv_shape(config, model.dtype)
    kernel, fallback = _attention(
        shape, int(config.num_attention_heads), device, exact=reason is None
    )
    loaded = LoadedModel(
        model=model,
        device=device,
        dtype=model.dtype,
        shape=shape,
        vocab_size=vocab_size,
        context_length=context_length(config),
        eos_token_ids=_eos_token_ids(model, vocab_size),
        attention=kernel,
        exact=reason is None,
        inexact_reason=reason,
        fallback_reason=fallback,
    )
    loaded = _with_decoder(loaded, expected)
    if loaded.decoder is None and has_states(config):
        raise ModelRefused(
            f"{type(model).__name__} has layers with a state, which only the fast forward computes,"
            f" and it does not serve: {str(loaded.generic_reason).rstrip('.')}."
        )
    if loaded.decoder is None:
        loaded = _checked_rowwise(_with_own_modules(loaded, model), expected)
    loaded = _with_kv_dtype(loaded, kv_dtype or model.dtype, expected)
    tell(loaded)
    return loaded


def _not_rowwise(model: PreTrainedModel, device: torch.device, bits: int | None) -> str | None:
    """Make the model row-wise, quantised to so many bits. Returns None, or why it is not."""
    if device.type != "cpu":
        return f"kernels on {device.type} are not verified to be independent of the batch"
    if model.dtype not in (torch.float32, torch.bfloat16):
        return f"{dtype_name(model.dtype)} linears on the CPU depend on the number of rows"
    with Origins():
        return make_rowwise(model, bits)


def _attention(
    shape: KVShape, heads: int, device: torch.device, *, exact: bool
) -> tuple[str, str | None]:
    """The name of the attention kernel for this device, and why it is the reference if it should
    not be.
    """
    if device.type == "cuda":
        return choose_attention(shape, heads, device)
    return attention.register_cpu_kernel() if exact else attention.TORCH, None


def _with_own_modules(loaded: LoadedModel, model: PreTrainedModel) -> LoadedModel:
    """`loaded` with the shape of K and V that the model's own modules want, and our attention in
    them.
    """
    if not model._can_set_attn_implementation():
        reason = str(loaded.generic_reason).rstrip(".")
        raise ModelRefused(
            f"{type(model).__name__} does not let its attention be replaced, and the fast forward "
            f"does not serve it: {reason}."
        )
    shape, heads = observed_shape(model)
    if shape != loaded.shape:
        kernel, fallback = _attention(shape, heads, loaded.device, exact=loaded.exact)
        loaded = replace(loaded, shape=shape, attention=kernel, fallback_reason=fallback)
    model.set_attn_implementation(loaded.attention)
    return loaded


def _eos_token_ids(model: PreTrainedModel, vocab_size: int) -> tuple[int, ...]:
    """Ids that end a text, from the generation config first, then the model's; in order,
    each once. Ids beyond the vocabulary, which no text can have, are left out.
    """
    found: list[Any] = []
    for holder in (model.generation_config, model.config):
        ids = getattr(holder, "eos_token_id", None)
        found += ids if isinstance(ids, list) else [] if ids is None else [ids]
    known = [type(each) is int and 0 <= each < vocab_size for each in found]
    if not all(known):
        other = found[known.index(False)]
        log.warning("the model has no token %.80r, which should end its texts", other)
    return tuple(dict.fromkeys(compress(found, known)))


def _checked(loaded: LoadedModel, expected: Expected) -> LoadedModel:
    with long_stage("comparing with the model's own attention"):
        reason = probe(loaded, expected)
    if reason and loaded.exact:
        return replace(loaded, exact=False, inexact_reason=reason)
    return loaded


def _checked_rowwise(loaded: LoadedModel, expected: Expected) -> LoadedModel:
    """`_checked`; where bits depend on the chunks, with the curves that modules compute themselves
    (gates) in blocks, too. Others are spared the time that looking at each call takes.
    """
    checked = _checked(loaded, expected)
    if checked.exact or not loaded.exact:
        return checked
    compute_curves_rowwise(loaded.model)
    return _checked(loaded, expected)


def _with_decoder(loaded: LoadedModel, expected: Expected) -> LoadedModel:
    """`loaded` with its decoder if there is one for this model and it agrees with `expected`,
    else with the reason why there is none.
    """
    if not loaded.exact:
        return replace(loaded, generic_reason="the fast forward is for exact numerics only")
    from radixserve.model.read_activation import NotRead
    from radixserve.model.read_family import decoder_of

    try:
        with Origins():
            decoder = decoder_of(loaded.model)
    except NotRead as error:
        return replace(loaded, generic_reason=str(error))
    candidate = replace(loaded, decoder=decoder, windows=decoder.weights.windows)
    states = decoder.weights.state_shape()
    if states is not None:
        shape = replace(loaded.shape, layers=states.is_recurrent.count(False))
        candidate = replace(candidate, states=states, shape=shape)
    try:
        with long_stage("comparing the fast forward"):
            reason = probe(candidate, expected)
    except ModelRefused as error:
        reason = str(error)
    if reason:
        log.warning("the model's own modules are used, which are slower: %s", reason)
        return replace(loaded, generic_reason=reason)
    return candidate


def _with_kv_dtype(loaded: LoadedModel, dtype: torch.dtype, expected: Expected) -> LoadedModel:
    """`loaded` with K/V of this dtype. That its attention is right was seen with K/V of its own
    dtype; fewer bits change the logits by more than rounding does, so that only logits that have
    nothing to do with the expected ones are refused here.
    """
    if dtype == loaded.shape.dtype:
        return loaded
    loaded = replace(loaded, shape=replace(loaded.shape, dtype=dtype))
    try:
        return _checked(loaded, replace(expected, rounding=1.0))
    except ModelRefused as error:
        name = loaded.shape.dtype_name
        raise ModelRefused(f"Keys and values as {name} (kv_dtype) do not serve: {error}") from error
