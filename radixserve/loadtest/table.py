"""Reads TOML tables field by field, so that errors name wrong, missing and unknown fields; changes
them by `key=value`.

Knows nothing of what the fields mean.
"""

from __future__ import annotations

import random
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from radixserve.loadtest.session import Json, WorkloadError

T = TypeVar("T")
OPTIONAL = {"load"}  # top-level tables that may be absent


@dataclass(frozen=True, slots=True)
class Length:
    """A number of words: fixed, or drawn uniformly between two limits."""

    low: int
    high: int

    def draw(self, *key: object) -> int:
        """The number that belongs to `key`."""
        return random.Random("/".join(map(str, ("length", *key)))).randint(self.low, self.high)


class Table:
    """A table whose fields are taken one by one; `end` refuses fields that were not taken. All
    methods raise WorkloadError.
    """

    def __init__(self, values: Json, where: str, folder: Path = Path()) -> None:
        """`where` begins every message; relative paths in the table are relative to `folder`."""
        self.values = dict(values)
        self.where = where
        self.folder = folder

    def take(self, key: str, kind: type[T], default: T | None = None) -> T:
        """The value of `key`, of exactly this type."""
        value = self.values.pop(key, default)
        if type(value) is not kind:
            problem = (
                "is missing" if value is None else f"must be of type {kind.__name__}, not {value!r}"
            )
            raise WorkloadError(f"{self.where}: {key} {problem}")
        return value

    def count(self, key: str, default: int | None = None, least: int = 1) -> int:
        """A whole number of at least `least`."""
        value = self.take(key, int, default)
        if value < least:
            raise WorkloadError(f"{self.where}: {key} must be at least {least}, not {value}")
        return value

    def number(self, key: str, default: float) -> float:
        """A number of at least 0."""
        value = self.values.pop(key, default)
        if type(value) not in (int, float) or not 0 <= value < float("inf"):
            raise WorkloadError(
                f"{self.where}: {key} must be a number of at least 0, not {value!r}"
            )
        return float(value)

    def share(self, key: str) -> float:
        """A number between 0 and 1; 0 if absent."""
        value = self.number(key, 0.0)
        if value > 1:
            raise WorkloadError(f"{self.where}: {key} must lie between 0 and 1, not {value}")
        return value

    def length(self, key: str, default: int | None = None) -> Length:
        """A length, given as a number or `[low, high]`."""
        value = self.values.pop(key, default)
        low, high = value if isinstance(value, list) and len(value) == 2 else (value, value)
        if type(low) is not int or type(high) is not int or not 0 <= low <= high:
            raise WorkloadError(
                f"{self.where}: {key} must be a number of words or [low, high], not {value!r}"
            )
        return Length(low, high)

    def table(self, key: str) -> Table:
        """The table inside this one; empty if absent."""
        return Table(self.take(key, dict, {}), f"{self.where} [{key}]", self.folder)

    def tables(self, key: str) -> list[Table]:
        """The tables of a list, which must not be empty."""
        values = self.take(key, list)
        if not values or not all(isinstance(value, dict) for value in values):
            raise WorkloadError(f"{self.where}: {key} must be a list of tables")
        return [
            Table(value, f"{self.where} {key}[{i}]", self.folder) for i, value in enumerate(values)
        ]

    def end(self) -> None:
        """Refuse fields that were not taken."""
        if self.values:
            raise WorkloadError(f"{self.where}: unknown field {next(iter(self.values))}")


def change(values: Json, changes: Sequence[str], inner: Sequence[str]) -> None:
    """Apply `key=value` changes in place: the key is a path with dots, the value TOML, or else
    text.

    If the first part of a key is not a top-level key, the key belongs to the table of `inner` that
    is present.
    """
    for text in changes:
        key, found, value = text.partition("=")
        if not found or not key:
            raise WorkloadError(f"--set {text}: must be key=value")
        path = key.split(".")
        if path[0] not in values and path[0] not in OPTIONAL:
            path = [*(name for name in inner if name in values), *path]
        _put(values, path, _parsed(value), text)


def _put(place: Any, path: list[str], value: Any, text: str) -> None:
    for name in path[:-1]:
        try:
            place = place[int(name)] if isinstance(place, list) else place.setdefault(name, {})
        except (LookupError, ValueError, AttributeError):
            raise WorkloadError(f"--set {text}: there is no {name}") from None
    if not isinstance(place, dict):
        raise WorkloadError(f"--set {text}: {path[-1]} is not in a table")
    place[path[-1]] = value


def _parsed(value: str) -> Any:
    try:
        return tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return value
