"""Opens a model's folder: reads its configuration and the headers of its weights, and checks them
before anything large is read or built.

What they show is refused here within seconds: damaged files, impossible sizes, a model that
generates no text. They also tell how much memory the model will take.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from radixserve.checkpoints.folder_files import check_files
from radixserve.checkpoints.gguf_file import GgufFile
from radixserve.checkpoints.gguf_model import keeps_codes, serves_codes
from radixserve.checkpoints.headers import Checkpoint, files_of
from radixserve.checkpoints.quantised_checkpoint import (
    coded_linears,
    drop_zero_biases,
    read_quantised,
)
from radixserve.checkpoints.quantised_tensors import CodedTensor
from radixserve.checkpoints.stored import in_gguf
from radixserve.checkpoints.supported import check_config
from radixserve.checkpoints.text_part import text_names, text_part
from radixserve.checkpoints.unread import weights_of_linears
from radixserve.errors import ModelRefused, first_line
from radixserve.tensors.kv import KVShape

log = logging.getLogger(__name__)

_ADAPTER = "adapter_config.json"
_POOLING = "modules.json"  # of sentence-transformers
_SIZES = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
)
_HEADS = ("num_key_value_heads", "head_dim")  # may be left out or null
_CONTEXT = ("max_position_embeddings", "max_seq_len", "seq_length")
_TRAINED = {"bloom": 2048}  # context of models whose positions have no end, as they were trained
_MOST_POSITIONS = 2**31 - 1  # positions are int32
_GENERATE = (
    "ForCausalLM",
    "HeadModel",
    "ForConditionalGeneration",
    "WithLMHead",
    "GenerationDecoder",
)
_PARTS = ("text_config", "decoder")
_LISTED = ("layer", "label", "expert")  # of these the classes make lists
_MOST_LISTED = 1_000_000
_TOO_MANY = 2.0  # times the weights of the checkpoint, as the configuration counts them
# A weight may be stored in so many tensors: in parts that the model joins, quantised with scales.
_MOST_PARTS = 8
_FEW_TENSORS = 1000  # so many are compared by name whatever the model is


@dataclass(frozen=True, slots=True)
class OpenedModel:
    """A model's configuration and the headers of its weights. Nothing large is in memory yet."""

    folder: Path
    config: PretrainedConfig
    kind: type[PreTrainedModel]
    checkpoint: Checkpoint | GgufFile
    kept_codes: Mapping[str, CodedTensor] = field(default_factory=dict)
    """Weights of linears, by name, that can be kept as codes where they are served."""
    linears: frozenset[str] = frozenset()  # names of tensors that are weights of linears alone

    @property
    def read(self) -> set[str]:
        """The names of the tensors that were read."""
        file = self.checkpoint
        return file.read_names if isinstance(file, GgufFile) else file.read

    @property
    def name(self) -> str:
        """The name of the folder."""
        return self.folder.absolute().name

    @property
    def context_length(self) -> int:
        """The most tokens of prompt and answer together."""
        return context_length(decoder_config(self.config))

    @property
    def stored_dtype(self) -> torch.dtype:
        """The dtype of most of the stored weights."""
        return self.checkpoint.dtype

    @property
    def is_quantised(self) -> bool:
        """Whether weights of safetensors are made of several tensors."""
        return isinstance(self.checkpoint, Checkpoint) and self.checkpoint.is_quantised

    def num_bytes(self, dtype: torch.dtype, device: torch.device) -> int:
        """Bytes that its weights take in the memory of a device."""
        file = self.checkpoint
        if isinstance(file, GgufFile) and keeps_codes(file.architecture):
            return file.num_bytes(dtype)
        kept = self.kept_codes if serves_codes(device, dtype) else {}
        codes = sum(
            each.num_bytes() - math.prod(each.shape) * dtype.itemsize for each in kept.values()
        )
        return file.num_weights * dtype.itemsize + codes

    def sizes_of_linears(self) -> list[int]:
        """The number of values of each of `linears`."""
        tensors = {} if isinstance(self.checkpoint, GgufFile) else self.checkpoint.tensors
        return [math.prod(tensors[name].get_shape()) for name in self.linears]

    def kv_shape(self, dtype: torch.dtype) -> KVShape:
        """The shape of one token's K/V."""
        return kv_shape(decoder_config(self.config), dtype)


def open_model(folder: str) -> OpenedModel:
    """Read the configuration and the headers of the weights, and check both.

    Raises:
        ModelRefused: the model is damaged, or cannot be served; one sentence names file and reason.
    """
    path = Path(folder)
    check_files(path)
    _refuse_marks(path)
    whole = _config(path)
    config = text_part(whole)
    _refuse_vocabulary(path, decoder_config(config).vocab_size)
    checkpoint = _checkpoint(path)
    if isinstance(checkpoint, Checkpoint):
        if config is not whole:
            _keep_text(checkpoint, whole)
        read_quantised(checkpoint, config, path)
    _refuse_fewer_layers(config, checkpoint, path)
    empty = _empty_model(config, path)
    _refuse_fewer_weights(empty, checkpoint, path)
    _refuse_more_tensors(empty, checkpoint, path)
    kept: dict[str, CodedTensor] = {}
    linears = frozenset[str]()
    if isinstance(checkpoint, Checkpoint):
        drop_zero_biases(checkpoint, empty)
        kept = coded_linears(checkpoint, empty)
        linears = weights_of_linears(checkpoint, empty)
    return OpenedModel(path, config, type(empty), checkpoint, kept, linears)


