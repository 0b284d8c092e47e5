"""The import direction, the absence of torch where it must not be, and the absence of code that
executes data.

Read from the source with `ast`: nothing here imports the package.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "radixserve"

# From the top down: a module imports from its own layer and from those below it.
LAYERS = (
    ("__main__",),
    ("cli",),
    ("launch",),
    ("serve", "chat", "explain", "top", "llm"),
    ("assembly",),
    ("preparations",),
    ("cluster",),
    ("simulate",),
    ("loadtest",),
    ("api",),
    ("telemetry",),
    ("front",),
    ("parsing",),
    ("text",),
    ("metrics_page",),
    ("metrics",),
    ("metrics_aliases",),
    ("metrics_table",),
    ("engine",),
    ("sampling",),
    ("grammar",),
    ("tiers",),
    ("model",),
    ("checkpoints",),
    ("kernels",),
    ("store",),
    ("tensors",),
    ("cache",),
    ("messages",),
    ("config_sources", "defaults", "key_file", "body_file"),
    ("config_table", "each_model"),
    ("config",),
    (
        "adapters",
        "sizes",
        "request",
        "declared",
        "prefix",
        "step",
        "tenants",
        "places",
        "blocks",
        "errors",
        "questions",
        "logs",
        "machine",
        "rotary",
        "token_names",
        "background",
        "interrupts",
        "cache_folder",
        "kept_files",
        "progress",
        "regular_file",
        "waiting",
        "__init__",
    ),
)
DEPTH = {name: depth for depth, names in enumerate(LAYERS) for name in names}

# The rooms of a layer, likewise.
ROOMS = {"store": ("kvstore", "admin", "folder", "format")}

# The command line must start without torch, and so must the front process and whatever it imports.
WITHOUT_TORCH = (
    "__main__",
    "cli",
    "launch",
    "serve",
    "chat",
    "top",
    "explain",
    "loadtest",
    "cluster",
    "simulate",
    "api",
    "text",
    "parsing",
    "grammar",
    "metrics",
    "metrics_page",
    "metrics_table",
    "front",
    "telemetry",
    "messages",
    "config",
    "config_table",
    "config_sources",
    "defaults",
    "logs",
)
WITHOUT_TORCH_MODULES = (
    "engine.process",  # it obeys signals and messages before it imports torch
    "engine.counters",
    "tiers.counters",
    "store.folder.counters",
    "store",
    "store.folder.index",
    "store.folder.disk",
)
NEVER_TORCH = (
    "cache.counters",
    "cache.radix",
    "cache.eviction",
    "cache.slots",
    "request",
    "declared",
    "prefix",
    "step",
    "errors",
    "machine",
)

FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}


@dataclass(frozen=True)
class Import:
    """`module` imports `target` in line `line`; `at_import` says that merely importing `module`
    does it.
    """

    module: str
    target: str
    line: int
    at_import: bool


@cache
def modules() -> dict[str, ast.Module]:
    """Every module of the package under its dotted name without the package's own, such as
    front.client.
    """
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)
        found[name] = ast.parse(path.read_text(), str(path))
    return found


@cache
def imports_of(module: str, tree: ast.Module) -> tuple[Import, ...]:
    """All imports, those inside functions and under TYPE_CHECKING included."""
    return tuple(_imports_of(module, tree))


def _imports_of(module: str, tree: ast.Module) -> Iterator[Import]:
    lazy = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        or _is_type_checking(node)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno}: relative import"
            targets = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (Import(module, target, node.lineno, id(node) not in lazy) for target in targets)


def _is_type_checking(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.If)
        and isinstance(node.test, ast.Name)
        and node.test.id == "TYPE_CHECKING"
    )


def all_imports() -> list[Import]:
    return [each for module, tree in modules().items() for each in imports_of(module, tree)]


def own(target: str, known: dict[str, ast.Module]) -> str | None:
    """The module of the package that `target` names (`radixserve.step.Chunk` is in `step`), or None
    for others.
    """
    if target.split(".")[0] != "radixserve":
        return None
    parts = target.split(".")[1:]
    while parts and ".".join(parts) not in known:
        parts.pop()
    return ".".join(parts) or "__init__"


def upward(imports: list[Import], known: dict[str, ast.Module]) -> list[str]:
    """Every import that goes up."""
    found = []
    for each in imports:
        target = own(each.target, known)
        if each.module == "__init__" and not each.at_import:
            continue  # the package's names, which are imported when they are first used
        if target is not None and DEPTH[target.split(".")[0]] < DEPTH[each.module.split(".")[0]]:
            found.append(f"{each.module}:{each.line} imports {target}, which is above it")
    return found


def reaches(start: str, name: str, known: dict[str, ast.Module], *, lazily: bool) -> list[str]:
    """The chain of modules by which importing `start` imports the package `name`; empty if it does
    not.
    """
    chains, seen = [[start]], {start}
    while chains:
        chain = chains.pop(0)
        for each in imports_of(chain[-1], known[chain[-1]]):
            if not each.at_import and not lazily:
                continue
            if each.target.split(".")[0] == name:
                return [*chain, name]
            target = own(each.target, known)
            if target is not None and target not in seen:
                seen.add(target)
                chains.append([*chain, target])
    return []


def test_every_module_has_its_layer() -> None:
    assert [name for name in modules() if name.split(".")[0] not in DEPTH] == []


def test_imports_go_downwards() -> None:
    known = modules()
    offenders = upward(
        [each for each in all_imports() if each.module.split(".")[0] in DEPTH], known
    )
    assert offenders == []


def test_imports_between_rooms_go_downwards() -> None:
    known, offenders = modules(), []
    for each in all_imports():
        target = (own(each.target, known) or "").split(".")
        layer, *rest = each.module.split(".")
        rooms = ROOMS.get(layer, ())
        is_between = layer == target[0] and rest and target[1:] and rooms
        if is_between and rooms.index(target[1]) < rooms.index(rest[0]):
            offenders.append(f"{each.module}:{each.line} imports {'.'.join(target)}")
    assert offenders == []


def test_importing_the_front_does_not_import_torch() -> None:
    known = modules()
    front = [
        name
        for name in known
        if name.split(".")[0] in WITHOUT_TORCH or name in WITHOUT_TORCH_MODULES
    ]
    chains = [reaches(name, "torch", known, lazily=False) for name in front]
    assert [" > ".join(chain) for chain in chains if chain] == []
    assert {"cli", "metrics", "config"} <= set(front)


def test_serving_does_not_import_transformers() -> None:
    """Only tokenizer processes and the engine do, so that the front starts at once."""
    known = modules()
    front = [
        name for name in known if name in ("serve", "text.client") or name.split(".")[0] == "api"
    ]
    chains = [reaches(name, "transformers", known, lazily=False) for name in front]
    assert [" > ".join(chain) for chain in chains if chain] == []
    assert len(front) > 10


def test_the_tree_its_slots_and_the_plain_values_have_nothing_to_do_with_torch() -> None:
    known = modules()
    chains = [reaches(name, "torch", known, lazily=True) for name in NEVER_TORCH if name in known]
    assert [" > ".join(chain) for chain in chains if chain] == []


def test_http_is_known_to_the_api_and_its_wiring_only() -> None:
    users = {
        each.module.split(".")[0]
        for each in all_imports()
        if each.target.split(".")[0] == "aiohttp"
    }
    assert users <= {"api", "serve", "chat", "loadtest"}


def executed_data(module: str, tree: ast.Module) -> Iterator[str]:
    """Every import or call that would run what it reads."""
    for each in imports_of(module, tree):
        if each.target.split(".")[0] in FORBIDDEN_MODULES:
            yield f"{module}:{each.line}: import of {each.target}"
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        if name in FORBIDDEN_CALLS or name in ("torch.load", "yaml.load", "numpy.load", "np.load"):
            yield f"{module}:{node.lineno}: call of {name}"


def test_nothing_executes_data() -> None:
    assert [
        found for module, tree in modules().items() for found in executed_data(module, tree)
    ] == []


# The checks themselves can fail.


def test_an_import_upwards_is_found() -> None:
    known = modules()
    tree = ast.parse(
        "def f():\n    from radixserve.cli import main\nfrom radixserve.errors import ApiError\n"
    )
    assert upward(list(imports_of("step", tree)), known) == [
        "step:2 imports cli, which is above it"
    ]


@pytest.mark.parametrize(
    ("source", "eager", "lazy"),
    [
        ("import torch.nn", True, True),
        ("from torch import nn", True, True),
        ("def f():\n    import torch", False, True),
        ("if TYPE_CHECKING:\n    import torch", False, True),
        ("try:\n    import torch\nexcept ImportError: pass", True, True),
        ("class C:\n    import torch", True, True),
        ("import torchlike", False, False),
    ],
)
def test_torch_is_found_where_it_counts(source: str, eager: bool, lazy: bool) -> None:
    known = {"a": ast.parse("from radixserve.b import x"), "b": ast.parse(source)}
    chain = ["a", "b", "torch"]
    assert reaches("a", "torch", known, lazily=False) == (chain if eager else [])
    assert reaches("a", "torch", known, lazily=True) == (chain if lazy else [])


@pytest.mark.parametrize(
    "source", ["import pickle", "from dill import loads", "eval('1')", "torch.load('x')"]
)
def test_executed_data_is_found(source: str) -> None:
    assert len(list(executed_data("m", ast.parse(source)))) == 1


def test_a_regular_expression_may_be_compiled() -> None:
    assert list(executed_data("m", ast.parse("import re\nre.compile('x')\nmodel.eval()"))) == []
