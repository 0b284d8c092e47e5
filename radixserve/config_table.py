"""The settings as a table: how the value of each is written, read, shown and documented.

Made from the fields of `Settings`. Knows neither where a value comes from nor what it does.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin, get_type_hints

import msgspec

from radixserve.config import SECTIONS, Doc, Settings
from radixserve.errors import ConfigError
from radixserve.sizes import format_size, parse_size

ENV_PREFIX: Final = "RADIXSERVE_"

_WORDS: Final = re.compile(r"[^\s,]+")


@dataclass(frozen=True, slots=True)
class Setting:
    """One row of the table: a field of `Settings` with everything that is derived from it."""

    name: str
    type: Any  # as annotated, limits included
    default: Any
    doc: Doc

    @property
    def flag(self) -> str:
        """As in `--kv-budget`."""
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        """As in `RADIXSERVE_KV_BUDGET`."""
        return ENV_PREFIX + self.name.upper()

    @property
    def key(self) -> str:
        """As in `cache.kv_budget`."""
        return f"{self.doc.section}.{self.name}"

    @property
    def plain(self) -> Any:
        """The type without limits and without None: str, int, float, bool or a Literal."""
        bare = get_args(self.type)[0]
        if get_origin(bare) in (Union, UnionType):
            bare = next(each for each in get_args(bare) if each is not type(None))
        return get_args(bare)[0] if get_origin(bare) is Annotated else bare

    @property
    def several(self) -> bool:
        """Whether the value is a tuple of words or paths, given as several arguments or with
        commas.
        """
        return get_origin(self.plain) is tuple

    @property
    def choices(self) -> tuple[str, ...]:
        """The allowed words; empty if every value of the type is allowed."""
        if self.plain is bool:
            return ("true", "false")
        return get_args(self.plain) if get_origin(self.plain) is Literal else ()

    def show(self, value: Any) -> str:
        """`value` as a person writes it, and as `parse` reads it back."""
        if self.doc.zero and not value:
            return "auto"
        if self.doc.secret:
            return "(secret)"
        if isinstance(value, bool):
            return str(value).lower()
        if isinstance(value, float):
            return f"{value:g}"
        if self.several:
            return ",".join(value) or "none"
        return format_size(value) if self.doc.unit == "bytes" else str(value)

    def explain(self) -> str:
        """The help with unit, allowed words and the meaning of auto, in one line."""
        unit = f", in {self.doc.unit}" if self.doc.unit else ""
        words = f" ({', '.join(self.choices)})" if self.choices and self.plain is not bool else ""
        auto = f"; auto: {self.doc.zero}" if self.doc.zero else ""
        return f"{self.doc.help}{unit}{words}{auto}"

    def parse_text(self, text: str, source: str) -> Any:
        """Parse the value of a flag or a variable: sizes, "auto" and yes/no included.

        Raises:
            ConfigError: it is malformed or out of limits; the error names setting and `source`.
        """
        word = text.strip()
        if self.several and word.lower() not in ("auto", "none"):
            words = word.split(",") if self.doc.path else _WORDS.findall(word)
            return self.parse_words(words, source)
        if self.plain is bool:
            word = {"yes": "true", "on": "true", "no": "false", "off": "false"}.get(
                word.lower(), word
            )
        return self._convert(word, source, strict=False)

    def parse_words(self, words: Sequence[str], source: str) -> Any:
        """Parse a value of several words or paths, "auto" included. Paths may contain spaces.

        Raises:
            ConfigError: as `parse_text`.
        """
        stripped = tuple(word.strip() for word in words)
        only = stripped[0] if len(stripped) == 1 else stripped
        return self._convert(only, source, strict=True)

    def parse_value(self, value: object, source: str) -> Any:
        """The value that TOML gives; text stands for a number only in sizes and as "auto".

        Raises:
            ConfigError: it is malformed or out of limits; the error names setting and `source`.
        """
        return self._convert(value, source, strict=True)

    def _convert(self, raw: object, source: str, *, strict: bool) -> Any:
        if self.doc.zero and isinstance(raw, str) and raw.strip().lower() == "auto":
            return self.default
        if self.several and isinstance(raw, str):
            raw = () if raw == "none" else (raw,)
        if self.doc.path:
            raw = _expanded(raw)
        try:
            value = parse_size(raw) if self.doc.unit == "bytes" and isinstance(raw, str) else raw
            return msgspec.convert(value, self.type, strict=strict)
        except (msgspec.ValidationError, ValueError) as error:
            expected = f"one of {', '.join(self.choices)}" if self.choices else str(error)
            shown = "(secret)" if self.doc.secret else repr(raw)
            raise ConfigError(f"{source}: {self.key} = {shown} is not valid: {expected}") from None


def _expanded(path: object) -> object:
    """One path or several with the home folder for ~."""
    if isinstance(path, list | tuple):
        return tuple(_expanded(each) for each in path)
    return os.path.expanduser(path) if isinstance(path, str) else path


def _table() -> tuple[Setting, ...]:
    hints = get_type_hints(Settings, include_extras=True)
    rows = []
    for field in msgspec.structs.fields(Settings):
        doc = next(each for each in get_args(hints[field.name]) if isinstance(each, Doc))
        rows.append(Setting(field.name, hints[field.name], field.default, doc))
    return tuple(rows)


TABLE: Final = _table()
"""All settings in the order of declaration."""


def markdown() -> str:
    """The table of docs/settings.md: one part per section, one row per setting."""
    lines: list[str] = []
    for section, title in SECTIONS.items():
        lines += ["", f"## [{section}]: {title[0].lower()}{title[1:]}", ""]
        lines += ["| key | flag | variable | default | meaning |", "|---|---|---|---|---|"]
        for row in TABLE:
            if row.doc.section == section:
                flag = f"{row.flag}`, `--no-{row.flag[2:]}" if row.plain is bool else row.flag
                cells = (
                    f"`{row.name}`",
                    f"`{flag}`",
                    f"`{row.variable}`",
                    f"`{row.show(row.default)}`",
                    row.explain(),
                )
                lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines[1:]) + "\n"
