"""Adapters as front and engine speak of them, and the namespaces of the K/V that they change.

    NAMESPACE+lora-DIGEST      K/V of a request in NAMESPACE with an adapter that changes K/V so

An adapter that changes no K/V has that of the model: its requests keep their namespace.
"""

from __future__ import annotations

import os
from typing import Final

import msgspec

from radixserve.errors import ConfigError

MOST_ADAPTERS: Final = 128
"""That a server serves at a time."""

_MARK: Final = "+lora-"
_MOST_NAME_CHARS: Final = 256


class AdapterSource(msgspec.Struct, frozen=True):
    """An adapter that an engine is to load. With a `digest` only that content will do."""

    name: str
    path: str
    digest: str = ""


class AdapterInfo(msgspec.Struct, frozen=True, kw_only=True):
    """An adapter that an engine has loaded."""

    name: str
    path: str
    digest: str  # of all that it computes
    kv_digest: str  # of what changes K/V; "" if nothing does
    rank: int  # the largest
    num_bytes: int

    @property
    def source(self) -> AdapterSource:
        """What another engine has to load."""
        return AdapterSource(self.name, self.path, self.digest)


def namespace_with(namespace: str, kv_digest: str) -> str:
    """The namespace of K/V that an adapter changes; `namespace` itself if it changes none."""
    return f"{namespace}{_MARK}{kv_digest}" if kv_digest else namespace


def parts_of(namespace: str) -> tuple[str, str]:
    """The namespace without an adapter, and the digest of what changes K/V, "" for none."""
    own, mark, digest = namespace.rpartition(_MARK)
    return (own, digest) if mark else (namespace, "")


def sources_of(given: tuple[str, ...]) -> list[AdapterSource]:
    """The adapters of the setting `lora`, each as NAME=PATH.

    Raises:
        ConfigError: one is malformed, two have the same name, or there are too many.
    """
    found: dict[str, AdapterSource] = {}
    for each in given:
        name, equals, path = each.partition("=")
        if not (equals and path):
            raise ConfigError(f"lora = {each!r} is not NAME=PATH")
        if (fault := fault_of(name)) is not None:
            raise ConfigError(f"lora = {each!r}: {fault}")
        if name in found:
            raise ConfigError(f"lora names {name!r} twice")
        found[name] = AdapterSource(name, os.path.abspath(os.path.expanduser(path)))
    if len(found) > MOST_ADAPTERS:
        raise ConfigError(f"lora names {len(found)} adapters; at most {MOST_ADAPTERS} are served")
    return list(found.values())


def fault_of(name: str) -> str | None:
    """Why an adapter cannot have this name; None if it can."""
    if not 0 < len(name) <= _MOST_NAME_CHARS:
        return f"the name of an adapter has 1 to {_MOST_NAME_CHARS} characters"
    if not name.isprintable() or "*" in name:
        return "the name of an adapter has no '*' and no control characters"
    return None
