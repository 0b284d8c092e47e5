"""The configuration of an adapter in PEFT's format: which modules it changes, and how much.

Whatever this server does not compute is refused by name, fields that it does not know included
unless they are empty. Knows no tensors.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
import re2

from radixserve.checkpoints.folder_files import present
from radixserve.errors import AdapterRefused, first_line

CONFIG: Final = "adapter_config.json"
_MOST_BYTES: Final = 1 << 20
_MOST_PATTERNS: Final = 4096
_MOST_PATTERN_CHARS: Final = 512

_READ: Final = {
    *("peft_type", "r", "lora_alpha", "use_rslora", "target_modules", "exclude_modules"),
    *("layers_to_transform", "rank_pattern", "alpha_pattern", "bias", "init_lora_weights"),
}
_WITHOUT_EFFECT: Final = {  # on what a trained adapter computes with a model of this server
    *("auto_mapping", "base_model_name_or_path", "revision", "task_type", "inference_mode"),
    *("peft_version", "lora_dropout", "fan_in_fan_out", "layers_pattern", "eva_config"),
    *("megatron_core", "ensure_weight_tying", "qalora_group_size"),
}
_MEANINGS: Final = {
    "use_dora": "weights that are decomposed (DoRA)",
    "modules_to_save": "modules that are trained whole",
    "alora_invocation_tokens": "adapters that begin at invocation tokens (aLoRA)",
    "trainable_token_indices": "trained tokens of the embedding",
    "layer_replication": "replicated layers",
    "target_parameters": "adapters of parameters that are no modules",
    "lora_bias": "biases in the adapter",
    "use_qalora": "quantised groups (QALoRA)",
}
_STARTS: Final = (True, False, None, "gaussian", "eva", "orthogonal")
"""Ways to begin a training that leave the model's own weights alone."""

N = TypeVar("N", int, float)


class _Fields(msgspec.Struct, frozen=True, kw_only=True):
    """The fields that are read, with PEFT's defaults."""

    peft_type: str
    r: int = 8
    lora_alpha: float = 8
    use_rslora: bool = False
    target_modules: list[str] | str | None = None
    exclude_modules: list[str] | str | None = None
    layers_to_transform: list[int] | int | None = None
    rank_pattern: dict[str, int] | None = None
    alpha_pattern: dict[str, float] | None = None
    bias: str = "none"
    init_lora_weights: bool | str | None = True


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """Names of modules are the model's, such as model.layers.0.self_attn.q_proj."""

    targets: tuple[str, ...] | None  # the ends of their names; None: whatever there are tensors of
    excluded: tuple[str, ...]
    layers: frozenset[int] | None  # None: all
    rank: int
    alpha: float
    by_root: bool  # scales are divided by the root of the rank, not by the rank
    ranks: Mapping[str, int]  # of modules whose names match an expression, the first that does
    alphas: Mapping[str, float]

    def rank_of(self, module: str) -> int:
        return _by_pattern(self.ranks, module, self.rank)

    def scale_of(self, module: str) -> float:
        """What the products of a module are multiplied by."""
        rank, alpha = self.rank_of(module), _by_pattern(self.alphas, module, self.alpha)
        return alpha / (math.sqrt(rank) if self.by_root else rank)

    def names(self, module: str) -> bool:
        """Whether the adapter is to change a module. With `targets` None it may."""
        if any(_ends_with(module, each) for each in self.excluded):
            return False
        if self.targets is not None and not any(_ends_with(module, t) for t in self.targets):
            return False
        return self.layers is None or _layer_of(module) in self.layers


def read_config(folder: Path) -> AdapterConfig:
    """Read the configuration in a folder.

    Raises:
        AdapterRefused: there is none, it is damaged, or names something that is not served; one
            sentence says what.
    """
    file = folder / CONFIG
    try:
        if not present(file):
            raise AdapterRefused(f"There is no {CONFIG} in {folder}.")
        if file.stat().st_size > _MOST_BYTES:
            raise AdapterRefused(f"{file} is larger than {_MOST_BYTES:,} bytes.")
        raw = json.loads(file.read_bytes())
        if not isinstance(raw, dict):
            raise ValueError("it holds no object")
        _refuse_unserved(raw, file)
        return _checked(msgspec.convert({k: v for k, v in raw.items() if k in _READ}, _Fields))
    except AdapterRefused:
        raise
    except (OSError, ValueError, RecursionError, re2.error) as error:
        raise AdapterRefused(f"Cannot use {file}: {first_line(error)}.") from error


def _refuse_unserved(raw: dict[str, Any], file: Path) -> None:
    """Refuse other kinds of adapters, and fields with an effect that is not computed here."""
    kind = raw.get("peft_type")
    if kind != "LORA":
        raise AdapterRefused(f"{file} describes an adapter of the kind {kind!r:.80}, not LORA.")
    if raw.get("bias", "none") != "none":
        raise AdapterRefused(f"{file} has trained biases (bias), which are not served.")
    start = raw.get("init_lora_weights", True)
    if start not in _STARTS:
        raise AdapterRefused(
            f"{file} begins with init_lora_weights = {start!r:.80}, which changes the model's own "
            "weights; convert the adapter when you save it."
        )
    for name, value in raw.items():
        if value and name not in _READ and name not in _WITHOUT_EFFECT:
            what = _MEANINGS.get(name, "a field that this version does not know")
            raise AdapterRefused(f"{file} has {name:.80} ({what}), which is not served.")


def _checked(fields: _Fields) -> AdapterConfig:
    """Raises ValueError for numbers that no adapter has."""
    ranks, alphas = fields.rank_pattern or {}, fields.alpha_pattern or {}
    if min(fields.r, *ranks.values(), 1) < 1:
        raise ValueError("a rank is below 1")
    if not all(map(math.isfinite, (fields.lora_alpha, *alphas.values()))):
        raise ValueError("an alpha is not finite")
    for pattern in (*ranks, *alphas):
        if len(pattern) > _MOST_PATTERN_CHARS or len(ranks) + len(alphas) > _MOST_PATTERNS:
            raise ValueError("its patterns are too long or too many")
        _expression(pattern)
    targets, excluded, layers = fields.target_modules, fields.exclude_modules, None
    if fields.layers_to_transform is not None:
        given = fields.layers_to_transform
        layers = frozenset([given] if isinstance(given, int) else given)
    if isinstance(excluded, str):
        targets, excluded = None, None  # an expression; the tensors tell what it leaves
    return AdapterConfig(
        targets=tuple(targets) if isinstance(targets, list) else None,
        excluded=tuple(excluded or ()),
        layers=None
        if layers is None
        else frozenset([layers] if isinstance(layers, int) else layers),
        rank=fields.r,
        alpha=fields.lora_alpha,
        by_root=fields.use_rslora,
        ranks=ranks,
        alphas=alphas,
    )


def _expression(pattern: str) -> Any:
    return re2.compile(rf"(.*\.)?({pattern})")


def _by_pattern(values: Mapping[str, N], module: str, otherwise: N) -> N:
    """The value of the first expression that matches a module's name, or the end of it."""
    for pattern, value in values.items():
        if _ends_with(module, pattern) or _expression(pattern).fullmatch(module):
            return value
    return otherwise


def _ends_with(module: str, end: str) -> bool:
    return module == end or module.endswith(f".{end}")


def _layer_of(module: str) -> int | None:
    """The first number in a module's name; None if there is none."""
    return next((int(each) for each in module.split(".") if each.isdecimal()), None)
