"""The file of bodies: one JSON object on each line, and how anything else is refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from radixserve import body_file
from radixserve.body_file import FileBody, read_body_file
from radixserve.errors import ConfigError


def test_each_line_is_a_body_and_keeps_its_number(tmp_path: Path) -> None:
    path = tmp_path / "bodies.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "a\xe2\x80\xa8b"}\r\n\n  \n {"tokens": [1, 2]}')
    assert read_body_file(path) == [
        FileBody(1, {"prompt": "a\u2028b"}),
        FileBody(4, {"tokens": [1, 2]}),
    ]


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"", "it has no line with a body"),
        (b"\n \n", "it has no line with a body"),
        (b'{"prompt": "a"}\n{"prompt": ', "line 2 is no JSON"),
        (b'{"prompt": "a"}\n\n[1]', "line 3 is no JSON object"),
        (b'{"prompt": "\xff"}', "line 1 is no JSON"),
        (b'{"a": ' + b"[" * 100_000, "line 1 is no JSON"),
        (b'{"a": NaN}', "line 1 is no JSON"),
        (b"{}\n{}\n{}", "it has more than 2 bodies"),
        (b'{"prompt": "' + b"x" * 100 + b'"}', "it is larger than"),
    ],
)
def test_what_is_no_file_of_bodies_is_refused_in_one_sentence(
    content: bytes, named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(body_file, "MAX_BODIES", 2)
    if named == "it is larger than":
        monkeypatch.setattr(body_file, "MAX_FILE_BYTES", 100)
    path = tmp_path / "bodies.jsonl"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=named) as refused:
        read_body_file(path)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "reason"),
    [("none", "No such file"), (".", "Is a directory"), ("pipe", "no regular file")],
)
def test_a_file_that_cannot_be_read_is_refused(name: str, reason: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # nobody writes to it
    with pytest.raises(ConfigError, match=reason):
        read_body_file(tmp_path / name)
