"""The command line: options in, live progress, a table out, and an exit code for scripts."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import resource
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape

from radixserve.loadtest import compare, finish, options, tour
from radixserve.loadtest.bench import Bench
from radixserve.loadtest.dialect import DIALECTS
from radixserve.loadtest.record import RecordFile
from radixserve.loadtest.session import WorkloadError
from radixserve.loadtest.target import CannotStart, Target, base_url
from radixserve.loadtest.workload import Workload, load_workload

OK, ERRORS, CANNOT_START = 0, 1, 2
COMMANDS = {"compare": compare.main, "tour": tour.main}


def main(
    arguments: Sequence[str] | None = None, prog: str = "python -m radixserve.loadtest"
) -> int:
    """Run one load test or another command; the exit code is 0 only if every request ended as it
    should.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    console, errors = (
        Console(highlight=False, soft_wrap=True),
        Console(stderr=True, highlight=False, soft_wrap=True),
    )
    try:
        if arguments and arguments[0] in COMMANDS:
            return COMMANDS[arguments[0]](arguments[1:], f"{prog} {arguments[0]}", console)
        chosen = options.parser(prog).parse_args(arguments)
        return _run(chosen, console, [*prog.split(), *arguments])
    except (WorkloadError, CannotStart, OSError) as error:
        errors.print(f"[red]{prog}:[/] {escape(str(error))}")
        _let_go_of_output()
        return CANNOT_START


def _let_go_of_output() -> None:
    """Drop what standard output does not take. Python would try to write it once more at its end,
    and exit with 120.
    """
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(chosen: argparse.Namespace, console: Console, command: Sequence[str]) -> int:
    workload = load_workload(chosen.workload, options.changes(chosen))
    key = chosen.api_key or options.key_from(os.environ)
    target = Target(
        base_url(chosen.url), chosen.model, key, chosen.timeout, DIALECTS[chosen.dialect]
    )
    _allow_many_connections()
    with RecordFile(chosen.out) as file:
        bench = Bench(target, file, console, chosen.slo, chosen.quiet, command)
        interrupted = finish.kept(bench, lambda: _replay(bench, workload, chosen))
    written = finish.write(bench, chosen.summary, chosen.html, console)
    finish.show(bench, f"{workload.name} at {target.url}, {workload.load}", console)
    if interrupted:
        return finish.INTERRUPTED
    return OK if written and not bench.failed else ERRORS


def _replay(bench: Bench, workload: Workload, chosen: argparse.Namespace) -> None:
    """Run every phase and the check, until the server is lost."""
    for phase in chosen.phases:
        asyncio.run(bench.run(workload, phase))
        if bench.phases[-1].run.server_lost:
            return
    if chosen.check:
        asyncio.run(bench.check())


def _allow_many_connections() -> None:
    """Raise the limit of open files, because an open loop may hold many connections."""
    with contextlib.suppress(ValueError, OSError):
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
