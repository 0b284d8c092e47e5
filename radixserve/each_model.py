"""The settings of each model of a server, made from those of the server.

One model has them all. Several share `kv_budget`: each begins with the smallest budget that it may
have, and may get nearly all of it (`front.shared_budget`). Host memory and the disk are divided
equally. Settings that describe one model are refused with several; all others hold for each.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import quote

import msgspec

from radixserve.config import Settings
from radixserve.errors import ConfigError
from radixserve.machine import THIS

_FLOOR_SHARE: Final = 0.25  # of an equal part of the budget, below which no model's part shrinks
_DEFAULT_SHARE: Final = 0.25  # of the memory that is free at start
_LARGEST_DEFAULT: Final = 4 << 30
_OF_ONE_MODEL: Final = (
    *("served_model_name", "revision", "chat_template", "generation_config"),
    *("lora", "lora_dir", "kv_budget_max", "host_budget_max", "warm", "public_prefix", "record"),
    *("kv_events", "kv_events_replay"),
)


@dataclass(frozen=True, slots=True)
class GivenModel:
    """One model as it was given."""

    text: str

    @property
    def name(self) -> str | None:
        """The name in NAME=MODEL; None without one, also where the text is an existing path."""
        name, equals, _ = self.text.partition("=")
        return name if equals and name and not Path(self.text).exists() else None

    @property
    def model(self) -> tuple[str, ...]:
        """The folder, file or hub name; empty for the embedded model."""
        text = self.text if self.name is None else self.text.partition("=")[2]
        return () if text.lower() == "auto" else (os.path.expanduser(text),)


def given_models(settings: Settings) -> list[GivenModel]:
    """The models as they were given; none for the embedded one without a name."""
    return [GivenModel(text) for text in settings.model]


def each_model(settings: Settings) -> list[Settings]:
    """The settings of each model.

    Raises:
        ConfigError: a setting contradicts the models, or the budget is too small for them.
    """
    given = given_models(settings)
    if settings.served_model_name and any(each.name is not None for each in given):
        raise ConfigError("served_model_name contradicts NAME=MODEL: give one of them")
    if len(given) < 2:
        return [_named(settings, each) for each in given] or [settings]
    _refuse_settings_of_one(settings)
    floor, total = _budgets(settings)
    return [
        msgspec.structs.replace(
            _named(settings, each),
            kv_budget=floor,
            kv_budget_min=0,
            kv_budget_max=total,
            kv_share=0.0,
            host_budget=settings.host_budget // len(given),
            disk_budget=settings.disk_budget // len(given),
            disk_path=None if settings.disk_path is None else _folder(settings.disk_path, each),
        )
        for each in given
    ]


def _named(settings: Settings, given: GivenModel) -> Settings:
    names = settings.served_model_name if given.name is None else (given.name,)
    return msgspec.structs.replace(settings, model=given.model, served_model_name=names)


def _refuse_settings_of_one(settings: Settings) -> None:
    for name in _OF_ONE_MODEL:
        if getattr(settings, name):
            text = f"{name} is for one model, but model gives {len(settings.model)}"
            raise ConfigError(text + "; name them as NAME=MODEL" * (name == "served_model_name"))


def _budgets(settings: Settings) -> tuple[int, int]:
    """The smallest budget of a model, and the budget of all together, in bytes."""
    count = len(settings.model)
    total = settings.kv_budget or int(settings.kv_share * THIS.free_bytes())
    total = total or min(int(_DEFAULT_SHARE * THIS.free_bytes()), _LARGEST_DEFAULT)
    floor = settings.kv_budget_min or int(_FLOOR_SHARE * total / count)
    if count * floor > total:
        raise ConfigError(
            f"kv_budget_min of {floor:,} bytes for each of {count} models is more than kv_budget, "
            f"{total:,} bytes"
        )
    return floor, total


def _folder(path: str, given: GivenModel) -> str:
    """The store's folder of one model."""
    return str(Path(path) / quote(given.name or given.text, safe=""))
