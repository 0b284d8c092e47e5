"""Budgets on functions, and documentation of the package; every test names all offenders
at once.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "radixserve"

MAX_FUNCTION_LINES = 60
MAX_PARAMETERS = 6

# Signatures that are somebody else's.
FOREIGN = {"radixserve/model/attention.py attention": "transformers calls it"}

# Compiled by numba: these take arrays, offsets and strides one by one, as a BLAS routine does.
COMPILED = {"intrinsic", "compiled"}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def sources() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        yield str(path.relative_to(ROOT)), ast.parse(path.read_text())


def lines_of(node: Function | ast.ClassDef) -> int:
    """Lines from the first decorator to the end."""
    first = min([node.lineno, *(each.lineno for each in node.decorator_list)])
    return (node.end_lineno or first) - first + 1


def own_lines_of(node: Function) -> int:
    """Lines without those of the functions that are defined inside of it: a factory of compiled
    functions is as long as what it makes, and each of these has a budget of its own.
    """
    inner = [each for each in node.body if isinstance(each, Function)]
    return lines_of(node) - sum(lines_of(each) for each in inner)


def parameters_of(node: Function) -> int:
    """How many arguments a caller may give; self and cls are not among them."""
    arguments = node.args
    names = [each.arg for each in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    starred = sum(each is not None for each in (arguments.vararg, arguments.kwarg))
    return len(names) - (names[:1] in (["self"], ["cls"])) + starred


def is_compiled(node: Function) -> bool:
    calls = [each.func if isinstance(each, ast.Call) else each for each in node.decorator_list]
    return any(isinstance(each, ast.Name) and each.id in COMPILED for each in calls)


def too_large(name: str, tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, Function):
            if (lines := own_lines_of(node)) > MAX_FUNCTION_LINES:
                yield f"{name}:{node.lineno} {node.name}: {lines} lines"
            exempt = f"{name} {node.name}" in FOREIGN or is_compiled(node)
            if (parameters := parameters_of(node)) > MAX_PARAMETERS and not exempt:
                yield f"{name}:{node.lineno} {node.name}: {parameters} parameters"


def undocumented(name: str, tree: ast.Module) -> Iterator[str]:
    """The module, its public functions, its public classes that do something and their public
    methods.

    A class of fields only, a method of fewer than 8 lines and a torch module's `forward` may speak
    for themselves.
    """
    if not ast.get_docstring(tree) and tree.body:
        yield f"{name}: no docstring"
    for node in tree.body:
        if not isinstance(node, Function | ast.ClassDef) or node.name.startswith("_"):
            continue
        methods = (
            [each for each in node.body if isinstance(each, Function)]
            if isinstance(node, ast.ClassDef)
            else []
        )
        if (methods or isinstance(node, Function)) and not ast.get_docstring(node):
            yield f"{name}:{node.lineno} {node.name}: no docstring"
        for method in methods:
            silent = method.name.startswith("_") or method.name == "forward" or lines_of(method) < 8
            if not silent and not ast.get_docstring(method):
                yield f"{name}:{method.lineno} {node.name}.{method.name}: no docstring"


def test_everything_fits_its_budget() -> None:
    offenders = [offender for name, tree in sources() for offender in too_large(name, tree)]
    assert not offenders, "\n" + "\n".join(offenders)


def test_only_what_a_person_reads_comes_from_the_wall_clock() -> None:
    """It may jump: waiting, time limits and orders use time.monotonic or counters."""
    readers = {name for name, tree in sources() if "time.time()" in ast.unparse(tree)}
    assert readers == {
        "radixserve/api/context.py",  # `created` of models
        "radixserve/api/cache/pins.py",  # when pins end, as asked and answered
        "radixserve/store/folder/pin_file.py",  # when pins end, for the server started next
        "radixserve/api/ui/history.py",  # times on the page's axes
        "radixserve/api/ui/live.py",
        "radixserve/front/kv_events.py",  # when a batch was made
        "radixserve/front/shared_budget.py",  # when memory moved
        "radixserve/api/openai/chat.py",  # `created` of answers
        "radixserve/api/openai/completions.py",
        "radixserve/api/openai/responses/renderer.py",
        # how old a file is, which the system tells by that clock
        "radixserve/checkpoints/converted.py",
        "radixserve/store/folder/index.py",  # when a run was used, for `cache ls`
        "radixserve/store/folder/listing.py",  # how long ago that was
        "radixserve/store/admin/tools.py",
    }


def test_everything_public_is_documented() -> None:
    offenders = [offender for name, tree in sources() for offender in undocumented(name, tree)]
    assert not offenders, "\n" + "\n".join(offenders)


# The checks themselves can fail.


def check(source: str) -> list[str]:
    tree = ast.parse(source)
    return [*too_large("m", tree), *undocumented("m", tree)]


def test_offenders_are_found() -> None:
    body = "".join(f"    x = {n}\n" for n in range(60))
    assert check(f'"""Doc."""\ndef _f():\n{body}') == ["m:2 _f: 61 lines"]
    assert check(f'"""Doc."""\n@cache\nasync def _f():\n{body[10:]}') == ["m:3 _f: 61 lines"]
    assert check('"""Doc."""\ndef _f(a, b, /, c, d, *, e, **f): ...') == []
    assert check('"""Doc."""\ndef _f(a, b, /, c, d, *, e, f, **g): ...') == ["m:2 _f: 7 parameters"]
    assert check('"""Doc."""\n@compiled(fastmath=False)\ndef _f(a, b, c, d, e, f, g): ...') == []
    assert check('"""Doc."""\nclass _C:\n    def f(self, a, b, c, d, e, f): ...') == []
    inner = "".join(f"    def g():\n    {line}" for line in body.splitlines(True))
    assert check(f'"""Doc."""\ndef _f():\n{inner}') == []
    assert check("x = 1") == ["m: no docstring"]
    assert check('"""Doc."""\nclass C:\n    x: int') == []
    assert check('"""Doc."""\nclass C:\n    def _f(self): ...') == ["m:2 C: no docstring"]
    assert check('"""Doc."""\ndef f(): ...') == ["m:2 f: no docstring"]
    assert check(
        '"""Doc."""\nclass C:\n    """Doc."""\n    def f(self):\n' + "        x = 1\n" * 7
    ) == ["m:4 C.f: no docstring"]
