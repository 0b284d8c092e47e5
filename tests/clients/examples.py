"""Runs the scripts of examples/clients as a user does, against any server.

`make clients` installs what they need. A script is copied, because its server's address is written
in it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from radixserve.cache_folder import cache_dir

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples" / "clients"
INSTALLED = ROOT / ".venv-clients"

ADDRESS = "http://127.0.0.1:8000"
SECONDS = 200  # most of the time passes while large packages are imported
SETS = {
    "aider.sh": "aider",
    "aiperf.sh": "load",
    "guidellm.sh": "load",
    "instructor_models.py": "openai2",
    "llamaindex.py": "openai2",
    "lm_eval.sh": "load",
    "vllm_bench.sh": "load",
}


def environment_of(name: str) -> Path:
    """The folder with the packages of a script."""
    return INSTALLED / ("node" if name.endswith(".mjs") else SETS.get(name, "current"))


def run(name: str, url: str, folder: Path, packages: Path | None = None, key: str = "none") -> str:
    """What the script prints when its server is at `url`; it works in `folder`.

    `packages` is the virtual environment, by default the one that `environment_of` names. `key` is
    the API key that the client sends.
    """
    packages = packages or environment_of(name)
    require(packages)
    script = folder / name
    text = (EXAMPLES / name).read_text().replace(ADDRESS, url)
    script.write_text(text.replace('api_key="none"', f'api_key="{key}"'))
    result = subprocess.run(
        [*interpreter(name, packages), str(script)],
        cwd=folder,
        env=surroundings(folder, packages),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert result.returncode == 0, f"{result.stdout}\n{result.stderr}"
    return result.stdout


def interpreter(name: str, packages: Path) -> list[str]:
    """The command that runs a script of this kind."""
    if name.endswith(".mjs"):
        return [shutil.which("node") or "node"]
    return ["sh"] if name.endswith(".sh") else [str(packages / "bin" / "python")]


def surroundings(folder: Path, packages: Path) -> dict[str, str]:
    """Environment variables: a home of its own, and nothing that is fetched from elsewhere.

    The server's models are where a script expects them, below the home: some need a tokenizer.
    """
    models = folder / ".cache" / "radixserve"
    if not models.exists():
        models.parent.mkdir(exist_ok=True)
        models.symlink_to(cache_dir())
    modules = folder / "node_modules"
    if packages.name == "node" and not modules.exists():
        modules.symlink_to(packages / "node_modules")  # node looks for packages beside the script
    return {
        "PATH": f"{packages / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(folder),
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "PYTHONSAFEPATH": "1",  # a script may have the name of a package
        "PYTHONWARNINGS": "ignore",
    }


def require(packages: Path) -> None:
    """Skip the test if the packages are not installed; in CI, which installs them, fail."""
    if packages.exists():
        return
    reason = f"needs {packages.relative_to(ROOT)}: run `make clients`"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)
