"""Numbers of bytes as people write them: 512MiB, 1.5 GiB, 500MB."""

from __future__ import annotations

import re
from typing import Final

_SIZE_DIGITS: Final = 20  # enough for every number of bytes; more could overflow a float
_SIZE: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([KMGT]i?B|B|)", re.IGNORECASE)
_UNITS: Final = {"": 1, "B": 1} | {
    f"{letter}{infix}B": base**power
    for infix, base in (("i", 1024), ("", 1000))
    for power, letter in enumerate("KMGT", start=1)
}
_UNIT_OF: Final = {unit.lower(): size for unit, size in _UNITS.items()}


def parse_size(text: str) -> int:
    """Bytes in `512MiB`, `2GiB`, `1.5 GiB`, `500MB` (powers of ten) or a plain number.

    Raises:
        ValueError: `text` is not a size, or not a whole number of bytes.
    """
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise ValueError('expected a size such as "512MiB", "2GiB" or a number of bytes')
    if len(found[1]) > _SIZE_DIGITS:
        raise ValueError(f"expected a size of at most {_SIZE_DIGITS} digits")
    size = (
        float(found[1]) * _UNIT_OF[found[2].lower()]
        if "." in found[1]
        else int(found[1]) * _UNIT_OF[found[2].lower()]
    )
    if size != int(size):
        raise ValueError("expected a whole number of bytes")
    return int(size)


def rounded_size(size: int) -> str:
    """`size` bytes for people: 187.5 MiB, 4 GiB."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if size >= _UNITS[unit]:
            return f"{size / _UNITS[unit]:.1f}".removesuffix(".0") + f" {unit}"
    return f"{size} bytes"


def format_size(size: int) -> str:
    """`size` bytes in the largest binary unit that divides it, such as 512MiB; `parse_size` reads
    it back.
    """
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if size and size % _UNITS[unit] == 0:
            return f"{size // _UNITS[unit]}{unit}"
    return str(size)
