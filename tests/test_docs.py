"""The documents against the code: generated tables, names in back-ticks, links, commands, flags and
metric names.
"""

from __future__ import annotations

import argparse
import ast
import builtins
import keyword
import re
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from radixserve import config_table, metrics_table
from radixserve.cluster import arguments as cluster
from radixserve.config_sources import OTHER_VARIABLES
from radixserve.loadtest.options import parser as load_test_options

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))

import families_table

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "radixserve"
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
WITH_NAMES = [ROOT / "README.md", ROOT / "docs" / "ARCHITECTURE.md"]

CODE_SPAN = re.compile(r"`([^`\n]+)`")
DOTTED = re.compile(r"[A-Za-z_]\w*(\.\w+)+(\(\))?")
CAMEL = re.compile(
    r"([A-Z][a-z0-9]+|[A-Z]{2,}(?=[A-Z][a-z]))([A-Z][A-Za-z0-9]*)+|[A-Z][a-z]+|KVCache|KVPool"
)
OTHER_FLAGS = {
    "--budget",
    "--config",
    "--fix",
    "--force",
    "--help",
    "--svg",
    "--version",
    "--build-arg",
    "--extra-index-url",
    "--gpus",
    "--config.file",
}


# Names of other projects in docstrings.
OTHER_NAMES = {"DecodeStream", "aclosing", "contextlib", "silent", "py", "RADIXSERVE_KV_BUDGET"}


def by_name(paths: list[Path]) -> Callable[[Callable[[Path], None]], Callable[[Path], None]]:
    return pytest.mark.parametrize("path", paths, ids=lambda path: path.name)


@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("settings.md", config_table.markdown),
        ("metrics.md", metrics_table.markdown),
        ("models.md", families_table.markdown),
    ],
)
def test_generated_tables_are_up_to_date(name: str, table: Callable[[], str]) -> None:
    text = (ROOT / "docs" / name).read_text()
    found = text.split("<!-- generated: begin -->\n")[1].split("<!-- generated: end -->\n")[0]
    assert found == table(), "run `make format`"


# Names in back-ticks.


@cache
def definitions() -> dict[str, set[str]]:
    """Every module, class and package with the names that it defines: `engine.core` to {EngineCore,
    ...}.
    """
    found: dict[str, set[str]] = {"": set()}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        tree = ast.parse(path.read_text())
        found.setdefault(module, set()).update(defined_in(tree.body))
        found.setdefault(module.rpartition(".")[0], set()).add(module.rpartition(".")[2])
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                found.setdefault(node.name, set()).update(defined_in(node.body))
                found.setdefault(f"{module}.{node.name}", set()).update(defined_in(node.body))
    return found


def defined_in(body: list[ast.stmt]) -> Iterator[str]:
    """What the statements of a module or class bind."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign):
            yield from (target.id for target in node.targets if isinstance(target, ast.Name))
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield from (alias.asname or alias.name for alias in node.names)


def absent(text: str, known: dict[str, set[str]]) -> list[str]:
    """The names in back-ticks that look like the package's own and are not in it."""
    missing = []
    for span in CODE_SPAN.findall(text):
        name = span.removesuffix("()")
        if DOTTED.fullmatch(span):
            owner, _, member = name.rpartition(".")
            if (
                name.split(".")[0] in known
                and name not in known
                and member not in known.get(owner, set())
            ):
                missing.append(span)
        elif (
            CAMEL.fullmatch(span)
            and name not in known
            and not any(name in names for names in known.values())
        ):
            missing.append(span)
    return missing


@by_name(WITH_NAMES)
def test_names_in_back_ticks_exist(path: Path) -> None:
    assert absent(path.read_text(), definitions()) == []


def names_in_code() -> set[str]:
    """Everything that a docstring may name: defined, read, passed or spelled in the code."""
    found: set[str] = set(dir(builtins)) | set(keyword.kwlist)
    for path in PACKAGE.rglob("*.py"):
        found |= {path.stem, *path.relative_to(PACKAGE).parts}
        for node in ast.walk(ast.parse(path.read_text())):
            names = [
                getattr(node, field, None) for field in ("name", "id", "attr", "arg", "asname")
            ]
            found.update(name for name in names if isinstance(name, str))
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.update(
                    re.findall(r"[A-Za-z_]\w*", node.value) if len(node.value) < 200 else ()
                )
    return found


