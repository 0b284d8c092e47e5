"""The command-line options of a run."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from pathlib import Path

from radixserve.loadtest.dialect import DIALECTS
from radixserve.loadtest.measures import Objective

KEY_VARIABLES = ("RADIXSERVE_API_KEY", "OPENAI_API_KEY")
"""Variables with the key of the server under test; the first that is set counts."""

EPILOG = """\
Other commands:
  compare A.json B.json   ratios of two summaries, with their spread
  tour                    its own server: the shared-system workload cold, warm and without cache

Exit code: 0 all well, 1 errors or differences, 2 could not start, 130 interrupted.
"""


def parser(prog: str) -> argparse.ArgumentParser:
    """The parser of a run."""
    made = argparse.ArgumentParser(
        prog=prog,
        usage=f"{prog} [WORKLOAD] [OPTION ...]",
        description="Replay a workload against an OpenAI-compatible server and tell what happened.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _add_target(made.add_argument_group("the server"))
    _add_load(made.add_argument_group("what is sent, and when"))
    _add_output(made.add_argument_group("what is measured and written"))
    return made


def _add_target(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--url", default="http://127.0.0.1:8000", help="any OpenAI-compatible server [%(default)s]"
    )
    group.add_argument("--model", default="", help="[the first that the server lists]")
    group.add_argument(
        "--api-key",
        metavar="KEY",
        help=f"[the variable {' or '.join(KEY_VARIABLES)}; other users of this machine can see a "
        "flag but not a variable]",
    )
    group.add_argument(
        "--dialect",
        choices=DIALECTS,
        default="openai",
        help="leave out fields that this server refuses",
    )
    group.add_argument(
        "--timeout",
        type=_seconds,
        default=300.0,
        help="seconds until a request counts as hung [300]",
    )


def _add_load(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "workload", nargs="?", default="shared_system", help="one of loadtest/workloads, or a file"
    )
    group.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change a field of the workload",
    )
    group.add_argument(
        "--seed", type=int, help="other prompts of the same kind: cold on any server"
    )
    group.add_argument("--clients", type=_positive, help="closed loop with this many clients")
    group.add_argument(
        "--rate", type=float, help="open loop with this many sessions a second, at random times"
    )
    for name, words in (
        ("leave", "disconnects at a random moment"),
        ("slow", "reads slowly"),
        ("garbage", "sends junk"),
    ):
        group.add_argument(
            f"--{name}", type=float, metavar="SHARE", help=f"share of requests whose client {words}"
        )
    group.add_argument(
        "--phases",
        type=_names,
        default=["cold"],
        metavar="A,B",
        help="replay once for each name, as cold,warm [cold]",
    )


def _add_output(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--slo",
        type=objective,
        metavar="ttft=S,tpot=S,e2e=S",
        help="count the answers that keep these limits",
    )
    group.add_argument(
        "--check",
        action="store_true",
        help="compare every greedy answer with one to the same request alone",
    )
    group.add_argument("--out", type=Path, metavar="FILE", help="JSON lines, one per request")
    group.add_argument(
        "--summary", type=Path, metavar="FILE", help="the numbers as JSON, for compare"
    )
    group.add_argument("--html", type=Path, metavar="FILE", help="a page with plots")
    group.add_argument("--quiet", action="store_true", help="no live progress")


def key_from(variables: Mapping[str, str]) -> str | None:
    """The API key in the environment `variables`; None if there is none."""
    return next((variables[name] for name in KEY_VARIABLES if variables.get(name)), None)


def changes(options: argparse.Namespace) -> list[str]:
    """All changes to the workload; those with an option of their own come first."""
    made = []
    if options.seed is not None:
        made.append(f"seed={options.seed}")
    if options.clients is not None:
        made += ["load.shape=closed", f"load.clients={options.clients}"]
    if options.rate is not None:
        made += ["load.shape=poisson", f"load.rate={options.rate}"]
    for name in ("leave", "slow", "garbage"):
        if (share := getattr(options, name)) is not None:
            made.append(f"load.{name}={share}")
    return [*made, *options.set]


def objective(text: str) -> Objective:
    """Parse `ttft=0.5,tpot=0.05`. Raises an exception that argparse reports."""
    limits: dict[str, float] = {}
    for part in text.split(","):
        name, _, value = part.partition("=")
        try:
            limits[name] = float(value)
        except ValueError:
            raise argparse.ArgumentTypeError(
                f"{part}: must be a name and seconds, as in ttft=0.5"
            ) from None
    if unknown := limits.keys() - {"ttft", "tpot", "e2e"}:
        raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}: must be ttft, tpot or e2e")
    return Objective(**limits)


def _positive(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def _seconds(text: str) -> float:
    if not 0 < (value := float(text)) < math.inf:
        raise argparse.ArgumentTypeError("must be more than 0 seconds")
    return value


def _names(text: str) -> list[str]:
    names = text.split(",")
    if len(set(names)) < len(names) or not all(names):
        raise argparse.ArgumentTypeError("must be different names")
    return names
