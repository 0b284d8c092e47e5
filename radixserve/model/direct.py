"""Makes the decoder of a model that an earlier start has checked straight from its files, without
transformers: importing that, and checking the model anew, would take half of a start.

How it is made stands in the proof (`model.recipe`). The result is used only if it is, bit for bit,
what was checked (`model.proof`).
"""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from radixserve.checkpoints.stored import open_weights
from radixserve.model.decoder import Decoder
from radixserve.model.heap import freed_at_once
from radixserve.model.loaded import LoadedModel, tell
from radixserve.model.proof import Proof, logits_digest, torch_dtype, weights_digest
from radixserve.model.recipe import weights_from
from radixserve.model.weights import Weights
from radixserve.progress import long_stage

log = logging.getLogger(__name__)


def load_proven(folder: Path, proof: Proof) -> LoadedModel | None:
    """The model in a folder for which there is a proof; None if it is not what was checked.

    Raises:
        ModelRefused: its files are not as they were.
        OSError: a file cannot be read.
        Exception: anything else if the proof is not one of this model.
    """
    with long_stage("reading the weights of a model that was checked before"), freed_at_once():
        decoder = Decoder(_read(folder, proof))
        loaded = _loaded(proof, decoder)
        if weights_digest(decoder) != proof.weights:
            log.info("the weights are not those that were checked")
            return None
        if logits_digest(loaded) != proof.logits:
            log.warning("the decoder computes other bits than when the model was checked")
            return None
    for warning in proof.warnings:
        log.warning("%s", warning)
    tell(loaded)
    return loaded


def _loaded(proof: Proof, decoder: Decoder) -> LoadedModel:
    return LoadedModel(
        model=torch.nn.Module(),
        device=torch.device("cpu"),
        dtype=torch_dtype(proof.dtype),
        shape=proof.shape,
        vocab_size=proof.vocab_size,
        context_length=proof.context_length,
        eos_token_ids=proof.eos_token_ids,
        attention=proof.attention,
        exact=True,
        decoder=decoder,
        windows=decoder.weights.windows,
    )


def _read(folder: Path, proof: Proof) -> Weights:
    with open_weights(folder) as files:
        return weights_from(proof.recipe, files)
