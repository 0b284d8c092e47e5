"""The key file of a soak: three tenants with shares of the memory, and an administrator."""

from __future__ import annotations

from pathlib import Path

TENANTS = ("north", "south", "west")
ADMIN_KEY = "sk-soak-operator"

_SHARES = {"north": "kv_quota = 0.6", "south": "kv_floor = 0.2", "west": "weight = 2.0"}


def key_of_tenant(name: str) -> str:
    return f"sk-soak-{name}"


def write_keys(path: Path) -> None:
    """Write the file. Its keys stand there as they are, because they protect nothing."""
    tables = [
        f'[tenants.{name}]\nkeys = ["{key_of_tenant(name)}"]\n{_SHARES[name]}\n' for name in TENANTS
    ]
    admin = f'[tenants.operator]\nkeys = ["{ADMIN_KEY}"]\nadmin = true\n'
    path.write_text("\n".join([*tables, admin]))
