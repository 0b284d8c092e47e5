"""Loads the model of an engine: straight from its files where an earlier start has checked it, else
with transformers, whose modules it is checked against.

What a check finds is kept for later starts on this machine (`model.proof`).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from radixserve.checkpoints.stored import identity
from radixserve.config import Settings
from radixserve.engine.computed_by import code, processor
from radixserve.engine.imports import nothing_collected
from radixserve.engine.lengths import context_length_of
from radixserve.errors import ConfigError, StartupError, first_line
from radixserve.model import proof
from radixserve.model.direct import load_proven
from radixserve.model.dtypes import dtype_for, dtype_name, kv_dtype_of, told
from radixserve.model.loaded import LoadedModel
from radixserve.model.proof import Proof, torch_dtype
from radixserve.model.quantise import BITS, fewer_bytes
from radixserve.store.format.run_file import digest_fields
from radixserve.tensors.budget import check_room

if TYPE_CHECKING:
    from radixserve.checkpoints.opened import OpenedModel  # imports transformers

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Load:
    """A loaded model, and how it came to be."""

    model: LoadedModel
    stored_dtype: torch.dtype  # of most weights in its files
    load_check: Literal["run", "remembered"]  # at this start, or at an earlier one


def load(settings: Settings, model: str, device: torch.device) -> Load:
    """The model in the folder, or of the hub name, `model`.

    Raises:
        StartupError: it cannot be served, or a setting makes that impossible; gives the reason.
    """
    place = _place(settings, model, device)
    if place is not None:
        kept = proof.find(place.name, place.key)
        remembered = None if kept is None else _remembered(settings, place.folder, kept)
        if remembered is not None:
            return remembered
    with _warnings() as warned:
        found, opened = _checked(settings, model, device)
    if place is not None and not opened.is_quantised:
        proven = proof.prove(
            found.model,
            place.key,
            read=opened.read,
            stored=found.stored_dtype,
            num_bytes=_num_bytes(opened, settings, found.model.dtype, device),
            warnings=warned,
        )
        if proven is not None:
            proof.keep(place.name, proven)
    return found


@dataclass(frozen=True, slots=True)
class _Place:
    """Where the proof of a model is kept, and what it has to be a proof for."""

    folder: Path
    name: str
    key: str


def _place(settings: Settings, model: str, device: torch.device) -> _Place | None:
    """None on devices without a decoder of our own, and for folders that cannot be read, of which
    the load tells more.
    """
    folder = Path(model)
    if device.type != "cpu" or not folder.is_dir():
        return None
    # A start whose log leaves warnings out cannot tell which ones others should repeat.
    tells = str(log.isEnabledFor(logging.WARNING))
    numbers = (settings.dtype, settings.kv_dtype, settings.quantize)
    how = (*numbers, *processor(), str(torch.get_num_threads()), tells)
    try:
        what = identity(folder)
    except (StartupError, OSError):
        return None
    name = digest_fields("place", str(folder.resolve()), *how)
    return _Place(folder, name, digest_fields("proof", code(), what, *how))


def _remembered(settings: Settings, folder: Path, kept: Proof) -> Load | None:
    """The model as an earlier start has checked it; None if it is not the same any more.

    Raises:
        ConfigError: it does not fit into memory.
    """
    stored, dtype = torch_dtype(kept.stored_dtype), torch_dtype(kept.dtype)
    device = torch.device("cpu")
    check_room(kept.num_bytes, kept.shape, device, settings.kv_budget)
    what = told(stored, dtype, settings.quantize)
    log.info("loading %s on %s as %s", folder.absolute().name, device, what)
    try:
        loaded = load_proven(folder, kept)
    except Exception as error:  # what a proof says of other files may raise anything
        log.info("the weights cannot be read as before: %s", first_line(error))
        return None
    if loaded is None:
        return None
    log.info("the load check is remembered from an earlier start with this model on this machine")
    return Load(loaded, stored, "remembered")


def _checked(settings: Settings, model: str, device: torch.device) -> tuple[Load, OpenedModel]:
    """The model loaded with transformers and checked, and what was opened for that."""
    with nothing_collected():
        from radixserve.checkpoints.opened import open_model
        from radixserve.model.load import load_opened

    opened: OpenedModel = open_model(model)
    dtype = dtype_for(settings.dtype, opened.stored_dtype, device)
    kv_dtype = kv_dtype_of(settings.kv_dtype, dtype, device)
    context_length_of(settings, opened.context_length)  # refuses a setting before anything is read
    num_bytes, bits = _num_bytes(opened, settings, dtype, device), BITS[settings.quantize]
    if bits is not None:
        _refuse_quantising(settings.quantize, opened, dtype, device)
    check_room(num_bytes, opened.kv_shape(kv_dtype), device, settings.kv_budget)
    loaded = load_opened(opened, device, dtype, kv_dtype, bits)
    return Load(loaded, opened.stored_dtype, "run"), opened


def _num_bytes(
    opened: OpenedModel, settings: Settings, dtype: torch.dtype, device: torch.device
) -> int:
    """The bytes that the weights of a model take while it is loaded."""
    num_bytes, bits = opened.num_bytes(dtype, device), BITS[settings.quantize]
    if bits is None:
        return num_bytes
    return num_bytes - max(0, fewer_bytes(opened.sizes_of_linears(), dtype, bits))


def _refuse_quantising(
    quantize: str, opened: OpenedModel, dtype: torch.dtype, device: torch.device
) -> None:
    if opened.checkpoint.is_quantised:
        raise ConfigError(
            f"quantize is {quantize!r}, but the weights of {opened.name} are quantised already"
        )
    if device.type != "cpu" or dtype == torch.float16:
        where = dtype_name(dtype) if device.type == "cpu" else device.type
        raise ConfigError(
            f"quantize is {quantize!r}, which works with float32 or bfloat16 (dtype) on the CPU, "
            f"not with {where}"
        )


@contextmanager
def _warnings() -> Iterator[list[str]]:
    """Collects what is logged about the model as a warning."""
    handler = _Collector()
    loggers = [logging.getLogger(f"radixserve.{part}") for part in ("checkpoints", "model")]
    for each in loggers:
        each.addHandler(handler)
    try:
        yield handler.messages
    finally:
        for each in loggers:
            each.removeHandler(handler)


class _Collector(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())