def _keep_text(checkpoint: Checkpoint, whole: PretrainedConfig) -> None:
    """Leave out of a wrapper's tensors what does not belong to its text model."""
    before = len(checkpoint)
    checkpoint.keep(text_names(checkpoint.tensors))
    log.info(
        "only the text part of this %s is served: %d of its %d tensors are for other inputs",
        whole.model_type,
        before - len(checkpoint),
        before,
    )


def decoder_config(config: PretrainedConfig) -> PretrainedConfig:
    """The part of a configuration that describes the decoder, if it contains several."""
    return config if config.is_encoder_decoder else config.get_text_config(decoder=True)


def context_length(config: PretrainedConfig) -> int:
    """The most tokens of prompt and answer together that a decoder can be served with.

    Raises:
        ModelRefused: its configuration does not say.
    """
    named = [_value(config, name) for name in _CONTEXT]
    positions = next((each for each in named if each), _TRAINED.get(config.model_type))
    if positions is None:
        raise ModelRefused(
            f"The model ({config.model_type}) does not say how long its context may be "
            "(max_position_embeddings)."
        )
    return min(int(positions), _MOST_POSITIONS)


def kv_shape(config: PretrainedConfig, dtype: torch.dtype) -> KVShape:
    """The shape of one token's K/V in a decoder. Latent attention caches a latent, with what is
    rotated of a key, for all heads.
    """
    if _value(config, "kv_lora_rank"):
        rank, rotated = int(config.kv_lora_rank), int(config.qk_rope_head_dim)
        return KVShape(int(config.num_hidden_layers), 1, rank + rotated, rank, dtype)
    heads = int(config.num_attention_heads)
    kv_heads = getattr(config, "num_key_value_heads", None) or _fused_kv_heads(config) or heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    return KVShape(
        int(config.num_hidden_layers), int(kv_heads), int(head_dim), int(head_dim), dtype
    )


def _fused_kv_heads(config: PretrainedConfig) -> int | None:
    """The heads of keys and values in models of the Falcon kind, which say it by other names."""
    if getattr(config, "new_decoder_architecture", False):
        return int(config.num_kv_heads)
    return 1 if getattr(config, "multi_query", False) else None


def _refuse_marks(folder: Path) -> None:
    """Refuse folders with files that show that they hold more, or something else, than a language
    model.
    """
    if (folder / _ADAPTER).is_file():
        raise ModelRefused(
            f"{folder} holds an adapter ({_ADAPTER}): serve it beside its model (lora), or remove "
            "its files to serve the model without it."
        )
    if (folder / _POOLING).is_file() and b"Pooling" in (folder / _POOLING).read_bytes():
        raise ModelRefused(
            f"{folder} holds an embedding model ({_POOLING} names a pooling layer), which "
            "generates no text."
        )


def _config(folder: Path) -> PretrainedConfig:
    file = folder / "config.json"
    try:
        raw = json.loads(file.read_bytes())
        if not isinstance(raw, dict):
            raise ValueError("it holds no object")
        _refuse_values(raw, file)
        config: PretrainedConfig = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        check_config(decoder_config(config))
        _refuse_sizes(decoder_config(config), folder)
        _refuse_kind(config)
    except ModelRefused:
        raise
    except Exception as error:  # the classes of 300 architectures may raise anything
        raise ModelRefused(f"Cannot load {file}: {first_line(error)}") from error
    return config


def _refuse_values(raw: dict[str, Any], file: Path) -> None:
    """Refuse values that the classes of configurations do not survive: sizes of zero, by which they
    divide; numbers of layers, labels and experts so large that their lists fill the memory; and
    names of code on the hub, which is never run.
    """
    parts = [raw, *(value for value in raw.values() if isinstance(value, dict))]
    for name, value in (item for part in parts for item in part.items()):
        if name in _PARTS and value is not None and not isinstance(value, dict):
            raise ModelRefused(f"{file} is damaged: {name} is no object.")
        if "attn_implementation" in name and isinstance(value, str) and "/" in value:
            raise ModelRefused(f"{file} names code, which is never run: {name} is {value!r}.")
        if isinstance(value, int | float) and _impossible(name, value):
            raise ModelRefused(f"{file} is damaged: {name} is {value!r}.")


def _impossible(name: str, value: float) -> bool:
    if name in (*_SIZES, *_HEADS) and value < 1:
        return True
    return value > _MOST_LISTED and any(word in name for word in _LISTED)


