"""Workloads: TOML files turned into a schedule of sessions. Knows no HTTP and no clock.

The file, its changes and the seed determine everything; another seed gives prompts that no server
has seen.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from radixserve.loadtest import kinds, trace
from radixserve.loadtest.load import Load, schedule
from radixserve.loadtest.session import Json, Session, WorkloadError
from radixserve.loadtest.table import Table, change

FOLDER = Path(__file__).parent / "workloads"

BUILDERS: dict[str, Callable[[Table, int], list[Session]]] = {
    "chat": lambda top, seed: kinds.chat(top.table("chat"), seed),
    "parts": lambda top, seed: kinds.parts(top.tables("parts"), seed),
    "mixed": lambda top, seed: kinds.mixed(top.table("mixed"), seed),
    "trace": lambda top, seed: trace.replay(top.table("trace"), seed),
}


@dataclass(frozen=True, slots=True)
class Workload:
    """The requests of a workload and their times."""

    name: str
    seed: int
    load: Load
    sessions: list[Session] = field(repr=False)

    @property
    def num_requests(self) -> int:
        return sum(len(session.turns) for session in self.sessions)


def load_workload(name_or_path: str, changes: Sequence[str] = ()) -> Workload:
    """Read a workload by its path, or by its name in loadtest/workloads, and apply `key=value`
    changes.

    Raises:
        WorkloadError: the file does not exist or is not TOML, or a field is missing, unknown or of
            the wrong kind.
    """
    path = Path(name_or_path)
    if not path.suffix:
        path = FOLDER / f"{name_or_path}.toml"
    values = _read(path)
    change(values, changes, list(BUILDERS))
    table = Table(values, str(path), path.parent)
    found = [kind for kind in BUILDERS if kind in values]
    if len(found) != 1:
        raise WorkloadError(f"{path}: exactly one of the tables {', '.join(BUILDERS)} is needed")
    name, seed, load = table.take("name", str), table.take("seed", int), table.table("load")
    sessions = BUILDERS[found[0]](table, seed)
    table.end()
    return Workload(name, seed, *schedule(load, sessions, seed))


def names() -> list[str]:
    """The workloads that come with the load test."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def _read(path: Path) -> Json:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise WorkloadError(
            f"cannot read {path}: {error.strerror}; there are: {', '.join(names())}"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise WorkloadError(f"{path} is not TOML: {error}") from error
