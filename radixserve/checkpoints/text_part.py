"""The text model in a wrapper with images or sound, which is served if it is a class of its own.

Requests of text mean the same to both: what a wrapper adds acts on other inputs. Where it does
more, it is refused by name.
"""

from __future__ import annotations

from collections.abc import Iterable

from transformers import PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from radixserve.errors import ModelRefused

_BIDIRECTIONAL = ("paligemma", "colpali")  # attend the prompt in both directions
_BODIES = ("language_model.model.", "model.language_model.", "model.text_model.")
_HEADS = ("language_model.lm_head.", "lm_head.")


def text_part(config: PretrainedConfig) -> PretrainedConfig:
    """The configuration of the text model in a wrapper; that of a text model itself.

    Raises:
        ModelRefused: the text model does not stand alone.
    """
    text = config.get_text_config(decoder=True)
    if config.is_encoder_decoder or text is config:
        return config
    if config.model_type in _BIDIRECTIONAL:
        raise ModelRefused(
            f"The model ({config.model_type}) attends its prompt in both directions; only causal "
            "attention is served."
        )
    if type(text) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
            return config
        raise ModelRefused(
            f"The model ({config.model_type}) has inputs beside text, and its text part "
            f"({text.model_type}) is no model of its own."
        )
    for name in ("tie_word_embeddings", "quantization_config"):
        if hasattr(config, name):
            setattr(text, name, getattr(config, name))
    return text


def text_names(names: Iterable[str]) -> dict[str, str]:
    """The names of a wrapper's tensors that belong to its text model, with the names there."""
    found = {}
    for name in names:
        for prefixes, own in ((_BODIES, "model."), (_HEADS, "lm_head.")):
            for prefix in prefixes:
                if name.startswith(prefix):
                    found[name] = own + name.removeprefix(prefix)
    return found
