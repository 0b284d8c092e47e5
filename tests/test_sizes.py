"""Sizes as people write them: what is read, written and refused."""

from __future__ import annotations

import pytest

from radixserve.sizes import format_size, parse_size, rounded_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("1000", 1000),
        ("1000B", 1000),
        ("1KiB", 1024),
        ("512MiB", 512 << 20),
        ("2GiB", 2 << 30),
        ("1.5 GiB", 3 << 29),
        ("2gib", 2 << 30),
        ("1TiB", 1 << 40),
        ("500MB", 500_000_000),
        ("9007199254740993", 9007199254740993),
    ],
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert parse_size(text) == size
    assert parse_size(format_size(size)) == size


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0"), (1, "1"), (1536, "1536"), (3 << 29, "1536MiB"), (2 << 30, "2GiB")]
)
def test_sizes_are_written_in_the_largest_unit_that_is_whole(size: int, text: str) -> None:
    assert format_size(size) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 bytes"), (1023, "1023 bytes"), (192_000 << 10, "187.5 MiB"), (4 << 30, "4 GiB")],
)
def test_sizes_for_people_are_rounded(size: int, text: str) -> None:
    assert rounded_size(size) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "-1",
        "1e9",
        "2XB",
        "GiB",
        "1 2",
        "0.3B",
        "0x10",
        "1.5.1GiB",
        "\u0664MiB",
        "9" * 400,
        f"{'9' * 400}.0GiB",
    ],
)
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected a"):
        parse_size(text)
