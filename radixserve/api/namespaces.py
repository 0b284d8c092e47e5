"""The namespaces of tenants in the cache, and the secret from which they are made.

    TENANT/HMAC-SHA256(secret, tenant, what the body says: "public", or a salt)

Behind that stands the digest of an adapter that changes K/V (`radixserve.adapters`).

So one tenant's prefix is never another's hit, in any tier, whatever salts they send; and nobody who
can only send requests can tell which namespace another tenant has. The tenant's name stands in
front, so that the cache can say whose a prefix is.

A prompt without a salt that begins with a public prefix has these tokens in common with all tenants
(`radixserve.prefix.Prefix`).
"""

from __future__ import annotations

import hmac
import os
import re
import secrets
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from radixserve.adapters import namespace_with, parts_of
from radixserve.errors import ConfigError
from radixserve.prefix import PUBLIC, TOKEN_BYTES, pack

SECRET_FILE: Final = "tenant-secret"
_HEX: Final = re.compile(rb"[0-9a-f]{64}\n?")
_DIGITS: Final = 32  # of the HMAC's 64: 128 bits


class Namespaces:
    """Turns the namespaces of bodies into those of tenants."""

    def __init__(self, secret: bytes | None) -> None:
        """Without a secret there are no tenants, and namespaces stay what bodies say."""
        self._secret = secret
        self._public: list[bytes] = []  # packed, the longest first

    @property
    def are_of_tenants(self) -> bool:
        """Whether each belongs to a tenant."""
        return self._secret is not None

    def share(self, prefixes: Iterable[Sequence[int]]) -> None:
        """Make the tokens of these prefixes public, and no others."""
        self._public = sorted(map(pack, prefixes), key=len, reverse=True)

    def num_public(self, namespace: str, prompt_ids: Sequence[int]) -> int:
        """How many of the first tokens of a prompt are public whose body says `namespace`.
        O(public prefixes), and O(the longest of them).
        """
        if namespace != PUBLIC or self._secret is None or not self._public:
            return 0
        prompt = pack(prompt_ids[: len(self._public[0]) // TOKEN_BYTES])
        found = next((each for each in self._public if prompt.startswith(each)), b"")
        return len(found) // TOKEN_BYTES

    def of(self, tenant: str, namespace: str) -> str:
        """The namespace of a tenant's request whose body says `namespace`."""
        if self._secret is None:
            return namespace
        own, kv_digest = parts_of(namespace)
        # no tenant's name contains NUL, so that two different pairs give different messages
        message = f"{tenant}\0{own}".encode("utf-8", "surrogatepass")
        digest = hmac.digest(self._secret, message, "sha256").hex()[:_DIGITS]
        return namespace_with(f"{tenant}/{digest}", kv_digest)


def tenant_secret(given: str | None, folder: str | None) -> bytes:
    """The secret that is `given`, or the one that is kept in the `folder` of the disk tier, where
    it is made at the first start; without a folder a new one, with which nothing cached before is
    found again.

    Raises:
        ConfigError: the file cannot be used.
    """
    if given is not None:
        return given.encode()
    if folder is None:
        return secrets.token_bytes(32)
    path = Path(folder) / SECRET_FILE
    try:
        return _kept(path)
    except OSError as error:
        raise ConfigError(f"cannot use {path}: {error.strerror or error}") from error


def _kept(path: Path) -> bytes:
    """The secret in the file, which is made if it is missing, and readable by its owner only."""
    if not path.exists():
        _make(path)
    if path.stat().st_mode & 0o077:
        path.chmod(0o600)
    content = path.read_bytes()
    if not _HEX.fullmatch(content):
        raise ConfigError(f"{path} does not hold 64 hexadecimal digits; remove it to make another")
    return bytes.fromhex(content.decode())


def _make(path: Path) -> None:
    """Write a new secret; the file appears whole or not at all."""
    temporary = path.with_name(f"{SECRET_FILE}.{os.getpid()}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(secrets.token_hex(32).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
