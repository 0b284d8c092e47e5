"""The file of keys: what it may say, how it is refused, and the command that hashes a key."""

from __future__ import annotations

import os
from io import StringIO
from pathlib import Path

import pytest

from radixserve.cli import main
from radixserve.config import Settings
from radixserve.errors import ConfigError
from radixserve.key_file import digest, hashed, new_key, read_key_file, refuse_two_defaults
from radixserve.preparations import check_keys
from radixserve.tenants import Tenant

HASH = "sha256:" + "0" * 64


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "keys.toml"
    path.write_text(text)
    return path


def test_a_tenant_with_everything(tmp_path: Path) -> None:
    key = new_key()
    path = written(
        tmp_path,
        f"""
        [tenants.research]
        keys = ["{hashed(key)}", "plain-key"]
        kv_quota = "2GiB"
        kv_floor = 0.25
        requests_per_minute = 600
        tokens_per_minute = 1_000_000
        concurrent_requests = 8
        max_priority = 5
        weight = 2
        admin = true

        [tenants.guest]
        keys = []
        """,
    )
    read = read_key_file(path)
    research = Tenant(
        name="research", admin=True, kv_quota=2 << 30, kv_floor=0.25, requests_per_minute=600,
        tokens_per_minute=1_000_000, concurrent_requests=8, max_priority=5, weight=2.0,
    )  # fmt: skip
    assert read.tenants == (research, Tenant(name="guest"))
    assert read.owners == {digest(key): research, digest("plain-key"): research}
    assert read.with_plain_keys == ("research",)
    assert key not in repr(read)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "no table"),
        ("tenants = 1", "no table"),
        ("[tenants]", "no table"),
        ("[tenants.a", "no TOML"),
        ("[server]\nport = 1\n[tenants.a]\nkeys = []", "'server'"),
        ("[tenants.a]", "keys"),
        ("[tenants.a]\nkeys = 'x'", "keys"),
        ("[tenants.a]\nkeys = [1]", "keys"),
        ("[tenants.a]\nkeys = ['']", "key 1"),
        ("[tenants.a]\nkeys = ['ok', 'two words']", "key 2"),
        ("[tenants.a]\nkeys = ['sha256:12']", "key 1"),
        ("[tenants.a]\nkeys = []\nquota = 1", "quota"),
        ("[tenants.a]\nkeys = []\nkv_quota = -1", "kv_quota"),
        ("[tenants.a]\nkeys = []\nkv_quota = 2.5", "neither a share up to 1 nor a number of bytes"),
        ("[tenants.a]\nkeys = []\nkv_quota = 0.2\nkv_floor = 0.3", "more than kv_quota"),
        ("[tenants.a]\nkeys = []\nweight = 'x'", "[tenants.a] weight: expected a number, got text"),
        ('[tenants.a]\nkeys = []\nkv_floor = "1"', "one byte"),
        ("[tenants.a]\nkeys = []\nkv_floor = 'much'", "kv_floor"),
        (f"[tenants.a]\nkeys = []\nkv_floor = '{'9' * 400}GiB'", "kv_floor"),
        ("[tenants.a]\nkeys = []\nrequests_per_minute = 1.5", "requests_per_minute"),
        (f"[tenants.a]\nkeys = []\nrequests_per_minute = {'1' * 5000}", "no TOML"),
        ("[tenants.a]\nkeys = []\nadmin = 'yes'", "admin"),
        ("[tenants.a]\nkeys = []\nweight = 0", "weight"),
        ("[tenants.'a b']\nkeys = []", "'a b'"),
        (f"[tenants.a]\nkeys = ['{HASH}']\n[tenants.b]\nkeys = ['{HASH}']", "a and b"),
    ],
)
def test_a_wrong_file_is_refused_in_one_sentence(tmp_path: Path, text: str, named: str) -> None:
    with pytest.raises(ConfigError, match="key file") as refusal:
        read_key_file(written(tmp_path, text))
    sentence = str(refusal.value)
    assert named in sentence or (named == "a and b" and "same key" in sentence)
    assert "\n" not in sentence
    assert "two words" not in sentence, "a refusal shows a key"


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # nobody writes to it
    for path in (tmp_path, tmp_path / "none", tmp_path / "pipe"):
        with pytest.raises(ConfigError, match="cannot read the key file"):
            read_key_file(path)
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="UTF-8"):
        read_key_file(tmp_path / "binary")


def test_default_may_not_be_named_twice(tmp_path: Path) -> None:
    read = read_key_file(written(tmp_path, "[tenants.default]\nkeys = []"))
    refuse_two_defaults(read, None)
    with pytest.raises(ConfigError, match="api_key"):
        refuse_two_defaults(read, "k")


def test_the_commands_print_what_the_file_takes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["key", "new"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    key, line = first.split()[-1], second.partition("file:")[2].strip()
    assert read_key_file(written(tmp_path, f"[tenants.a]\n{line}")).owners.keys() == {digest(key)}
    monkeypatch.setattr("sys.stdin", StringIO(""))
    with pytest.raises(SystemExit):
        main(["key", "hash"])
    monkeypatch.setattr("sys.stdin", StringIO(f"{key}\n"))
    capsys.readouterr()
    assert main(["key", "hash"]) == 0
    assert capsys.readouterr().out.strip() == line


def test_a_wrong_file_ends_the_start_before_anything_runs(tmp_path: Path) -> None:
    path = written(tmp_path, "[tenants.a]\nkeys = 1")
    with pytest.raises(ConfigError, match="tenants"):
        check_keys(Settings(api_key_file=str(path)))
