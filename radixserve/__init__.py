"""radixserve: an inference server that never computes a shared prefix twice.

The names in `__all__` are what a Python program may rely on; everything else may change between
versions. They are imported when they are first used, so that the command line starts at once.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from radixserve.checkpoints.embedded import embedded_model
    from radixserve.errors import (
        ApiError,
        BadRequest,
        ConfigError,
        ModelRefused,
        RadixserveError,
        ServerError,
        StartupError,
        Unavailable,
    )
    from radixserve.llm import (
        LLM,
        AsyncLLM,
        CallArguments,
        CallBegun,
        CallEnded,
        Completion,
        Delta,
        Output,
        Reasoning,
        SamplingParams,
        Text,
        TokenLogprob,
        ToolCall,
    )
    from radixserve.store import KVStore

__version__ = "0.1.0"

_MODULE_OF = {
    **dict.fromkeys(
        (
            *("RadixserveError", "StartupError", "ConfigError", "ModelRefused"),
            *("ApiError", "BadRequest", "ServerError", "Unavailable"),
        ),
        "radixserve.errors",
    ),
    **dict.fromkeys(
        (
            *("LLM", "AsyncLLM", "Completion", "Output", "SamplingParams", "ToolCall"),
            *("Delta", "Text", "Reasoning", "CallBegun", "CallArguments", "CallEnded"),
            "TokenLogprob",
        ),
        "radixserve.llm",
    ),
    "KVStore": "radixserve.store",
    "embedded_model": "radixserve.checkpoints.embedded",
}

__all__ = [
    "LLM",
    "ApiError",
    "AsyncLLM",
    "BadRequest",
    "CallArguments",
    "CallBegun",
    "CallEnded",
    "Completion",
    "ConfigError",
    "Delta",
    "KVStore",
    "ModelRefused",
    "Output",
    "RadixserveError",
    "Reasoning",
    "SamplingParams",
    "ServerError",
    "StartupError",
    "Text",
    "TokenLogprob",
    "ToolCall",
    "Unavailable",
    "__version__",
    "embedded_model",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return __all__