def docstrings(tree: ast.Module) -> Iterator[str]:
    """Every string that stands alone as a statement: of modules, classes, functions, names."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            yield str(node.value.value)


def strange(text: str, known: set[str]) -> list[str]:
    """The names in back-ticks of which some part is no name of the code."""
    spans = [span.removesuffix("()") for span in CODE_SPAN.findall(text)]
    names = [span for span in spans if re.fullmatch(r"[A-Za-z_]\w*(\.\w+)*", span)]
    return [name for name in names if not set(name.split(".")) <= known | OTHER_NAMES]


def test_names_in_back_ticks_of_docstrings_exist() -> None:
    known = names_in_code()
    found = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for text in docstrings(ast.parse(path.read_text()))
        for name in strange(text, known)
    ]
    assert found == []


def test_a_name_in_a_docstring_that_is_gone_is_found() -> None:
    text = "`Scheduler.plan` is called by `no_such_function`, never by `Scheduler.no_such_method`"
    assert strange(text, names_in_code()) == ["no_such_function", "Scheduler.no_such_method"]


def test_a_name_that_is_gone_is_found() -> None:
    text = (
        "`engine.core.EngineCore` `engine.gone` `EngineCore.step` `EngineCore.leap` "
        "`Lease` `HandWave` `os.path` `GET`"
    )
    assert absent(text, definitions()) == ["engine.gone", "EngineCore.leap", "HandWave"]


def test_the_life_of_a_request_names_a_module_in_each_of_its_ten_rows() -> None:
    rows = re.findall(
        r"^\| (\d+) \| `([\w.]+)`", (ROOT / "docs" / "ARCHITECTURE.md").read_text(), re.MULTILINE
    )
    assert [int(number) for number, _ in rows] == list(range(1, 11))
    assert [module for _, module in rows if module not in definitions()] == []


def test_every_module_has_a_row_in_the_map() -> None:
    text = (ROOT / "docs" / "ARCHITECTURE.md").read_text()
    parts = [
        path
        for path in PACKAGE.iterdir()
        if path.suffix == ".py" or (path / "__init__.py").exists()
    ]
    names = [f"radixserve/{path.name}{'/' if path.is_dir() else ''}" for path in sorted(parts)]
    small = {"radixserve/__init__.py", "radixserve/__main__.py", "radixserve/logs.py"}
    assert [name for name in names if name not in small and f"`{name}`" not in text] == []


# Paths and links.


@by_name(DOCUMENTS)
def test_links_and_paths_lead_somewhere(path: Path) -> None:
    text = path.read_text()
    links = [
        link.split("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link
    ]
    assert [link for link in links if link and not (path.parent / link).exists()] == []
    paths = [
        span
        for span in CODE_SPAN.findall(text)
        if re.fullmatch(r"[\w.-]+(/[\w.-]+)*/[\w.-]*", span)
    ]
    assert [each for each in paths if not (ROOT / each).exists()] == []


def test_every_document_and_configuration_can_be_reached_from_the_readme() -> None:
    reached: set[Path] = set()
    todo = [ROOT / "README.md"]
    while todo:
        page = todo.pop()
        reached.add(page)
        links = re.findall(r"\]\(([^)#\s]+)", page.read_text()) if page.suffix == ".md" else []
        targets = [(page.parent / link).resolve() for link in links if "://" not in link]
        todo += [target for target in targets if target.exists() and target not in reached]
    wanted = {*DOCUMENTS, *(ROOT / "configs").iterdir()}
    assert sorted(str(each.relative_to(ROOT)) for each in wanted - reached) == []


def test_the_tree_in_the_readme_is_the_tree() -> None:
    block = (ROOT / "README.md").read_text().split("## Where things are")[1].split("```")[1]
    top, inner = (
        re.findall(r"^(\S+)", block, re.MULTILINE),
        re.findall(r"^  (\S+)", block, re.MULTILINE),
    )
    assert [name for name in top if not (ROOT / name).exists()] == []
    assert [name for name in inner if not (PACKAGE / name).exists()] == []
    packages = {f"{path.parent.name}/" for path in PACKAGE.glob("*/__init__.py")}
    assert packages - set(inner) == set()


# Commands, flags, variables and metrics.


@by_name(DOCUMENTS)
def test_make_targets_flags_and_variables_exist(path: Path) -> None:
    text = path.read_text()
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert [
        name for name in re.findall(r"`?make ([a-z]+)(?=[`\s])", _code(text)) if name not in targets
    ] == []
    flags = {row.flag for row in config_table.TABLE} | {
        f"--no-{row.flag[2:]}" for row in config_table.TABLE if row.plain is bool
    }
    simulation = argparse.ArgumentParser()
    cluster.add_to(simulation)
    for parser in (load_test_options("radixserve bench"), simulation):
        flags |= set(parser._option_string_actions)
    assert (
        set(re.findall(r"(?<![\w-])--[a-z][\w.-]+", _serve_lines(text))) - flags - OTHER_FLAGS
        == set()
    )
    variables = {row.variable for row in config_table.TABLE} | set(OTHER_VARIABLES)
    assert set(re.findall(r"RADIXSERVE_[A-Z]\w*", text)) - variables == set()


def _code(text: str) -> str:
    """What stands in back-ticks and in blocks of code."""
    return "\n".join([*CODE_SPAN.findall(text), *re.findall(r"```\w*\n(.*?)```", text, re.DOTALL)])


def _serve_lines(text: str) -> str:
    return "\n".join(
        line for line in text.splitlines() if "radixserve" in line or line.startswith("|")
    )


@by_name([*DOCUMENTS, *sorted((ROOT / "configs").glob("*.yml"))])
def test_metrics_that_are_named_exist(path: Path) -> None:
    known = {each.name for each in metrics_table.METRICS}
    named = set(re.findall(r"\bradixserve_[a-z]\w*", path.read_text()))
    bare = {
        re.sub(r"_(bucket|sum|count)$", "", name) if name not in known else name for name in named
    }
    assert bare - known == set()
