"""Builds a transformers model and fills it from its checkpoint, tensor by tensor.

transformers maps names in files to names in modules. It only warns of weights that are missing,
have other shapes, are left over or quantised; here these are refused.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from radixserve.checkpoints.gguf_file import GgufFile
from radixserve.checkpoints.gguf_model import keeps_codes, read_codes, read_gguf, serves_codes
from radixserve.checkpoints.headers import listed, short
from radixserve.checkpoints.opened import OpenedModel
from radixserve.checkpoints.unread import UnreadLinear, leave_unread
from radixserve.errors import ModelRefused, first_line
from radixserve.progress import long_stage
from radixserve.tensors.origins import Origins


def read_weights(
    opened: OpenedModel, dtype: torch.dtype, device: torch.device, *, leaves_linears: bool = False
) -> PreTrainedModel:
    """The model on the CPU, not yet changed by us. Takes the memory of its weights and of a few
    tensors more. Weights that are served as codes, on a CPU, are not read yet: linears and
    embeddings have no memory for them, and an attribute `stored` that reads them;
    nor, if this `leaves_linears`, are other weights of linears (`unread`).

    Raises:
        ModelRefused: the weights are damaged, or are not all and only those of the model.
    """
    checkpoint = opened.checkpoint
    try:
        with (
            _quiet_transformers(),
            long_stage("reading weights", len(checkpoint), lambda: checkpoint.num_read),
            Origins(),
        ):
            model, report = _filled(opened, dtype, device, opened.linears if leaves_linears else ())
    except ModelRefused:
        raise
    except Exception as error:  # the classes of 300 architectures may raise anything
        raise ModelRefused(f"Cannot load {opened.folder}: {first_line(error)}") from error
    _refuse_unfit(report, opened)
    _refuse_integers(model, opened)
    loaded: PreTrainedModel = model
    loaded.generation_config = _generation_config(opened, loaded)
    return loaded


def _filled(
    opened: OpenedModel, dtype: torch.dtype, device: torch.device, left: Collection[str]
) -> tuple[Any, dict[str, Any]]:
    """The model with its weights but for those of the names `left`, and transformers' report of
    what did not fit.
    """
    file = opened.checkpoint
    if (
        isinstance(file, GgufFile)
        and keeps_codes(file.architecture)
        and serves_codes(device, dtype)
    ):
        return read_codes(file, opened.config, dtype)
    how = {
        "config": opened.config,
        "dtype": dtype,
        "output_loading_info": True,
        "ignore_mismatched_sizes": True,  # reported in one sentence
    }
    if isinstance(opened.checkpoint, GgufFile):
        return read_gguf(opened.kind, opened.folder, **how)
    tensors = opened.checkpoint.tensors
    kept = opened.kept_codes if serves_codes(device, dtype) else {}
    coded = {name: UnreadLinear(each, dtype) for name, each in kept.items()}
    unread = {name: UnreadLinear(tensors[name], dtype) for name in left}
    # Without a folder, because we read its files.
    model, report = opened.kind.from_pretrained(None, state_dict=tensors | coded | unread, **how)
    for name, each in kept.items():
        linear = model.get_submodule(name.removesuffix(".weight"))
        linear.stored = each
        linear.weight = nn.Parameter(linear.weight.to("meta"), requires_grad=False)
    leave_unread(model, unread)
    return model, report


def _generation_config(opened: OpenedModel, model: PreTrainedModel) -> GenerationConfig | None:
    if not (opened.folder / "generation_config.json").is_file():
        return model.generation_config
    try:
        return GenerationConfig.from_pretrained(opened.folder)
    except Exception as error:  # a file may hold anything
        file = opened.folder / "generation_config.json"
        raise ModelRefused(f"Cannot load {file}: {first_line(error)}") from error


def _refuse_unfit(report: dict[str, Any], opened: OpenedModel) -> None:
    """Refuse missing, unexpected and misshapen tensors. Those that the model's class declares as
    ignored are not in `report`.
    """
    faults = [
        f"{len(names):,} {what} ({listed(names)})"
        for what, names in (
            ("missing", sorted(report["missing_keys"])),
            ("of another shape", sorted(map(_shapes, report["mismatched_keys"]))),
            ("unexpected", sorted(report["unexpected_keys"])),
        )
        if names
    ]
    if faults:
        kind = opened.config.model_type
        raise ModelRefused(
            f"The tensors in {opened.folder} are not those of this {kind} model: "
            f"{', '.join(faults)}."
        )


def _shapes(mismatch: tuple[str, Any, Any]) -> str:
    name, stored, wanted = mismatch
    return f"{short(name)} is {short(str(list(stored)))} and not {list(wanted)}"


def _refuse_integers(model: PreTrainedModel, opened: OpenedModel) -> None:
    """Refuse weights that are stored as integers without a configuration that says how they are
    quantised: transformers takes them for the values themselves.
    """
    if isinstance(opened.checkpoint, GgufFile):
        return
    names = [name for name, _ in model.named_parameters()]
    stored = opened.checkpoint.tensors
    wrong = [name for name in names if name in stored and not stored[name].holds_floats]
    if wrong:
        raise ModelRefused(
            f"The weights in {opened.folder} are integers, but no quantiser reads them: "
            f"{listed(wrong)}."
        )


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Turns off transformers' table of tensors that do not fit and its progress bar, because we
    report both.
    """
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(transformers_logging.CRITICAL)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        transformers_logging.enable_progress_bar()
