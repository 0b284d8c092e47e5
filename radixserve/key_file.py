"""Reads the file of keys: TOML that names tenants, their keys and their limits.

    [tenants.research]
    keys = ["sha256:9f86d0..."]
    kv_quota = "2GiB"
    requests_per_minute = 600

A key is kept as its SHA-256, which `radixserve key` prints. That is enough for keys that are drawn
at random; a key that a person made up can be guessed from its hash. Knows no HTTP.
"""

from __future__ import annotations

import re
import secrets
import tomllib
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from radixserve.errors import ConfigError
from radixserve.regular_file import read_regular
from radixserve.sizes import parse_size
from radixserve.tenants import DEFAULT, MAX_PRIORITY, Tenant

_HASH_PREFIX: Final = "sha256:"
_HASH: Final = re.compile(r"sha256:[0-9a-fA-F]{64}")
_PLAIN: Final = re.compile(r"[\x21-\x7e]+")
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_MAX_FILE_BYTES: Final = 16 << 20
_Count = Annotated[int, Meta(ge=0, le=10**12)]
_Amount = Annotated[float, Meta(ge=0, le=1e18)] | str


class _Entry(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """One tenant as the file writes it."""

    keys: list[str]
    kv_quota: _Amount = 0.0
    kv_floor: _Amount = 0.0
    requests_per_minute: _Count = 0
    tokens_per_minute: _Count = 0
    concurrent_requests: _Count = 0
    max_priority: Annotated[int, Meta(ge=0, le=MAX_PRIORITY)] = 0
    weight: Annotated[float, Meta(ge=0.01, le=100)] = 1.0
    admin: bool = False


@dataclass(frozen=True, slots=True, repr=False)
class KeyFile:
    """The tenants, the owner of each key by the key's SHA-256, and who has keys that the file
    shows.
    """

    tenants: tuple[Tenant, ...]
    owners: dict[bytes, Tenant]
    with_plain_keys: tuple[str, ...] = ()


def digest(key: str) -> bytes:
    """The SHA-256 of a key, 32 bytes."""
    return sha256(key.encode("utf-8", "surrogateescape")).digest()


def hashed(key: str) -> str:
    """A key as the file should hold it."""
    return _HASH_PREFIX + digest(key).hex()


def new_key() -> str:
    """A key that cannot be guessed."""
    return "sk-" + secrets.token_urlsafe(32)


def read_key_file(path: Path) -> KeyFile:
    """Read the file.

    Raises:
        ConfigError: the file cannot be read, or something in it is wrong; one sentence that names
            the place and no key.
    """
    entries = {name: _entry(path, name, raw) for name, raw in _tables(path).items()}
    tenants = {name: _tenant(path, name, entry) for name, entry in entries.items()}
    owners: dict[bytes, Tenant] = {}
    for name, entry in entries.items():
        for each in _digests(path, name, entry.keys):
            if owners.setdefault(each, tenants[name]) is not tenants[name]:
                raise _wrong(path, f"the tenants {owners[each].name} and {name} have the same key")
    plain = tuple(name for name, entry in entries.items() if not all(map(_is_hash, entry.keys)))
    return KeyFile(tuple(tenants.values()), owners, plain)


def _tables(path: Path) -> dict[str, Any]:
    """The tables of all tenants, by name."""
    try:
        raw = read_regular(path, _MAX_FILE_BYTES + 1)
        if len(raw) > _MAX_FILE_BYTES:
            raise _wrong(path, f"it is larger than {_MAX_FILE_BYTES >> 20} MiB")
        content = tomllib.loads(raw.decode())
    except OSError as error:
        raise ConfigError(f"cannot read the key file {path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise _wrong(path, "it is no UTF-8 text") from None
    except (ValueError, RecursionError) as error:  # of TOML, or of an integer that is too long
        raise _wrong(path, f"no TOML: {error}") from None
    unknown = next((name for name in content if name != "tenants"), None)
    if unknown is not None:
        raise _wrong(path, f"it has tables [tenants.NAME] only, but there is {unknown!r}")
    tables = content.get("tenants")
    if not isinstance(tables, dict) or not tables:
        raise _wrong(path, "it has no table [tenants.NAME]")
    return tables


def _entry(path: Path, name: str, raw: object) -> _Entry:
    if not _NAME.fullmatch(name):
        raise _wrong(path, f"{name!r} is no name for a tenant: letters, digits, '.', '_', '-'")
    try:
        return msgspec.convert(raw, _Entry, strict=True)
    except msgspec.ValidationError as error:
        raise _wrong(path, f"[tenants.{name}]{_in_words(str(error))}") from None


_WORDS: Final = {
    "`int`": "a whole number",
    "`float`": "a number",
    "`str`": "text",
    "`bool`": "true or false",
    "`array`": "a list",
    "`object`": "a table",
    "`float | str`": "a share or a size",
}


def _in_words(reason: str) -> str:
    """What is wrong with an entry, from msgspec's sentence, without the names of Python's types."""
    what, _, place = reason.partition(" - at `$")
    for code in sorted(_WORDS, key=len, reverse=True):
        what = what.replace(code, _WORDS[code])
    return f"{place.rstrip('`').replace('.', ' ', 1)}: {what[:1].lower()}{what[1:]}"


def _tenant(path: Path, name: str, entry: _Entry) -> Tenant:
    limits = {each: getattr(entry, each) for each in entry.__struct_fields__ if each != "keys"}
    for each in ("kv_quota", "kv_floor"):
        limits[each] = _amount(path, f"[tenants.{name}] {each}", limits[each])
    quota, floor = limits["kv_quota"], limits["kv_floor"]
    if quota and floor > quota and (floor > 1) == (quota > 1):
        raise _wrong(path, f"[tenants.{name}]: kv_floor is more than kv_quota")
    return Tenant(name=name, **limits)


def _amount(path: Path, where: str, value: float | str) -> float:
    """A share of the budget up to 1, or bytes above."""
    if not isinstance(value, str):
        if value > 1 and value != int(value):
            raise _wrong(path, f"{where}: {value} is neither a share up to 1 nor a number of bytes")
        return float(value)
    try:
        size = parse_size(value)
    except ValueError as error:
        raise _wrong(path, f"{where}: {error}, or a share such as 0.25") from None
    if size == 1:  # as a number it would be a share of all
        raise _wrong(path, f"{where}: one byte holds no token; a share has no quotes")
    return float(size)


def _digests(path: Path, name: str, keys: list[str]) -> list[bytes]:
    """The digests of a tenant's keys."""
    found = []
    for number, key in enumerate(keys, 1):
        if _is_hash(key):
            found.append(bytes.fromhex(key.removeprefix(_HASH_PREFIX)))
            continue
        if key.startswith(_HASH_PREFIX) or not _PLAIN.fullmatch(key):
            what = "is neither sha256: with 64 hexadecimal digits nor a key of printable ASCII"
            raise _wrong(path, f"[tenants.{name}]: key {number} {what}")
        found.append(digest(key))
    return found


def _is_hash(key: str) -> bool:
    return _HASH.fullmatch(key) is not None


def _wrong(path: Path, reason: str) -> ConfigError:
    return ConfigError(f"the key file {path} cannot be used: {reason}")


def refuse_two_defaults(keys: KeyFile, api_key: str | None) -> None:
    """Raises ConfigError if both the file and the setting `api_key` have a tenant "default"."""
    if api_key is not None and any(each.name == DEFAULT.name for each in keys.tenants):
        raise ConfigError(
            "the tenant 'default' is in the key file, and has the key of the setting api_key, too"
        )
