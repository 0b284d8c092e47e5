"""Whose a key is: the one key of the settings, and those of the file of keys, which can be read
again while the server runs.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
from pathlib import Path

from radixserve.errors import ConfigError
from radixserve.key_file import KeyFile, digest, read_key_file, refuse_two_defaults
from radixserve.tenants import DEFAULT, OWNER, Tenant

log = logging.getLogger(__name__)

_NO_FILE = KeyFile((), {})


class Keys:
    """All keys that are valid now. Without any, everybody may use the server."""

    def __init__(self, api_key: str | None = None, file: str | None = None) -> None:
        """Raises ConfigError if the file cannot be used."""
        self._path = Path(file) if file is not None else None
        self._api_key = api_key
        self._owners: dict[bytes, tuple[bytes, Tenant]] = {}
        self.tenants: tuple[Tenant, ...] = ()  # those of the file
        self._take(self._read())

    @property
    def required(self) -> bool:
        """Whether requests need a key."""
        return self._api_key is not None or self._path is not None

    @property
    def has_file(self) -> bool:
        return self._path is not None

    def owner_of(self, key: str) -> Tenant | None:
        """The tenant that has `key`; None if nobody has, and for an empty key, whatever hashes the
        file holds. The time that this takes tells nothing of the keys, because only digests are
        compared, the last time in constant time. O(1).
        """
        if not key:
            return None
        given = digest(key)
        known, tenant = self._owners.get(given, (b"", None))
        return tenant if hmac.compare_digest(known, given) else None

    def tenant(self, name: str) -> Tenant | None:
        """The tenant of this name; None if there is none."""
        if self._api_key is not None and name == OWNER.name:
            return OWNER
        if not self.has_file and name == DEFAULT.name:
            return DEFAULT
        return next((each for each in self.tenants if each.name == name), None)

    def floors(self, budget: int) -> float:
        """The bytes that the floors of all tenants keep of a K/V budget of so many bytes."""
        floors = [each.kv_floor for each in self.tenants]
        return sum(each * budget if each <= 1 else each for each in floors)

    async def reload(self) -> bool:
        """Read the file again, in a thread. If it cannot be used, the log says why, and the keys
        stay as they are. Returns whether it was taken.
        """
        try:
            self._take(await asyncio.to_thread(self._read))
        except ConfigError as error:
            log.error("the keys stay as they were: %s", error)
            return False
        counts = len(self._owners), len(self.tenants)
        log.info("keys read again: there are %d keys of %d tenants", *counts)
        return True

    def _read(self) -> KeyFile:
        if self._path is None:
            return _NO_FILE
        keys = read_key_file(self._path)
        refuse_two_defaults(keys, self._api_key)
        return keys

    def _take(self, keys: KeyFile) -> None:
        owners = dict(keys.owners)
        if self._api_key is not None:
            owners[digest(self._api_key)] = OWNER
        if keys.with_plain_keys:
            log.warning(
                "keys of these tenants are not hashed in %s (`radixserve key hash` does it): %s",
                self._path,
                ", ".join(keys.with_plain_keys),
            )
        self.tenants = keys.tenants
        self._owners = {each: (each, tenant) for each, tenant in owners.items()}
