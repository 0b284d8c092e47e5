"""What is looked at before any process of a server is started. Imports little, because the engine
process waits for it.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from radixserve.body_file import FileBody, read_body_file
from radixserve.checkpoints.temporary import ensure_temporary_folder
from radixserve.config import Settings
from radixserve.errors import ConfigError
from radixserve.key_file import read_key_file, refuse_two_defaults
from radixserve.store.folder.claim import prepare


def check_folders(settings: Settings) -> None:
    """Look for the folders without which a start is impossible: the store's, and one for temporary
    files, without which the processes that are started later cannot import torch.

    Raises:
        StartupError: the store's folder cannot be used.
    """
    if settings.disk_path is not None:
        prepare(Path(settings.disk_path), trust_others=settings.disk_trust_others)
    ensure_temporary_folder()


def check_keys(settings: Settings) -> None:
    """Raises ConfigError if the key file cannot be used."""
    if settings.api_key_file is not None:
        refuse_two_defaults(read_key_file(Path(settings.api_key_file)), settings.api_key)


def bodies_to_warm(settings: Settings) -> list[FileBody]:
    """The bodies in the file of the setting `warm`. Raises ConfigError if it cannot be used."""
    return [] if settings.warm is None else read_body_file(Path(settings.warm))


def public_bodies(settings: Settings) -> list[FileBody]:
    """The bodies in the file of the setting `public_prefix`. Raises ConfigError if it cannot be
    used, or has no effect.
    """
    if settings.public_prefix is None:
        return []
    if settings.api_key_file is None:
        raise ConfigError(
            "public_prefix shares prefixes among the tenants of a key file; set api_key_file, too"
        )
    return read_body_file(Path(settings.public_prefix))


def for_engine(settings: Settings) -> Settings:
    """What the engine process gets of `settings`: all but the secrets of the API."""
    return msgspec.structs.replace(settings, api_key=None, tenant_secret=None, record_key=None)
