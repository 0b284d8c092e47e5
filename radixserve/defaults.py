"""The default values of requests: sampling parameters and the number of tokens.

They come from settings, otherwise from the model's generation_config.json (or another file that a
setting names), otherwise from the OpenAI API. Owns the ranges of sampling parameters. Reads one
JSON file; knows no requests, no torch and no transformers.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from radixserve.config import Settings
from radixserve.errors import ConfigError

log = logging.getLogger(__name__)

FILE_NAME: Final = "generation_config.json"

DECIMALS: Final[dict[str, tuple[float, float]]] = {
    "temperature": (0.0, 2.0),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "presence_penalty": (-2.0, 2.0),
    "frequency_penalty": (-2.0, 2.0),
    "repetition_penalty": (0.001, 2.0),
}
"""Lowest and highest value of each sampling parameter; top_p must also be above 0."""

MAX_INTEGER: Final = 2**63 - 1
INTEGERS: Final[dict[str, tuple[int, int]]] = {
    "top_k": (-1, MAX_INTEGER),
    "max_new_tokens": (1, MAX_INTEGER),
}

_FROM_FILE: Final = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "max_new_tokens",
)
_FROM_SETTING: Final = (*DECIMALS, "top_k")


class Defaults(msgspec.Struct, frozen=True, kw_only=True):
    """The default values, as /version shows them; without arguments, those of the OpenAI API."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0  # 0 or below: no limit
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    chat_max_tokens: int | None = None  # None: what is left of the context
    completion_max_tokens: int = 16
    stop_token_ids: tuple[int, ...] = ()  # in addition to those that the engine names
    source: str = "OpenAI"  # the file that the values come from, or a name for it

    def stopping_also(self, token_ids: tuple[int, ...]) -> Defaults:
        """The same defaults with more stop tokens, each once."""
        ids = tuple(dict.fromkeys((*self.stop_token_ids, *token_ids)))
        return msgspec.structs.replace(self, stop_token_ids=ids)


OPENAI: Final = Defaults()


def load_defaults(
    settings: Settings, folder: Path, shipped: Mapping[str, Any] | None = None
) -> Defaults:
    """The defaults for the model in `folder`; logs where they come from.

    `shipped` is a generation config that replaces the model's file. Wrong values in the model's own
    file are left out with a warning.

    Raises:
        ConfigError: the file that a setting names cannot be used, or a setting names a parameter or
            value that does not exist.
    """
    config, source = _generation_config(settings, folder, shipped)
    values = _sampling_of(config, source, strict=settings.generation_config is not None)
    values |= _chosen(settings.default_sampling)
    if settings.default_max_tokens:
        values["chat_max_tokens"] = values["completion_max_tokens"] = settings.default_max_tokens
    return Defaults(source=source, **values)


def _generation_config(
    settings: Settings, folder: Path, shipped: Mapping[str, Any] | None
) -> tuple[Mapping[str, Any], str]:
    """The content of the generation config in force, and its name."""
    named = settings.generation_config
    if named == "none":
        log.info("defaults of requests: OpenAI's")
        return {}, "OpenAI"
    if named is not None:
        path = Path(named)
        return _named(path / FILE_NAME if path.is_dir() else path)
    if shipped is not None:
        log.info("defaults of requests: those that come with the embedded model")
        return shipped, "embedded model"
    return _own(folder / FILE_NAME)


def _named(path: Path) -> tuple[Mapping[str, Any], str]:
    try:
        config = _read(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"generation_config: cannot read {path}: {reason}") from error
    log.info("defaults of requests: from %s", path)
    return config, str(path)


def _own(path: Path) -> tuple[Mapping[str, Any], str]:
    """The model's own generation config and its name; the file may be missing or broken."""
    try:
        config = _read(path)
    except FileNotFoundError:
        log.info("defaults of requests: OpenAI's, since the model has no %s", FILE_NAME)
        return {}, "OpenAI"
    except (OSError, ValueError) as error:
        log.warning("defaults of requests: OpenAI's, since %s cannot be read: %s", path, error)
        return {}, "OpenAI"
    if not any(config.get(name) is not None for name in (*_FROM_FILE, "do_sample")):
        log.info("defaults of requests: OpenAI's, since the model's %s names none", FILE_NAME)
        return config, "OpenAI"
    log.info("defaults of requests: from the model's %s", FILE_NAME)
    return config, FILE_NAME


def _read(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises OSError, or ValueError if the file is not a JSON object."""
    return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])


def _sampling_of(config: Mapping[str, Any], source: str, *, strict: bool) -> dict[str, Any]:
    """The values in `config`, under the names of `Defaults`.

    `do_sample: false` means greedy, whatever temperature is given, as in transformers. If
    `do_sample` is absent, the temperature counts.
    """
    values: dict[str, Any] = {}
    for name in _FROM_FILE:
        if config.get(name) is None:
            continue
        try:
            values[name] = _checked(name, config[name])
        except ValueError as error:
            if strict:
                raise ConfigError(f"generation_config: {source}: {error}") from None
            log.warning("left out of the defaults: %s", error)
    if config.get("do_sample") is False:
        values["temperature"] = 0.0
    if "max_new_tokens" in values:
        values["chat_max_tokens"] = values.pop("max_new_tokens")
    return values | {"stop_token_ids": _ids(config.get("eos_token_id"))}


def _ids(given: object) -> tuple[int, ...]:
    """The token ids in a value that is one id or a list; other values are left out."""
    ids = given if isinstance(given, list) else [given]
    return tuple(each for each in ids if isinstance(each, int) and not isinstance(each, bool))


def _chosen(words: tuple[str, ...]) -> dict[str, Any]:
    """Parse the words of `--default-sampling temperature=0 top_k=40`."""
    values: dict[str, Any] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals or name not in _FROM_SETTING:
            hint = "; use default_max_tokens" if name.startswith("max_") else ""
            known = ", ".join(_FROM_SETTING)
            raise ConfigError(
                f"default_sampling: {word!r} is no KEY=VALUE with one of the keys {known}{hint}"
            )
        try:
            values[name] = _checked(name, msgspec.json.decode(text.encode()))
        except ValueError as error:
            raise ConfigError(f"default_sampling: {word!r} is not valid: {error}") from None
    return values


def _checked(name: str, value: object) -> float | int:
    """`value`, if the parameter may have it. Raises ValueError with a sentence otherwise."""
    lowest, highest = DECIMALS[name] if name in DECIMALS else INTEGERS[name]
    kinds = (int, float) if name in DECIMALS else (int,)
    if not isinstance(value, kinds) or isinstance(value, bool):
        raise ValueError(f"{name} is {value!r}, which is no number that it can have")
    if not lowest <= value <= highest or (name == "top_p" and value == 0):
        raise ValueError(f"{name} is {value}, outside of {lowest} .. {highest}")
    return float(value) if name in DECIMALS else int(value)
