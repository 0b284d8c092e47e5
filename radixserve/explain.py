"""The command `radixserve cache explain`: ask a running server why it would not find a request's
prompt in its cache, and print the answer for people.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

_SECONDS = 60.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command, besides the server's."""
    parser.add_argument("file", metavar="FILE", help="the body of a request, as JSON; - is stdin")
    parser.add_argument("--json", action="store_true", help="print the answer as it is")


def main(arguments: argparse.Namespace) -> int:
    """Run the command; the exit status: 0 or 1."""
    try:
        name = arguments.file
        body = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
        answer = _ask(arguments.url, body, arguments.key or os.environ.get("RADIXSERVE_API_KEY"))
    except (OSError, ValueError) as error:
        print(f"radixserve: {_reason(error)}", file=sys.stderr)
        return 1
    print(json.dumps(answer, indent=2) if arguments.json else told(answer))
    return 0


def _ask(url: str, body: bytes, key: str | None) -> dict[str, Any]:
    headers = {"Content-Type": "application/json"}
    if key:
        headers["Authorization"] = f"Bearer {key}"
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"{url!r} is no URL of a server")
    request = urllib.request.Request(f"{url.rstrip('/')}/cache/explain", body, headers)
    try:
        with urllib.request.urlopen(request, timeout=_SECONDS) as response:
            answer: dict[str, Any] = json.load(response)
    except urllib.error.HTTPError:
        raise
    except urllib.error.URLError as error:
        raise OSError(f"no server answers at {url}: {error.reason}") from error
    return answer


def _reason(error: Exception) -> str:
    """The server's own sentence where it sent one."""
    if isinstance(error, urllib.error.HTTPError):
        try:
            return str(json.load(error)["error"]["message"])
        except (ValueError, KeyError, TypeError):
            return f"the server answered {error.code}"
    return str(getattr(error, "reason", error))


def told(answer: dict[str, Any]) -> str:
    """The answer in some lines."""
    matched = ", ".join(f"{count} {tier}" for tier, count in answer["matched"].items())
    lines = [
        f"{answer['matched_tokens']} of {answer['prompt_tokens']} tokens are cached ({matched}).",
        f"{answer['cause']}: {answer['why']}",
    ]
    if gone := answer.get("gone"):
        room = gone["room_for_tokens"]
        lines.append(
            f"It went {gone['seconds_ago']:g} s ago"
            + (f", when room was made for {room} tokens." if room else ".")
        )
    if compared := answer["compared_with"]:
        lines.append(
            f"Compared with a {compared['kind']} prompt of {compared['tokens']} tokens, "
            f"{compared['age_seconds']:g} s old, {compared['shared']} shared."
        )
    if difference := answer["first_difference"]:
        lines += _difference(difference)
    lines += [f"Hint: {each}" for each in answer["hints"]]
    return "\n".join(lines)


def _difference(difference: dict[str, Any]) -> list[str]:
    before, mine, theirs = (
        "".join(each["text"] for each in difference[name])
        for name in ("before", "prompt", "earlier")
    )
    return [
        f"The first difference is token {difference['position']}, in "
        f"{difference['region']['words']}:",
        f"  this prompt   {before + mine!r}",
        f"  the earlier   {before + theirs!r}",
    ]
