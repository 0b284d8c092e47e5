"""The options of `radixserve cluster simulate`."""

from __future__ import annotations

import argparse
import math

from radixserve.cluster.policy import ALPHA, POLICIES

_MOST = 1 << 31
_MOST_SERVERS = 4096  # each gateway looks at all of them for every request


def add_to(command: argparse.ArgumentParser) -> None:
    """Add all of them."""
    command.add_argument(
        "--policy",
        nargs="+",
        default=["all"],
        choices=("all", *POLICIES),
        metavar="NAME",
        help=f"policies to compare: {', '.join(POLICIES)} [all]",
    )
    command.add_argument(
        "--servers",
        nargs="+",
        default=[1, 2, 4, 8],
        type=_few,
        metavar="N",
        help="how many servers [1 2 4 8]",
    )
    numbers = {
        "--gateways": (1, "how many gateways"),
        "--blocks": (6250, "blocks that each server's cache holds"),
        "--servers-per-copy": (_MOST - 1, "take the trace once for so many servers, twice for 2N"),
    }
    for name, (default, words) in numbers.items():
        words += f" [{default}]" if default < _MOST - 1 else " [always once]"
        kind = _few if name == "--gateways" else _count
        command.add_argument(name, default=default, type=kind, metavar="N", help=words)
    floats = {
        "--alpha": (ALPHA, "weight of computing in the policy cost"),
        "--speed": (6000.0, "prompt tokens that a server computes in a second"),
        "--delay": (0.2, "seconds until gateways hear of a block"),
    }
    for name, (number, words) in floats.items():
        command.add_argument(
            name, default=number, type=_positive, metavar="X", help=f"{words} [{number:g}]"
        )


def _count(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isdecimal() or not 0 < int(text) < _MOST:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 1")
    return int(text)


def _few(text: str) -> int:
    """A number of servers or gateways."""
    number = _count(text)
    if number > _MOST_SERVERS:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number up to {_MOST_SERVERS:,}")
    return number


def _positive(text: str) -> float:
    """A finite number above 0."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return number