def _refuse_sizes(config: PretrainedConfig, folder: Path) -> None:
    for name in _SIZES:
        value = getattr(config, name, 1)
        if not isinstance(value, int) or value < 1:
            raise ModelRefused(f"{folder / 'config.json'} is damaged: {name} is {value!r}.")
    heads, kv_heads = config.num_attention_heads, _value(config, "num_key_value_heads")
    if kv_heads is not None and (kv_heads < 1 or heads % kv_heads):
        raise ModelRefused(
            f"{folder / 'config.json'} is damaged: {heads} attention heads cannot share {kv_heads} "
            "heads of keys and values."
        )
    # A model without the field is refused later, as one of a kind that cannot be served.
    if getattr(config, "max_position_embeddings", 0) > _MOST_POSITIONS:
        log.warning(
            "%s names a context of more than %s tokens, which is the most that can be served",
            folder / "config.json",
            f"{_MOST_POSITIONS:,}",
        )
    padding = _value(config, "pad_token_id")
    if isinstance(padding, int) and padding >= config.vocab_size:
        raise ModelRefused(
            f"{folder / 'config.json'} is damaged: pad_token_id is {padding}, but the vocabulary "
            f"has {config.vocab_size:,} tokens."
        )


def _refuse_kind(config: PretrainedConfig) -> None:
    """Refuse embedding models and classifiers, which have no weights that compute logits of
    tokens.
    """
    names = config.architectures or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("architectures is no list of names")
    if names and not any(name.endswith(_GENERATE) for name in names):
        raise ModelRefused(f"The model is a {names[0]}, which generates no text.")


def _refuse_vocabulary(folder: Path, vocab_size: int) -> None:
    """Refuse a tokenizer that turns ordinary text into tokens that the model does not have. Tokens
    that were added to it may lie beyond the vocabulary: only a request that contains one is
    refused.
    """
    file = folder / "tokenizer.json"
    if not file.is_file():
        return
    try:
        tokenizer = msgspec.json.decode(file.read_bytes())
        vocabulary = tokenizer["model"]["vocab"]
        ids = set(vocabulary.values() if isinstance(vocabulary, dict) else range(len(vocabulary)))
        added = {each["id"] for each in tokenizer.get("added_tokens") or ()}
        largest = max(ids - added)
        beyond = [each for each in added if each >= vocab_size]
        other = largest >= vocab_size
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return  # the front reads this file and reports what is wrong with it
    if other:
        raise ModelRefused(
            f"{file} and config.json do not belong together: the tokenizer makes tokens up to "
            f"{largest:,}, the model has {vocab_size:,}."
        )
    if beyond:
        log.warning("%d tokens of the tokenizer are not the model's: not taken", len(beyond))


def _checkpoint(folder: Path) -> Checkpoint | GgufFile:
    """The weights: safetensors where there are some, else the GGUF file that `convert` linked."""
    return GgufFile(folder) if in_gguf(folder) else Checkpoint(files_of(folder))


def _refuse_fewer_layers(
    config: PretrainedConfig, checkpoint: Checkpoint | GgufFile, folder: Path
) -> None:
    """Refuse a configuration with more layers than there are tensors, before even an empty model of
    that size is built.
    """
    layers = decoder_config(config).num_hidden_layers
    if layers > len(checkpoint):
        raise ModelRefused(
            f"{folder / 'config.json'} names {layers:,} layers, but the weights of {folder} are "
            f"only {len(checkpoint):,} tensors."
        )


def _empty_model(config: PretrainedConfig, folder: Path) -> PreTrainedModel:
    """The model of a configuration, without memory for its weights."""
    try:
        with torch.device("meta"):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(
                config, trust_remote_code=False
            )
    except Exception as error:  # the classes of 300 architectures may raise anything
        raise ModelRefused(f"Cannot build the model of {folder}: {first_line(error)}") from error
    return model


def _refuse_fewer_weights(
    empty: PreTrainedModel, checkpoint: Checkpoint | GgufFile, folder: Path
) -> None:
    """Refuse a model with many more weights than its files hold, before transformers initialises
    the missing ones in memory. Tied weights count once.
    """
    wanted, there = sum(each.numel() for each in empty.parameters()), checkpoint.num_weights
    if wanted > _TOO_MANY * there:
        raise ModelRefused(
            f"{folder / 'config.json'} describes a model of {wanted:,} weights, but {folder} holds "
            f"only {there:,}."
        )


def _refuse_more_tensors(
    empty: PreTrainedModel, checkpoint: Checkpoint | GgufFile, folder: Path
) -> None:
    """Refuse many more tensors than the model has weights, before transformers looks for the place
    of each of them, which takes 20 us a name. Experts, which a model joins in one weight of three
    dimensions, may be stored one by one.
    """
    weights = sum(each.shape[0] if each.dim() == 3 else 1 for each in empty.parameters())
    if len(checkpoint) > max(_FEW_TENSORS, _MOST_PARTS * weights):
        raise ModelRefused(
            f"{folder / 'config.json'} describes a model of {weights:,} tensors, but {folder} "
            f"holds {len(checkpoint):,}."
        )


def _value(config: PretrainedConfig, name: str) -> Any:
    return getattr(config, name, None)
