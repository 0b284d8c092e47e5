"""What computes here, besides a model's files: our code, the libraries it is built with, and the
processor.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import torch

import radixserve
from radixserve.kernels.cpu import levels
from radixserve.store.folder.fingerprint import tree_digest

COMPUTES = (
    "cache",
    "checkpoints",
    "engine",
    "kernels",
    "model",
    "prefix.py",
    "rotary.py",
    "step.py",
    "store",
    "tensors",
    "tiers",
)
"""The parts of the package that can change stored K/V. A change of any file in them makes what is
stored invisible, because which changes are harmless cannot be told from the file.
"""
_BUILT_WITH = ("torch", "transformers", "numba", "llvmlite")


def code() -> str:
    """Our version, a digest of our code, and the versions of the libraries it is built with."""
    package = Path(radixserve.__file__).parent
    built = [f"{name} {version(name)}" for name in _BUILT_WITH]
    return "; ".join([radixserve.__version__, tree_digest(package, COMPUTES), *built])


def processor() -> tuple[str, ...]:
    """What of the processor torch and our kernels use."""
    level = levels.current()
    capability = torch.backends.cpu.get_cpu_capability()
    return capability, level.name, levels.processor(), levels.features(level)
