"""The command `radixserve`: arguments in, exit status out.

Owns the flags and their help; the settings' flags come from the table in `config`. The code of a
command is imported when it runs, so that `--help` answers at once. Knows neither HTTP nor models.
"""

from __future__ import annotations

import argparse
import difflib
import getpass
import io
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from radixserve import __version__
from radixserve.config import SECTIONS, EvictionPolicy
from radixserve.config_sources import CONFIG_VARIABLE, Resolved, resolve
from radixserve.config_table import TABLE, Setting
from radixserve.errors import ConfigError, StartupError
from radixserve.logs import configure_logging

EXIT_STARTUP = 2
EXIT_INTERRUPTED = 130

_SERVE_EPILOG = f"""\
Each setting can also be a key of the TOML file (section by section, as above)
or a variable such as RADIXSERVE_KV_BUDGET. A flag wins over a variable, a
variable over the file. {CONFIG_VARIABLE} names the file, too. "auto" stands
for the default in words. Sizes: 512MiB, 2GiB, or bytes. See docs/settings.md.
"""

if TYPE_CHECKING:
    _Commands = argparse._SubParsersAction[argparse.ArgumentParser]

log = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status: 0, 1 (failed), 2 (wrong arguments or settings),
    130 (interrupted).
    """
    _accept_any_encoding()
    parser = _parser()
    if "_ARGCOMPLETE" in os.environ:  # a shell asks for completions; this ends the process
        import argcomplete

        argcomplete.autocomplete(parser)
    arguments, unknown = parser.parse_known_args(argv)
    if unknown:
        arguments.parser.error(_unknown(arguments.parser, unknown))
    try:
        return int(arguments.run(arguments))
    except StartupError as error:
        print(f"radixserve: {error}", file=sys.stderr)
        return EXIT_STARTUP
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def _unknown(parser: argparse.ArgumentParser, words: Sequence[str]) -> str:
    """The sentence about arguments that a command does not have, with the flag that is meant."""
    flags = [flag.partition("=")[0] for flag in words if flag.startswith("-")]
    near = difflib.get_close_matches((flags or words)[0], parser._option_string_actions, n=1)
    return f"unrecognized arguments: {' '.join(words)}" + (f"; is {near[0]} meant?" if near else "")


def _accept_any_encoding() -> None:
    """Replace characters that the terminal cannot show, or did not send in its encoding, instead of
    raising an exception.
    """
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _parser() -> argparse.ArgumentParser:
    from radixserve import chat

    parser = argparse.ArgumentParser(
        prog="radixserve",
        description="Answer chat and completion requests; never compute the same prefix twice.",
    )
    parser.add_argument("--version", action="version", version=f"radixserve {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    serve = commands.add_parser(
        "serve",
        usage="radixserve serve [MODEL] [--config FILE] [--SETTING VALUE ...]",
        help="serve a model over HTTP",
        description="Serve a model over HTTP; ready when GET /health/ready answers 200.",
        epilog=_SERVE_EPILOG,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_settings(serve)
    serve.set_defaults(run=_serve, parser=serve)
    talk = commands.add_parser(
        "chat", help="talk to a running server in the terminal", allow_abbrev=False
    )
    chat.add_arguments(talk)
    talk.set_defaults(run=chat.main, parser=talk)
    watch = commands.add_parser(
        "top", help="watch a running server in the terminal", allow_abbrev=False
    )
    _add_server(watch)
    watch.add_argument("--model", metavar="NAME", help="which of several models to watch")
    watch.set_defaults(run=_top, parser=watch)
    bench = commands.add_parser(
        "bench", help="replay a workload against any server", add_help=False, prefix_chars="\0"
    )
    bench.add_argument(
        "arguments", nargs=argparse.REMAINDER
    )  # with this prefix no argument is an option
    bench.set_defaults(run=_bench, parser=bench)
    _add_cache(
        commands.add_parser(
            "cache", help="inspect and repair a disk store; simulate", allow_abbrev=False
        )
    )
    _add_cluster(
        commands.add_parser("cluster", help="several servers: simulate", allow_abbrev=False)
    )
    _add_key(commands.add_parser("key", help="make a key for the key file", allow_abbrev=False))
    completion = commands.add_parser(
        "completion",
        help="print code with which a shell completes commands and flags",
        description="Print what makes a shell complete commands and flags; for bash: "
        'eval "$(radixserve completion bash)"',
    )
    completion.add_argument("shell", choices=("bash", "zsh", "fish"))
    completion.set_defaults(run=_completion, parser=completion)
    return parser


def _completion(arguments: argparse.Namespace) -> int:
    from argcomplete.shell_integration import shellcode

    shell = "bash" if arguments.shell == "zsh" else arguments.shell  # one code for both
    print(shellcode(["radixserve"], shell=shell))
    return 0


def _add_key(parser: argparse.ArgumentParser) -> None:
    """Add `key new` and `key hash`."""
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, run, words in (
        ("new", _new_key, "draw a key, and print it with its line for the key file"),
        ("hash", _hash_key, "print the line for a key that is typed, or read from standard input"),
    ):
        command = commands.add_parser(name, help=words, description=words, allow_abbrev=False)
        command.set_defaults(run=run, parser=command)


def _new_key(arguments: argparse.Namespace) -> int:
    from radixserve.key_file import hashed, new_key

    key = new_key()
    print(f'key (shown only now): {key}\nin the key file:       keys = ["{hashed(key)}"]')
    return 0


def _hash_key(arguments: argparse.Namespace) -> int:
    from radixserve.key_file import hashed

    key = getpass.getpass("key: ") if sys.stdin.isatty() else sys.stdin.readline()
    if not key.strip():
        arguments.parser.error("no key was given")
    print(f'keys = ["{hashed(key.strip())}"]')
    return 0


def _add_cache(parser: argparse.ArgumentParser) -> None:
    """Add `cache` and its commands: `explain`, and those of `store.admin.tools`."""
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, function, words in (
        ("ls", "ls", "list the stored runs"),
        ("check", "check", "verify every stored run; --fix removes damaged ones"),
        ("clear", "clear", "remove every stored run"),
        ("export", "export_prefix", "write the prefix that ends with a run to one file"),
        ("import", "import_prefix", "store the prefix in an exported file"),
    ):
        command = commands.add_parser(name, help=words, description=words, allow_abbrev=False)
        command.add_argument("folder", type=_path, metavar="DIR", help="the folder of the store")
        command.add_argument(
            "--trust-others",
            action="store_true",
            help="use it even if another user owns it, or its group or others can write to it",
        )
        if name == "check":
            command.add_argument("--fix", action="store_true", help="remove damaged runs")
        if name == "export":
            command.add_argument(
                "name", metavar="RUN", help="first characters of a run's name, as ls shows it"
            )
            command.add_argument("target", type=_path, metavar="FILE", help="the file to write")
            command.add_argument("--force", action="store_true", help="replace a file that exists")
        if name == "import":
            command.add_argument("source", type=_path, metavar="FILE", help="the file to read")
        command.set_defaults(run=_cache, tool=function, parser=command)
    _add_simulate(commands)
    _add_explain(commands)


def _add_explain(commands: _Commands) -> None:
    from radixserve import explain

    words = "say why a running server would not find a request's prompt in its cache"
    command = commands.add_parser("explain", help=words, description=words, allow_abbrev=False)
    explain.add_arguments(command)
    _add_server(command)
    command.set_defaults(run=explain.main, parser=command)


def _add_simulate(commands: _Commands) -> None:
    words = "replay recorded requests through the cache with other policies and budgets"
    command = commands.add_parser("simulate", help=words, description=words, allow_abbrev=False)
    command.add_argument(
        "trace", type=_path, metavar="TRACE", help="requests as JSON lines, in Mooncake's format"
    )
    names = get_args(EvictionPolicy)
    command.add_argument(
        "--policy",
        nargs="+",
        default=["all"],
        choices=("all", *names),
        metavar="NAME",
        help=f"policies to compare: {', '.join(names)} [all]",
    )
    command.add_argument(
        "--budget",
        nargs="+",
        default=[],
        type=_count,
        metavar="BLOCKS",
        help="sizes of the cache, in blocks of the trace [eight, up to all its blocks]",
    )
    command.add_argument("--svg", type=_path, metavar="FILE", help="draw the hit rates to FILE")
    command.set_defaults(run=_simulate, parser=command)


def _add_cluster(parser: argparse.ArgumentParser) -> None:
    from radixserve.cluster import arguments

    tools = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    words = "replay a trace through simulated servers, with several policies of routing"
    command = tools.add_parser("simulate", help=words, description=words, allow_abbrev=False)
    command.add_argument(
        "trace", type=_path, metavar="TRACE", help="requests as JSON lines, in Mooncake's format"
    )
    arguments.add_to(command)
    command.add_argument("--svg", type=_path, metavar="FILE", help="draw the hit shares to FILE")
    command.set_defaults(run=_simulate_cluster, parser=command)


def _simulate_cluster(arguments: argparse.Namespace) -> int:
    from radixserve.cluster import command

    return command.main(arguments.trace, command.Wanted.of(arguments), arguments.svg)


def _count(text: str) -> int:
    """A whole number of at least 1 that a slot can have."""
    if not text.isdecimal() or not 0 < int(text) < 1 << 31:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of blocks")
    return int(text)


def _simulate(arguments: argparse.Namespace) -> int:
    from radixserve.simulate import command

    return command.main(arguments.trace, arguments.policy, arguments.budget, arguments.svg)


def _add_server(parser: argparse.ArgumentParser) -> None:
    """Add which server, and the key for it."""
    parser.add_argument(
        "--url", default="http://127.0.0.1:8000", help="the server (default: %(default)s)"
    )
    parser.add_argument(
        "--key", metavar="KEY", help="an administrator's key (default: RADIXSERVE_API_KEY)"
    )


def _top(arguments: argparse.Namespace) -> int:
    from radixserve.top.command import main as top

    key = arguments.key or os.environ.get("RADIXSERVE_API_KEY")
    return top(arguments.url, key, arguments.model)


def _path(text: str) -> Path:
    """The path with ~ expanded, because a shell does not expand it in `--flag=~/folder`."""
    return Path(text).expanduser()


def _cache(arguments: argparse.Namespace) -> int:
    from radixserve.store.admin import tools

    given = {
        name: value
        for name, value in vars(arguments).items()
        if name not in ("run", "tool", "parser")
    }
    return int(getattr(tools, arguments.tool)(**given))


def _bench(arguments: argparse.Namespace) -> int:
    from radixserve.loadtest.cli import main as load_test

    return load_test(arguments.arguments, "radixserve bench")


def _add_settings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "positional_model", nargs="?", metavar="MODEL", help="the same as --model MODEL"
    )
    parser.add_argument("--config", metavar="FILE", help="TOML file with settings")
    for section, title in SECTIONS.items():
        group = parser.add_argument_group(f"[{section}] {title}")
        for row in TABLE:
            if row.doc.section == section:
                _add_flag(group, row)


def _add_flag(group: argparse._ArgumentGroup, row: Setting) -> None:
    """Add a flag. Its value stays text here, because `config` parses flags, variables and files."""
    help_text = f"{row.explain()} [{row.show(row.default)}]".replace("%", "%%")
    if row.plain is bool:
        group.add_argument(
            row.flag, action=argparse.BooleanOptionalAction, default=None, help=help_text
        )
        return
    if row.several and row.doc.path:  # one at a time, because positional arguments may follow
        word = row.name.upper()
        group.add_argument(row.flag, action="append", metavar=word, help=help_text)
        return
    if row.several:
        word = row.name.rpartition("_")[2].upper()
        group.add_argument(row.flag, nargs="+", action="extend", metavar=word, help=help_text)
        return
    metavar = "SIZE" if row.doc.unit == "bytes" else row.name.rpartition("_")[2].upper()
    action = group.add_argument(row.flag, metavar=metavar, help=help_text)
    if row.choices:
        action.completer = lambda **_: row.choices  # type: ignore[attr-defined]  # argcomplete's


def _resolved(arguments: argparse.Namespace) -> Resolved:
    given = {row.name: getattr(arguments, row.name) for row in TABLE}
    if arguments.positional_model is not None:
        if given["model"] not in (None, [arguments.positional_model]):
            raise ConfigError(
                f"two models are given: {arguments.positional_model} and --model "
                f"{given['model'][0]}; to serve several write --model before each"
            )
        given["model"] = [arguments.positional_model]
    flags = {name: value for name, value in given.items() if value is not None}
    return resolve(flags, os.environ, arguments.config)


def _serve(arguments: argparse.Namespace) -> int:
    resolved = _resolved(arguments)
    configure_logging(resolved.settings.log_level)
    log.info("radixserve %s with %s", __version__, resolved.describe_chosen())
    log.debug("all settings: %s", resolved.describe())
    from radixserve.launch import launch

    return launch(resolved.settings)
