"""The commands of `radixserve cache` and what they print: `ls`, `check`, `clear`, `export` and
`import` on the folder of a store.

Flags are defined in `cli`; `trust_others` allows a folder that other users own or can write to.
`ls`, `check` and `export` read, also beside a running server. `clear`, `import` and `check --fix`
change the folder; if a server holds it, they send it a request (`store.admin.errands`).
"""

from __future__ import annotations

import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from radixserve.sizes import format_size
from radixserve.store.admin import transfer
from radixserve.store.format.rows import Row

NAME = 12  # characters of a run's name that are shown; any unique beginning is accepted


def ls(folder: Path, trust_others: bool = False) -> int:
    """Print every stored run, the most recently used first."""
    with transfer.reading(folder, trust_others) as index:
        rows = index.rows()
    table = Table(box=None, header_style="bold")
    for column in ("run", "positions", "bytes", "hits", "used", "namespace", "model"):
        table.add_column(column, no_wrap=True)
    for row in sorted(rows, key=lambda each: -each.last_use):
        table.add_row(*_cells(row))
    console = Console(soft_wrap=True, highlight=False)
    if rows:
        console.print(table)
    tokens = sum(row.length for row in rows)
    size = _size(sum(row.num_bytes for row in rows))
    console.print(f"{_count(len(rows), 'run')}, {_count(tokens, 'token')}, {size}")
    return 0


def check(folder: Path, fix: bool, trust_others: bool = False) -> int:
    """Print all damage, and repair it with `fix`; the exit status is 1 if there was any."""
    found = (transfer.fix if fix else transfer.check)(folder, trust_others)
    for problem in found.problems:
        print(problem)
    state = "removed" if fix else "found"
    problems = _count(len(found.problems), "problem")
    print(f"{_count(found.num_runs, 'run')} verified, {problems} {state}")
    return 1 if found.problems else 0


def clear(folder: Path, trust_others: bool = False) -> int:
    """Remove everything that is stored."""
    print(f"{_count(transfer.clear(folder, trust_others), 'run')} removed")
    return 0


def export_prefix(
    folder: Path, name: str, target: Path, trust_others: bool = False, force: bool = False
) -> int:
    """Write one prefix to one file; a file that exists is replaced only with `force`."""
    header = transfer.export_prefix(folder, name, target, trust_others, force)
    print(f"{header.stop} tokens of model {header.fingerprint[:NAME]} written to {target}")
    return 0


def import_prefix(folder: Path, source: Path, trust_others: bool = False) -> int:
    """Read one prefix from one file."""
    brought = transfer.import_prefix(folder, source, trust_others)
    print(
        f"{brought.num_tokens} tokens of model {brought.fingerprint[:NAME]}, "
        f"{brought.num_new} of them new"
    )
    return 0


def _cells(row: Row) -> tuple[str, ...]:
    positions = f"{row.start}-{row.start + row.length - 1}"
    shown = (
        _size(row.num_bytes),
        str(row.hits),
        _age(row.used),
        repr(row.namespace)[1:-1],
        row.fingerprint[:NAME],
    )
    return row.name[:NAME], positions, *shown


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _size(num_bytes: int) -> str:
    """The size as text, rounded to MiB if it is at least one."""
    return format_size(num_bytes >> 20 << 20) if num_bytes >> 20 else f"{num_bytes} B"


def _age(wall: float) -> str:
    seconds = max(int(time.time() - wall), 0)
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds // length} {unit} ago"
    return f"{seconds} s ago"
