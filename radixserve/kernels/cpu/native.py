"""Compiles kernels to C functions, once per machine and version; `code_files` keeps the code.

numba's own cache files are pickles, and reading a pickle runs the code in it. So numba only
compiles, and the files that are kept are object files, which LLVM links. Knows nothing of what the
kernels compute.
"""

from __future__ import annotations

import ast
import hashlib
import platform
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import llvmlite
import llvmlite.binding as llvm
import numba
from numba.core.registry import cpu_target

from radixserve.kernels.cpu import code_files, compile, levels
from radixserve.kernels.cpu.code_files import Code
from radixserve.kernels.cpu.levels import Level
from radixserve.progress import long_stage

_FOLDER = Path(__file__).parent
_PACKAGE = __name__.rpartition(".")[0]
_AS_WORDS = str.maketrans("._", "  ")
_engines: list[Any] = []  # the code lives as long as these


def address(kernel: Callable[[Any], None], level: Level | None = None) -> int:
    """The address of `void kernel(void *block)`, compiled for a level, by default the current one.
    The first time ever it compiles the kernel, which takes seconds; later it reads the code from
    the disk.
    """
    return _address(kernel, levels.current() if level is None else level)


@cache
def _address(kernel: Callable[[Any], None], level: Level) -> int:
    module = kernel.__module__.removeprefix(f"{_PACKAGE}.")
    name = f"{module}.{kernel.__name__}-{_digest(module, level)}"
    code = code_files.read(name)
    if code is None:
        code = _compile(kernel, level)
        code_files.keep(name, code)
    return _link(code)


def _compile(kernel: Callable[[Any], None], level: Level) -> Code:
    what = kernel.__module__.removeprefix(f"{_PACKAGE}.").translate(_AS_WORDS)
    with long_stage(f"compiling the kernel of {what}, once for later starts, too"):
        function: Any = compile.kernel()(kernel)
        if level == levels.highest():
            return Code(function.native_name, function._library._get_compiled_object())
        module = function._library._final_module
        return Code(function.native_name, machine(level).emit_object(module))


def machine(level: Level) -> llvm.TargetMachine:
    """LLVM's code generator for this processor without the features above `level`."""
    return llvm.Target.from_triple(llvm.get_process_triple()).create_target_machine(
        cpu=llvm.get_host_cpu_name(),
        features=levels.features(level),
        opt=numba.config.OPT,
        reloc="static" if platform.machine() == "x86_64" else "default",
        codemodel="jitdefault",
        jit=True,
    )


def _link(code: Code) -> int:
    """Load an object file into this process and give the function's address. Takes a
    millisecond.
    """
    target = llvm.Target.from_triple(llvm.get_process_triple()).create_target_machine()
    engine = llvm.create_mcjit_compiler(
        llvm.parse_assembly(""), target, use_lmm=numba.config.USE_LLVMLITE_MEMORY_MANAGER
    )
    engine.add_object_file(llvm.ObjectFileRef.from_data(code.object))
    engine.finalize_object()
    _engines.append(engine)
    return int(engine.get_function_address(code.symbol))


@cache
def _digest(module: str, level: Level) -> str:
    """A digest of the processor, the level, and the versions of compilers and kernel; code is valid
    for one.
    """
    versions = (sys.version, numba.__version__, llvmlite.__version__)
    # Asking for the target also makes numba's helper functions known to LLVM.
    target = cpu_target.target_context.codegen().magic_tuple()
    what = (sources_digest(module), versions, target, levels.features(level))
    return hashlib.sha256(repr(what).encode()).hexdigest()[:24]


def sources_digest(module: str, folder: Path = _FOLDER) -> str:
    """A digest of the source files that a kernel's machine code can depend on."""
    found = hashlib.sha256()
    for path in sources_of(module, folder):
        name = path.relative_to(folder).as_posix()
        found.update(name.encode() + hashlib.sha256(path.read_bytes()).digest())
    return found.hexdigest()[:16]


def sources_of(module: str, folder: Path = _FOLDER) -> list[Path]:
    """The file of `module`, such as gemm.vectors, below `folder` and those that it imports from
    there, directly or not, sorted by name: all files that a kernel's machine code can depend on.
    """
    found: dict[str, Path] = {}
    missing = {module}
    while missing:
        name = missing.pop()
        if name not in found and (path := _file(name, folder)) is not None:
            found[name] = path
            missing |= _imported(path.read_text())
    return [found[name] for name in sorted(found)]


def _file(module: str, folder: Path) -> Path | None:
    """The file of a module or package below `folder`; None if there is none."""
    path = folder.joinpath(*module.split("."))
    candidates = (path.with_name(f"{path.name}.py"), path / "__init__.py")
    return next((each for each in candidates if each.is_file()), None)


@cache
def _imported(source: str) -> set[str]:
    """What `source` imports by `from radixserve.kernels.cpu`, without this prefix: the modules, and
    their members, which may be modules of a package.
    """
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                names |= {f"{node.module}", f"{node.module}.{alias.name}"}
    prefix = f"{_PACKAGE}."
    return {name.removeprefix(prefix) for name in names if name.startswith(prefix)}
