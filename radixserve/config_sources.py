"""Reads settings from flags, environment and one TOML file, in this order of priority, or from the
arguments of a Python program.

Every refusal names the key and its source. The table itself is in `config`; neither module knows
what the settings do.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Final

from radixserve.adapters import sources_of
from radixserve.config import SECTIONS, Settings
from radixserve.config_table import ENV_PREFIX, TABLE, Setting
from radixserve.each_model import given_models
from radixserve.errors import ConfigError

CONFIG_VARIABLE: Final = ENV_PREFIX + "CONFIG"
OTHER_VARIABLES: Final = {
    CONFIG_VARIABLE: "the TOML file, where `--config` does not name one",
    ENV_PREFIX + "CACHE_DIR": "folder for the converted model and compiled kernels "
    "(default: ~/.cache/radixserve)",
}
"""Variables with our prefix that are not settings, and the purpose of each."""


@dataclass(frozen=True, slots=True)
class Resolved:
    """The settings in force, and the source of each that is not a default."""

    settings: Settings
    sources: dict[str, str]

    def describe(self) -> str:
        """One line with every setting, and the source of those that were chosen."""
        return ", ".join(self._told(row) for row in TABLE)

    def describe_chosen(self) -> str:
        """One line with the settings that were chosen and their sources."""
        chosen = [self._told(row) for row in TABLE if row.name in self.sources]
        return ", ".join(chosen) or "default settings"

    def _told(self, row: Setting) -> str:
        origin = f" ({self.sources[row.name]})" if row.name in self.sources else ""
        return f"{row.name}={row.show(getattr(self.settings, row.name))}{origin}"


def resolve(
    flags: Mapping[str, str | bool | list[str]],
    environ: Mapping[str, str],
    file: str | Path | None = None,
) -> Resolved:
    """Determine the settings: flag, otherwise variable, otherwise file (or the one that
    RADIXSERVE_CONFIG names), otherwise default.

    Raises:
        ConfigError: a key is unknown, a value is malformed, or two settings contradict each other.
    """
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    path = file or environ.get(CONFIG_VARIABLE)
    for name, value, source in (
        *(_from_file(Path(os.path.expanduser(path))) if path else ()),
        *_from_environment(environ),
        *_from_flags(flags),
    ):
        values[name], sources[name] = value, source
    settings = Settings(**values)
    _refuse_contradictions(settings, sources)
    return Resolved(settings, sources)


def from_arguments(arguments: Mapping[str, Any]) -> Settings:
    """The settings that a Python program gives by name. Values are those of the TOML file (sizes
    may be text such as "2GiB") or paths; None stands for the default. Variables are not read.

    Raises:
        ConfigError: as `resolve`.
    """
    rows = {row.name: row for row in TABLE}
    unknown = next((name for name in arguments if name not in rows), None)
    if unknown is not None:
        raise ConfigError(f"{unknown} is no setting{_suggestion(unknown, rows)}")
    values = {
        name: rows[name].parse_value(
            os.fspath(value) if isinstance(value, os.PathLike) else value, "argument"
        )
        for name, value in arguments.items()
        if value is not None
    }
    settings = Settings(**values)
    _refuse_contradictions(settings, dict.fromkeys(values, "argument"))
    return settings


_Found = tuple[str, Any, str]  # name, value, source


def _from_flags(flags: Mapping[str, str | bool | list[str]]) -> list[_Found]:
    rows = {row.name: row for row in TABLE}
    found: list[_Found] = []
    for name, raw in flags.items():
        row = rows[name]
        if isinstance(raw, list) and row.doc.path:
            found.append((name, row.parse_words(raw, row.flag), row.flag))
        elif isinstance(raw, str | list):
            text = raw if isinstance(raw, str) else " ".join(raw)
            found.append((name, row.parse_text(text, row.flag), row.flag))
        else:
            found.append((name, row.parse_value(raw, row.flag), row.flag))
    return found


def _from_environment(environ: Mapping[str, str]) -> list[_Found]:
    rows = {row.variable: row for row in TABLE}
    found: list[_Found] = []
    for variable in sorted(environ):
        if not variable.startswith(ENV_PREFIX) or variable in OTHER_VARIABLES:
            continue
        if variable not in rows:
            raise ConfigError(f"{variable} is no setting{_suggestion(variable, rows)}")
        row = rows[variable]
        found.append((row.name, row.parse_text(environ[variable], variable), variable))
    return found


def _from_file(path: Path) -> list[_Found]:
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"cannot read the settings in {path}: {error}") from None
    found: list[_Found] = []
    for section, content in document.items():
        if section not in SECTIONS or not isinstance(content, dict):
            raise ConfigError(f"{path}: [{section}] is no section{_suggestion(section, SECTIONS)}")
        for name, value in content.items():
            row = _row_of(section, name, path)
            found.append((name, row.parse_value(value, str(path)), str(path)))
    return found


def _row_of(section: str, name: str, path: Path) -> Setting:
    rows = {row.name: row for row in TABLE}
    if name not in rows:
        raise ConfigError(f"{path}: {section}.{name} is no setting{_suggestion(name, rows)}")
    if rows[name].doc.section != section:
        raise ConfigError(
            f"{path}: {name} belongs in [{rows[name].doc.section}], not in [{section}]"
        )
    return rows[name]


def _suggestion(word: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {near[0]}?" if near else f"; known are {', '.join(known)}"


def _refuse_contradictions(settings: Settings, sources: Mapping[str, str]) -> None:
    def told(name: str) -> str:
        value = getattr(settings, name)
        shown = ",".join(value) if isinstance(value, tuple) else value
        return f"{name}={shown} ({sources.get(name, 'default')})"

    if settings.fake_model and any(each.model for each in given_models(settings)):
        raise ConfigError(f"{told('fake_model')} contradicts {told('model')}: give one of them")
    if settings.kv_budget and settings.kv_share:
        raise ConfigError(f"{told('kv_budget')} contradicts {told('kv_share')}: give one of them")
    least, most = settings.kv_budget_min, settings.kv_budget_max
    if least and not most and len(settings.model) < 2:
        raise ConfigError(f"{told('kv_budget_min')} has no effect without kv_budget_max")
    for below, above in combinations(("kv_budget_min", "kv_budget", "kv_budget_max"), 2):
        if most and 0 < getattr(settings, above) < getattr(settings, below):
            raise ConfigError(f"{told(below)} contradicts {told(above)}: it is more")
    if settings.host_budget_max and not settings.host_budget:
        raise ConfigError(f"{told('host_budget_max')} has no effect without host_budget")
    if 0 < settings.host_budget_max < settings.host_budget:
        raise ConfigError(
            f"{told('host_budget')} contradicts {told('host_budget_max')}: it is more"
        )
    for name in ("kv_budget_max", "host_budget", "disk_path"):
        if getattr(settings, name) and not settings.cache:
            raise ConfigError(f"{told(name)} contradicts {told('cache')}: nothing is reused")
    for name in ("host_budget", "disk_path"):
        if getattr(settings, name) and settings.fake_model:
            raise ConfigError(
                f"{told(name)} contradicts {told('fake_model')}: it has no keys and values"
            )
    for name in ("lora", "lora_dir"):
        if getattr(settings, name) and settings.fake_model:
            raise ConfigError(
                f"{told(name)} contradicts {told('fake_model')}: it takes no adapters"
            )
    sources_of(settings.lora)
    if 0 < settings.max_step_tokens < settings.max_running:
        raise ConfigError(
            f"{told('max_step_tokens')} contradicts {told('max_running')}: each sequence of "
            "a step computes a token"
        )
